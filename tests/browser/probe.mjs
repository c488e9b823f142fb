// Runs jobs in Node and in a browser, and sends back what they found: `probe(address of the site)`.

import { Embedder } from "./embedder.mjs";
import { PackedError, load, unpack, weightOf } from "./hf_compress.mjs";
import { SearchIndex } from "./search.mjs";
import { sentences } from "./sentences.mjs";

async function digest(values) {
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function described(tensor) {
    const { kind, shape, values, scales, group, transposed } = tensor;
    const hashes = [await digest(values), scales && (await digest(scales))];
    const weight = !kind.includes("float") && !scales ? null : await digest(weightOf(tensor));
    return { kind, shape, group, transposed, values: hashes[0], scales: hashes[1], weight };
}

const JOBS = {
    /** Decodes a file. */
    async unpack({ file }) {
        const found = {};
        for (const [name, tensor] of await unpack(await file())) found[name] = await described(tensor);
        return found;
    },

    /** Decodes many damaged files, each given by its length in front of it. */
    async damaged({ file }) {
        const bytes = await file();
        const view = new DataView(bytes.buffer);
        const found = [];
        for (let at = 0; at < bytes.length; ) {
            const length = view.getUint32(at, true);
            const begin = performance.now();
            let outcome;
            try {
                const hashes = [];
                for (const [name, tensor] of await unpack(bytes.subarray(at + 4, at + 4 + length)))
                    hashes.push([name, await digest(tensor.values), tensor.scales && (await digest(tensor.scales))]);
                outcome = { hashes };
            } catch (error) {
                outcome = error instanceof PackedError ? { refused: error.message } : { crashed: `${error.stack}` };
            }
            found.push({ ...outcome, milliseconds: performance.now() - begin });
            at += 4 + length;
        }
        return found;
    },

    /** Makes the weights of a graph, and computes with it. */
    async run({ folder, batches }) {
        const { graph, externalData, bytes } = await load(folder);
        const ort = await import("onnxruntime-web");
        ort.env.wasm.numThreads = 1;
        const session = await ort.InferenceSession.create(graph, { externalData });
        const logits = [];
        for (const batch of batches) {
            const tensor = (rows) =>
                new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
            const feeds = session.inputNames.map((name) => [name, tensor(batch[name])]);
            logits.push(Array.from((await session.run(Object.fromEntries(feeds))).logits.data));
        }
        return { logits, bytes, data: await digest(externalData[0].data) };
    },

    /** Makes sentences. */
    async sentences({ count, seed }) {
        return sentences(count, seed);
    },

    /** Embeds texts, and searches for queries among them. */
    async search({ folder, texts, queries, top }) {
        const embedder = await Embedder.load(folder);
        const vectors = [];
        for (const text of texts) vectors.push(Array.from((await embedder.embed([text]))[0]));
        const asked = [];
        for (const query of queries) asked.push(Array.from((await embedder.embed([query], "query"))[0]));
        const index = new SearchIndex(embedder);
        await index.fill(texts);
        const found = [];
        for (const query of queries) found.push((await index.search(query, top)).found);
        return { vectors, asked, found, tokens: embedder.model.facts.tokens };
    },

    /** Says in which order an index does its work, with an embedder that takes its time. */
    async order() {
        const log = [];
        const embed = async (texts, kind) => {
            log.push(kind === "query" ? texts[0] : `batch ${texts.length}`);
            await new Promise((resolve) => setTimeout(resolve, 20));
            if (texts.includes("bad")) throw new Error("bad text");
            return texts.map(({ length }) => Float32Array.of(Math.cos(length), Math.sin(length)));
        };
        const index = new SearchIndex({ embed });
        const filled = index.fill(Array.from({ length: 20 }, (_, at) => "x".repeat(at + 1)));
        const typed = ["a", "ab", "abc"].map((query) => index.search(query, 1));
        const answers = await Promise.all(typed);
        const first = await filled;
        const replaced = index.fill(["one", "two"]);
        const failed = index.fill(["bad"]).then(() => "read", (error) => error.message);
        const refused = await index.search("bad").then(() => "answered", (error) => error.message);
        const second = await replaced;
        const third = await failed;
        const last = [await index.fill(["yyyy", "zz"]), await index.search("xx", 1), index.size];
        return { log, answers, first, second, third, refused, last };
    },

    /** Loads a folder that cannot be loaded. */
    async refused({ folder }) {
        try {
            await load(folder);
            return null;
        } catch (error) {
            return error instanceof PackedError ? error.message : `crashed: ${error.stack}`;
        }
    },
};

export async function probe(site) {
    const found = {};
    for (const [name, { job, path, ...rest }] of Object.entries(await (await fetch(new URL("jobs.json", site))).json())) {
        const address = path && new URL(path, site);
        const file = async () => new Uint8Array(await (await fetch(address)).arrayBuffer());
        try {
            found[name] = await JOBS[job]({ file, folder: address, ...rest });
        } catch (error) {
            found[name] = { crashed: `${error.stack}` };
        }
    }
    await fetch(new URL("found", site), { method: "POST", body: JSON.stringify(found) });
}

if (typeof window === "undefined") await probe(process.argv[2]);
