/** Search by meaning: sentences are read once, and each query is compared with all of them. */

/** @import { Embedder } from "./embedder.mjs" */

// Sentences that are read at once. A query waits for the batch that is being read, so larger ones are slower to answer.
const BATCH = 8;

/**
 * @typedef {object} Answer
 * @property {{ sentence: string, score: number }[]} found The most similar sentences, the best first.
 * @property {number} of How many sentences were compared.
 * @property {number} milliseconds From the text of the query to the sorted answer.
 */

/**
 * @typedef {object} Reading Sentences that are being read.
 * @property {string[][]} batches Those that are left.
 * @property {(read: number) => void} progress
 * @property {(all: boolean) => void} resolve
 * @property {(error: unknown) => void} reject
 */

/** Sentences with their vectors. It does one thing at a time: queries first, and of these only the newest. */
export class SearchIndex {
    /** @param {Pick<Embedder, "embed">} embedder */
    constructor(embedder) {
        this.#embedder = embedder;
    }

    #embedder;
    /** @type {{ sentence: string, vector: Float32Array }[]} */
    #read = [];
    /** @type {Reading | null} */
    #reading = null;
    /** @type {{ query: string, top: number, resolve: (answer: Answer | null) => void, reject: (error: unknown) => void } | null} */
    #waiting = null;
    #busy = false;

    /** How many sentences have been read. */
    get size() {
        return this.#read.length;
    }

    /**
     * Reads sentences in place of those that are there. Queries are answered meanwhile.
     *
     * @param {string[]} sentences
     * @param {(read: number) => void} [progress] Is told how many have been read.
     * @returns {Promise<boolean>} Whether all were read; false if others took their place.
     */
    fill(sentences, progress = () => {}) {
        this.#reading?.resolve(false);
        this.#read = [];
        // Sentences of about the same length share a batch, so that little of it is padding.
        const sorted = sentences.toSorted((one, other) => one.length - other.length);
        const batches = Array.from({ length: Math.ceil(sorted.length / BATCH) }, (_, at) =>
            sorted.slice(at * BATCH, (at + 1) * BATCH),
        );
        return new Promise((resolve, reject) => {
            this.#reading = { batches, progress, resolve, reject };
            this.#work();
        });
    }

    /**
     * Returns the sentences nearest to a query.
     *
     * @param {string} query
     * @param {number} [top] How many.
     * @returns {Promise<Answer | null>} null if a newer query came before this one had its turn.
     */
    search(query, top = 10) {
        this.#waiting?.resolve(null);
        return new Promise((resolve, reject) => {
            this.#waiting = { query, top, resolve, reject };
            this.#work();
        });
    }

    async #work() {
        if (this.#busy) return;
        this.#busy = true;
        while (this.#waiting || this.#reading) {
            const asked = this.#waiting;
            const reading = this.#reading;
            this.#waiting = null;
            try {
                if (asked) asked.resolve(await this.#answer(asked.query, asked.top));
                else if (reading) await this.#readSome(reading);
            } catch (error) {
                (asked ?? reading)?.reject(error);
                if (!asked && this.#reading === reading) this.#reading = null;
            }
        }
        this.#busy = false;
    }

    /** @param {Reading} reading */
    async #readSome(reading) {
        const batch = reading.batches.shift();
        if (batch) {
            const vectors = await this.#embedder.embed(batch, "document");
            if (this.#reading !== reading) return; // Others took their place meanwhile.
            this.#read.push(...batch.map((sentence, at) => ({ sentence, vector: vectors[at] })));
            reading.progress(this.#read.length);
        }
        if (reading.batches.length) return;
        this.#reading = null;
        reading.resolve(true);
    }

    /**
     * @param {string} query
     * @param {number} top
     * @returns {Promise<Answer>}
     */
    async #answer(query, top) {
        const begin = performance.now();
        const [asked] = await this.#embedder.embed([query], "query");
        const scored = this.#read.map(({ sentence, vector }) => ({ sentence, score: dot(asked, vector) }));
        const found = scored.sort((one, other) => other.score - one.score).slice(0, top);
        return { found, of: scored.length, milliseconds: performance.now() - begin };
    }
}

/**
 * @param {Float32Array} one
 * @param {Float32Array} other
 */
function dot(one, other) {
    let sum = 0;
    for (let at = 0; at < one.length; at++) sum += one[at] * other[at];
    return sum;
}

/**
 * Returns the lines of a text that hold words, each once.
 *
 * @param {string} text
 * @param {number} most How many at most.
 */
export function lines(text, most) {
    const found = text.split(/\r\n|\r|\n/).map((line) => line.trim());
    return [...new Set(found)].filter(Boolean).slice(0, most);
}
