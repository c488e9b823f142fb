/** A model of hf_compress with its tokenizer, ready to read texts in onnxruntime-web. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";
import { PackedError, load } from "./hf_compress.mjs";

/** A model, its tokenizer and its configuration. */
export class TextModel {
    /**
     * Downloads the folder of a model with the format `web`, and makes a session.
     *
     * @param {string | URL} folder
     * @param {object} [options]
     * @param {(url: URL) => Promise<Response>} [options.fetch] How to download; by default `fetch` itself.
     * @returns {Promise<TextModel>}
     * @throws {PackedError} A file is missing or damaged, or the files do not belong together.
     */
    static async load(folder, options = {}) {
        if (typeof WebAssembly !== "object")
            throw new PackedError("WebAssembly is switched off in this browser, and the model needs it: switch it on");
        const files = new Files(folder, options.fetch);
        const [loaded, config, words, tokenizing, limits] = await Promise.all([
            load(files.base, options),
            files.json("config.json"),
            files.json("tokenizer.json"),
            files.json("tokenizer_config.json"),
            files.json("sentence_bert_config.json", {}),
        ]);
        const begin = performance.now();
        const session = await ort.InferenceSession.create(loaded.graph, { externalData: loaded.externalData });
        const milliseconds = { ...loaded.milliseconds, session: performance.now() - begin };
        const longest = [config.max_position_embeddings, tokenizing.model_max_length, limits.max_seq_length];
        const tokens = Math.min(...longest.filter((length) => length > 0));
        const tokenizer = new Tokenizer(words, tokenizing);
        return new TextModel(session, tokenizer, config, files, { tokens, weights: loaded.bytes, milliseconds });
    }

    /**
     * @param {ort.InferenceSession} session
     * @param {Tokenizer} tokenizer
     * @param {any} config What config.json says.
     * @param {Files} files The folder it comes from.
     * @param {{ tokens: number, weights: number, milliseconds: { download: number, decode: number, session: number } }}
     *     facts The most tokens of a text; bytes of packed file and graph; what each step of loading took.
     */
    constructor(session, tokenizer, config, files, facts) {
        this.session = session;
        this.config = config;
        this.files = files;
        this.facts = facts;
        this.#tokenizer = tokenizer;
        const bare = tokenizer.encode("a", { add_special_tokens: false }).ids;
        const whole = tokenizer.encode("a").ids;
        const head = bare.length ? Math.max(whole.indexOf(bare[0]), 0) : 0;
        this.#tail = whole.length - head - bare.length;
    }

    #tokenizer;
    /** How many special tokens stand behind a text. */
    #tail;

    /** Whether the model gives a vector for each token, and no classes. */
    get embeds() {
        return this.session.outputNames[0] === "last_hidden_state";
    }

    /**
     * Returns the tokens of a text. A long text loses its end, but not the special tokens behind it.
     *
     * @param {string} text
     */
    tokens(text) {
        const { ids, token_type_ids: types } = this.#tokenizer.encode(text, { return_token_type_ids: true });
        const most = this.facts.tokens;
        const cut = (/** @type {number[]} */ list) =>
            list.length <= most ? list : [...list.slice(0, most - this.#tail), ...list.slice(list.length - this.#tail)];
        return { ids: cut(ids), types: cut(types) };
    }

    /**
     * Computes what the graph says of some texts.
     *
     * @param {string[]} texts
     * @returns {Promise<{ data: Float32Array, dims: readonly number[], lengths: number[] }>} The first output, and how
     *     many tokens each text has. Positions behind these are padding.
     * @throws {PackedError} The graph asks for something that texts do not have.
     */
    async run(texts) {
        const rows = texts.map((text) => this.tokens(text));
        const lengths = rows.map(({ ids }) => ids.length);
        const width = Math.max(...lengths);
        const padding = this.config.pad_token_id ?? 0;
        /** @type {Record<string, (row: { ids: number[], types: number[] }, at: number) => number>} */
        const known = {
            input_ids: ({ ids }, at) => ids[at] ?? padding,
            attention_mask: ({ ids }, at) => (at < ids.length ? 1 : 0),
            token_type_ids: ({ types }, at) => types[at] ?? 0,
        };
        /** @type {Record<string, ort.Tensor>} */
        const feeds = {};
        for (const name of this.session.inputNames) {
            if (!known[name]) throw new PackedError(`web/graph.onnx asks for ${name}, which a text does not have`);
            const numbers = new BigInt64Array(rows.length * width);
            for (let at = 0; at < numbers.length; at++)
                numbers[at] = BigInt(known[name](rows[Math.floor(at / width)], at % width));
            feeds[name] = new ort.Tensor("int64", numbers, [rows.length, width]);
        }
        const output = (await this.session.run(feeds))[this.session.outputNames[0]];
        return { data: /** @type {Float32Array} */ (output.data), dims: output.dims, lengths };
    }
}

/** The small files of a model's folder. */
export class Files {
    /**
     * @param {string | URL} folder
     * @param {(url: URL) => Promise<Response>} [get]
     */
    constructor(folder, get = (url) => fetch(url)) {
        this.base = new URL(folder, typeof location === "undefined" ? undefined : location.href);
        if (!this.base.pathname.endsWith("/")) this.base.pathname += "/";
        this.bytes = 0;
        this.#get = get;
    }

    #get;

    /**
     * Downloads a JSON file, and counts its bytes.
     *
     * @param {string} path
     * @param {unknown} [missing] What a file that is not there says; without it, such a file is an error.
     * @returns {Promise<any>}
     * @throws {PackedError} It is missing or damaged.
     */
    async json(path, missing) {
        const response = await this.#get(new URL(path, this.base)).catch((error) => {
            throw new PackedError(`${path} cannot be downloaded: ${error.message}`);
        });
        if (response.status === 404 && missing !== undefined) return missing;
        if (!response.ok) throw new PackedError(`${path} cannot be downloaded: status ${response.status}`);
        const bytes = new Uint8Array(await response.arrayBuffer());
        this.bytes += bytes.length;
        try {
            return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
        } catch {
            throw new PackedError(`${path} is not JSON: it is damaged`);
        }
    }
}
