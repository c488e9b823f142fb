/** Texts as vectors of length 1, as sentence-transformers computes them from a folder of its own. */

import { PackedError } from "./hf_compress.mjs";
import { TextModel } from "./text_model.mjs";

/**
 * How much the vector of token `at` of `count` tokens counts in that of the text, by the name of the pooling. All
 * vectors are then scaled to length 1, so that only the directions of the sums matter.
 *
 * @type {Record<string, (at: number, count: number) => number>}
 */
const POOLING = {
    mean: () => 1,
    mean_sqrt_len_tokens: () => 1,
    weightedmean: (at) => at + 1,
    cls: (at) => (at === 0 ? 1 : 0),
    lasttoken: (at, count) => (at === count - 1 ? 1 : 0),
};
// What older versions of sentence-transformers call them.
const FLAGS = Object.fromEntries(
    ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"].map((flag) => [
        `pooling_mode_${flag}`,
        flag === "mean_sqrt_len_tokens" ? flag : flag.replace(/_tokens?$/, ""),
    ]),
);
/** A model that turns texts into vectors. */
export class Embedder {
    /**
     * Loads a model, as `TextModel.load` does, and how its vectors become one vector.
     *
     * @param {string | URL} folder
     * @param {{ fetch?: (url: URL) => Promise<Response> }} [options]
     * @returns {Promise<Embedder>}
     * @throws {PackedError} A file is missing or damaged, or the model has a part that this does not know.
     */
    static async load(folder, options = {}) {
        return Embedder.of(await TextModel.load(folder, options));
    }

    /**
     * Returns the embedder of a model that is loaded. One that is not of sentence-transformers takes the mean.
     *
     * @param {TextModel} model
     * @returns {Promise<Embedder>}
     * @throws {PackedError} The model gives classes, or it has a part that this does not know.
     */
    static async of(model) {
        if (!model.embeds) throw new PackedError("this model classifies texts: take an embedding model");
        const parts = await model.files.json("modules.json", []);
        let pooling = "mean";
        const prompts = await prompting(model);
        for (const { type, path } of parts) {
            const kind = `${type}`.split(".").at(-1);
            if (kind === "Pooling") pooling = await poolingOf(model, `${path}/config.json`, Object.values(prompts).some(Boolean));
            else if (kind !== "Transformer" && kind !== "Normalize")
                throw new PackedError(`modules.json names a part ${kind}, which this page cannot compute`);
        }
        return new Embedder(model, pooling, prompts);
    }

    /**
     * @param {TextModel} model
     * @param {string} pooling A key of `POOLING`.
     * @param {{ query: string, document: string }} prompts What is put in front of texts.
     */
    constructor(model, pooling, prompts) {
        this.model = model;
        this.pooling = pooling;
        this.prompts = prompts;
    }

    /**
     * Returns the vectors of some texts, computed in one batch.
     *
     * @param {string[]} texts
     * @param {"query" | "document"} [kind]
     * @returns {Promise<Float32Array[]>} Each of length 1.
     */
    async embed(texts, kind = "document") {
        const { data, dims, lengths } = await this.model.run(texts.map((text) => this.prompts[kind] + text));
        const [, tokens, size] = dims;
        return lengths.map((count, row) => {
            const sum = new Float64Array(size);
            for (let at = 0; at < count; at++) {
                const weight = POOLING[this.pooling](at, count);
                if (!weight) continue;
                const begin = (row * tokens + at) * size;
                for (let place = 0; place < size; place++) sum[place] += weight * data[begin + place];
            }
            const length = Math.hypot(...sum) || 1;
            return Float32Array.from(sum, (value) => value / length);
        });
    }
}

/**
 * @param {TextModel} model
 * @param {string} path Of the configuration of the pooling.
 * @param {boolean} prompted Whether the model has prompts.
 */
async function poolingOf(model, path, prompted) {
    const config = await model.files.json(path);
    const flags = Object.keys(FLAGS).filter((flag) => config[flag]);
    const named = config.pooling_mode ?? (flags.length ? flags.map((flag) => FLAGS[flag]) : "mean");
    const modes = Array.isArray(named) ? named : [named];
    if (modes.length !== 1 || !Object.hasOwn(POOLING, modes[0]))
        throw new PackedError(`${path} says pooling ${modes.join(" + ")}; one of ${Object.keys(POOLING).join(", ")} works`);
    if (prompted && config.include_prompt === false)
        throw new PackedError(`${path} leaves prompts out of the pooling, which this page cannot do`);
    return modes[0];
}

/**
 * Returns what is put in front of texts, as `encode_query` and `encode_document` of sentence-transformers put it.
 *
 * @param {TextModel} model
 */
async function prompting(model) {
    const { prompts } = await model.files.json("config_sentence_transformers.json", {});
    return { query: `${prompts?.query ?? ""}`, document: `${prompts?.document ?? ""}` };
}
