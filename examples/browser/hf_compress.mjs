/**
 * Reads packed weights of hf_compress in the browser or in Node, and makes the weights of an ONNX graph from them.
 *
 *     import { load } from "./hf_compress.mjs";
 *     const { graph, externalData } = await load("https://huggingface.co/NAME/MODEL/resolve/main/");
 *     const session = await ort.InferenceSession.create(graph, { externalData });
 *
 * docs/format.md of hf_compress specifies what is read here: packed tensors, and the list of parts in web/graph.json.
 * Every length is checked before it is used, so a damaged or hostile file is a `PackedError`.
 */

import { ZSTDDecoder } from "zstddec";

/**
 * @typedef {Int8Array | Uint8Array | Int16Array | Int32Array | BigInt64Array | Float32Array | Float64Array} Values
 *
 * @typedef {object} Tensor A packed tensor, decoded.
 * @property {string} name
 * @property {string} kind What the file stores, such as "int8" or "bfloat16".
 * @property {number[]} shape Of `values`.
 * @property {Values} values As stored. float16 and bfloat16 become float32, bool becomes bytes.
 * @property {Float32Array | null} scales Of each row, or of each group of `group` values of a row; null without scales.
 * @property {number} group How many values share a scale; 0 without scales.
 * @property {boolean} transposed Whether the weight is the transpose of what is stored.
 *
 * @typedef {object} Part One constant of a graph: which tensor it is made of, and where it goes.
 * @property {string} tensor
 * @property {"values" | "scales" | "weight"} take
 * @property {boolean} [transposed]
 * @property {"nibbles" | "halves"} [pack]
 * @property {number} at
 * @property {number} bytes
 *
 * @typedef {object} Parts What web/graph.json says.
 * @property {number} version
 * @property {number} seal
 * @property {string[]} files
 * @property {{ bytes: number, crc32: number }} graph
 * @property {{ name: string, bytes: number }} data
 * @property {Part[]} parts
 *
 * @typedef {object} Loaded A model that is ready to run.
 * @property {Uint8Array} graph
 * @property {{ path: string, data: Uint8Array }[]} externalData The session option of onnxruntime-web that gives the
 *     graph its weights.
 * @property {number} bytes How many bytes were downloaded.
 * @property {{ download: number, decode: number }} milliseconds
 */

/** What is wrong with a file, for people to read. */
export class PackedError extends Error {
    /** @override */
    name = "PackedError";
}

const VERSION = 1; // Of web/graph.json.
const TURN = 30; // Milliseconds of decoding before a page may do something else.
const HEAD = 24;
const KINDS = /** @type {const} */ ([
    ["int8", 1],
    ["float32", 4],
    ["float16", 2],
    ["bfloat16", 2],
    ["float64", 8],
    ["uint8", 1],
    ["int16", 2],
    ["int32", 4],
    ["int64", 8],
    ["bool", 1],
]);
// How many integers share a byte in codecs 1, 2 and 3, as digits of a number in this base.
const TUPLES = [null, { size: 2, base: 16 }, { size: 3, base: 6 }, { size: 4, base: 4 }];
// The most bytes of a tensor, and of one of its sections. Files of hf_compress stay far below the second.
const LARGEST_TENSOR = 2 ** 30;
/** The bits of infinity in bfloat16. Larger ones are negative or not numbers. */
const INFINITE = 0x7f80;
const LARGEST_SECTION = 2 ** 28;

const zstandard = new ZSTDDecoder();

/**
 * Opens a packed safetensors file: reads the heads of its tensors, and decodes nothing yet.
 *
 * @param {ArrayBuffer | Uint8Array} file
 * @returns {Promise<Map<string, Packed>>} The tensors by name.
 * @throws {PackedError} It is not a packed file, or it is damaged.
 */
export async function open(file) {
    await zstandard.init();
    const bytes = file instanceof Uint8Array ? file : new Uint8Array(file);
    const entries = header(bytes);
    return new Map(entries.map(([name, data]) => [name, new Packed(name, data)]));
}

/**
 * Decodes all tensors of a packed safetensors file.
 *
 * @param {ArrayBuffer | Uint8Array} file
 * @returns {Promise<Map<string, Tensor>>} The tensors by name.
 * @throws {PackedError} It is not a packed file, or it is damaged.
 */
export async function unpack(file) {
    const opened = await open(file);
    checkSeals(opened.values());
    return new Map([...opened].map(([name, packed]) => [name, packed.read()]));
}

/**
 * Returns the weight of a tensor in floating point: its values times their scales, in the order of its own shape.
 *
 * @param {Tensor} tensor
 * @returns {Float32Array} Transposed if the tensor is.
 */
export function weightOf(tensor) {
    const floats = scaled(tensor);
    return tensor.transposed ? transpose(floats, tensor.shape) : floats;
}

/**
 * Loads a model that hf_compress wrote with the format `web`: downloads its packed file and its graph, and makes the
 * weights of the graph.
 *
 * @param {string | URL} folder The address of the folder with model.safetensors and web/.
 * @param {object} [options]
 * @param {(url: URL) => Promise<Response>} [options.fetch] How to download; by default `fetch` itself.
 * @returns {Promise<Loaded>}
 * @throws {PackedError} A file is missing or damaged, or the files do not belong together.
 */
export async function load(folder, options = {}) {
    const page = typeof location === "undefined" ? undefined : location.href;
    const begin = performance.now();
    const base = new URL(folder, page);
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    const get = async (/** @type {string} */ path) => {
        const response = await (options.fetch ?? ((url) => fetch(url)))(new URL(path, base)).catch((error) => {
            throw new PackedError(`${path} cannot be downloaded: ${error.message}`);
        });
        if (!response.ok) throw new PackedError(`${path} cannot be downloaded: status ${response.status}`);
        return new Uint8Array(await response.arrayBuffer());
    };
    const [list, graph] = await Promise.all([get("web/graph.json"), get("web/graph.onnx")]);
    const parts = readParts(list);
    if (graph.length !== parts.graph.bytes || crc32(graph) !== parts.graph.crc32)
        throw new PackedError("web/graph.onnx is not the graph that web/graph.json describes: download both again");
    const files = await Promise.all(parts.files.map((name) => get(encodeURIComponent(name))));
    const arrived = performance.now();
    const opened = await Promise.all(files.map(open));
    const data = await makeData(parts, new Map(opened.flatMap((tensors) => [...tensors])));
    return {
        graph,
        externalData: [{ path: parts.data.name, data }],
        bytes: [list, graph, ...files].reduce((sum, { length }) => sum + length, 0),
        milliseconds: { download: arrived - begin, decode: performance.now() - arrived },
    };
}

/**
 * Makes the constants of a graph, as its runtime reads them, from packed tensors. It rests between tensors, so that a
 * page answers keys meanwhile.
 *
 * @param {Parts} parts What web/graph.json says.
 * @param {Map<string, Packed>} tensors
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {PackedError} A tensor is missing, damaged or of another model.
 */
export async function makeData(parts, tensors) {
    checkSeals(tensors.values(), parts.seal);
    const data = new Uint8Array(parts.data.bytes);
    /** @type {Tensor | undefined} */
    let tensor;
    let rested = performance.now();
    for (const part of parts.parts) {
        if (performance.now() - rested > TURN) {
            await rest();
            rested = performance.now();
        }
        const packed = tensors.get(part.tensor);
        if (!packed) throw new PackedError(`${part.tensor} is missing: the files are not those of one model`);
        if (tensor?.name !== part.tensor) tensor = packed.read();
        const made = constant(part, tensor);
        if (made.length !== part.bytes || part.at + part.bytes > data.length)
            throw new PackedError(`${part.tensor} does not fit its place in the graph: the files are not of one model`);
        data.set(made, part.at);
    }
    return data;
}

/**
 * Reads web/graph.json.
 *
 * @param {Uint8Array} bytes
 * @returns {Parts}
 * @throws {PackedError} It is damaged, or of another version.
 */
export function readParts(bytes) {
    const found = json(bytes, "web/graph.json");
    if (found?.version !== VERSION)
        throw new PackedError(`web/graph.json must have version ${VERSION}, this has ${found?.version}: write it again`);
    const sizes = [found.seal, found.graph?.bytes, found.graph?.crc32, found.data?.bytes];
    const lists = Array.isArray(found.files) && Array.isArray(found.parts) && typeof found.data?.name === "string";
    const fits = (/** @type {any} */ part) =>
        typeof part?.tensor === "string" &&
        ["values", "scales", "weight"].includes(part.take) &&
        [undefined, "nibbles", "halves"].includes(part.pack) &&
        isCount(part.at) &&
        isCount(part.bytes);
    if (!lists || !sizes.every(isCount) || found.data.bytes > 2 * LARGEST_TENSOR || !found.parts.every(fits))
        throw new PackedError("web/graph.json has fields that no version writes: it is damaged");
    return found;
}

/** Waits until the other things that a page has to do are done. Timers would be slow in a page behind others. */
function rest() {
    const { port1, port2 } = new MessageChannel();
    return new Promise((resolve) => {
        port1.onmessage = () => {
            port1.close();
            resolve(undefined);
        };
        port2.postMessage(null);
    });
}

/** One tensor of a packed file: its head is read, its values wait for `read`. */
export class Packed {
    /**
     * @param {string} name
     * @param {Uint8Array} data All bytes of the tensor.
     * @throws {PackedError} The head is not one of this version.
     */
    constructor(name, data) {
        const fail = (/** @type {string} */ why) => new PackedError(`${printable(name)}: ${why}`);
        const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
        const magic = String.fromCharCode(...data.subarray(0, 4));
        if (data.length < HEAD) throw fail(`a packed tensor has at least ${HEAD} bytes, this has ${data.length}`);
        if (magic !== "HFC5") throw fail(`a packed tensor begins with HFC5, this with ${printable(magic)}`);
        const [kind, dimensions, transposed, order] = data.subarray(12, 16);
        const known = KINDS[kind];
        if (!known || transposed > 1 || order > 2 || data.length < HEAD + 4 * dimensions)
            throw fail("its head has values that no version writes: it is damaged");
        this.name = name;
        this.data = data;
        this.checksum = view.getUint32(4, true);
        this.seal = view.getUint32(8, true);
        this.kind = known[0];
        this.width = known[1];
        this.transposed = transposed === 1;
        this.order = order;
        this.group = view.getUint32(16, true);
        this.step = view.getUint32(20, true);
        this.shape = Array.from({ length: dimensions }, (_, axis) => view.getUint32(HEAD + 4 * axis, true));
        this.count = this.shape.reduce((product, size) => product * size, 1);
        this.columns = this.shape.slice(1).reduce((product, size) => product * size, 1);
        const { group, step, count, columns } = this;
        const scaled = this.kind === "int8" && dimensions > 1 && 0 < group && group <= columns && step % columns === 0;
        const ordered = order === 0 || (scaled && columns % group === 0);
        if (step < 1 || (group && !scaled) || (this.transposed && dimensions !== 2) || !ordered)
            throw fail("its head contradicts itself: it is damaged");
        if (count * this.width > LARGEST_TENSOR)
            throw fail(`it claims ${count} values; more than ${LARGEST_TENSOR} bytes are not read`);
    }

    /**
     * Decodes the tensor.
     *
     * @returns {Tensor}
     * @throws {PackedError} It is damaged.
     */
    read() {
        try {
            return this.#read();
        } catch (error) {
            if (error instanceof PackedError || error instanceof RangeError)
                throw new PackedError(`${printable(this.name)}: ${error.message}`);
            throw error;
        }
    }

    #read() {
        const { name, kind, width, shape, group, transposed, count, step, columns } = this;
        if (crc32(this.data.subarray(12), crc32(new TextEncoder().encode(name))) !== this.checksum)
            throw new PackedError("its checksum does not match: the file is damaged, download it again");
        const sections = new Sections(this.data.subarray(HEAD + 4 * shape.length));
        let scales = null;
        let places = null;
        if (group) {
            const halves = new Uint16Array(sections.planes(shape[0] * Math.ceil(columns / group), 2).buffer);
            if (halves.some((half) => half === 0 || half >= INFINITE))
                throw new PackedError("a scale is not a positive number: it is damaged");
            scales = upperHalves(halves);
            if (this.order) places = inOrder(this.order === 2 ? sections.bytes(halves.length) : halves);
        }
        const words = new Uint8Array(count * width);
        for (let begin = 0; begin < count; begin += step) {
            const size = Math.min(step, count - begin);
            const values = sections.chunk(size, width);
            if (places) scatter(values, words, places.subarray(begin / group), group);
            else words.set(values, begin * width);
        }
        sections.finish();
        return { name, kind, shape, values: valuesOf(words.buffer, kind), scales, group, transposed };
    }
}

/** Sections of a packed tensor, read in order. */
class Sections {
    /** @param {Uint8Array} data */
    constructor(data) {
        this.data = data;
        this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
        this.at = 0;
    }

    /** @param {number} size */
    #take(size) {
        if (size > this.data.length - this.at) throw new PackedError("it ends before its sections do: it is truncated");
        this.at += size;
        return this.at - size;
    }

    #uint32() {
        return this.view.getUint32(this.#take(4), true);
    }

    /** @param {number} most */
    #number(most) {
        const value = this.#uint32();
        if (value > most) throw new PackedError(`${most} values cannot have ${value} escapes or gaps: it is damaged`);
        return value;
    }

    /**
     * Returns the content of the next section, which has `expected` bytes.
     *
     * @param {number} expected
     * @returns {Uint8Array}
     */
    bytes(expected) {
        const length = this.#uint32();
        const method = this.data[this.#take(1)];
        const begin = this.#take(length);
        const part = this.data.subarray(begin, begin + length);
        if (method > 1) throw new PackedError(`a section has method ${method}: it is damaged`);
        if (expected > LARGEST_SECTION) throw new PackedError(`a section of ${expected} bytes is not read`);
        if ((method ? frameSize(part) : length) !== expected)
            throw new PackedError(`a section has another size than its ${expected} bytes: it is damaged`);
        return method && expected ? decompress(part, expected) : part;
    }

    /**
     * Returns `count` words of `width` bytes, the bytes of each together.
     *
     * @param {number} count
     * @param {number} width
     */
    planes(count, width) {
        if (width === 1) return this.bytes(count);
        const words = new Uint8Array(count * width);
        for (let plane = 0; plane < width; plane++) {
            const bytes = this.bytes(count);
            for (let index = 0, at = plane; index < count; index++, at += width) words[at] = bytes[index];
        }
        return words;
    }

    /**
     * Returns the `count` words of `width` bytes of the next chunk.
     *
     * @param {number} count
     * @param {number} width
     * @returns {Uint8Array}
     */
    chunk(count, width) {
        const length = this.#uint32();
        const codec = this.data[this.#take(1)];
        const end = this.at + length;
        if (codec > 11) throw new PackedError(`codec ${codec} is not known: a newer version wrote it`);
        const words = codec < 4 ? this.#values(count, width, codec) : this.#scattered(count, width, codec);
        if (this.at !== end) throw new PackedError("a chunk has another length than it says: it is damaged");
        return words;
    }

    /**
     * @param {number} count
     * @param {number} width
     * @param {number} codec
     */
    #scattered(count, width, codec) {
        const places = codec < 8 ? maskPlaces(this.bytes(Math.ceil(count / 8)), count) : this.#gapPlaces(count);
        const words = new Uint8Array(count * width);
        scatter(this.#values(places.length, width, codec % 4), words, places, width);
        return words;
    }

    /** @param {number} count */
    #gapPlaces(count) {
        const gaps = this.bytes(this.#number(count));
        const places = new Uint32Array(gaps.length);
        let found = 0;
        let place = 0;
        for (const gap of gaps) {
            place += gap;
            if (gap === 255) continue;
            if (place >= count) throw new PackedError(`a value is at place ${place} of ${count}: it is damaged`);
            places[found++] = place++;
        }
        return places.subarray(0, found);
    }

    /**
     * @param {number} count
     * @param {number} width
     * @param {number} codec Below 4.
     */
    #values(count, width, codec) {
        const tuple = TUPLES[codec];
        if (!tuple) return this.planes(count, width);
        if (width > 1) throw new PackedError(`values of ${width} bytes cannot share bytes: it is damaged`);
        const escapes = this.#number(count);
        const values = digits(this.bytes(Math.ceil(count / tuple.size)), codec, count);
        const escaped = this.bytes(escapes);
        const mark = tuple.base / 2;
        let used = 0;
        for (let index = 0; index < count; index++)
            if (values[index] === mark) values[index] = escaped[used++];
        if (used !== escapes) throw new PackedError(`${used} values are escaped and ${escapes} stored: it is damaged`);
        return values;
    }

    finish() {
        const left = this.data.length - this.at;
        if (left) throw new PackedError(`${left} bytes follow the last chunk: it is damaged`);
    }
}

/**
 * Returns the entries of a safetensors file.
 *
 * @param {Uint8Array} file
 * @returns {[string, Uint8Array][]}
 */
function header(file) {
    const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
    const length = file.length < 8 ? Infinity : Number(view.getBigUint64(0, true));
    if (length > file.length - 8) throw new PackedError("this is not a whole safetensors file: download it again");
    const found = json(file.subarray(8, 8 + length), "the head of the safetensors file");
    if (typeof found !== "object" || found === null) throw new PackedError("the head of the safetensors file is damaged");
    const data = file.subarray(8 + length);
    return Object.entries(found)
        .filter(([name]) => name !== "__metadata__")
        .map(([name, entry]) => {
            const [begin, end] = Array.isArray(entry?.data_offsets) ? entry.data_offsets : [];
            if (!isCount(begin) || !isCount(end) || begin > end || end > data.length)
                throw new PackedError(`${printable(name)} lies outside of the file: it is truncated or damaged`);
            if (entry.dtype !== "U8")
                throw new PackedError(`${printable(name)} is not packed: this is not a file of hf_compress`);
            return [name, data.subarray(begin, end)];
        });
}

/**
 * Refuses tensors that were not written together.
 *
 * @param {Iterable<Packed>} tensors
 * @param {number} [seal] Theirs, if it is known.
 */
function checkSeals(tensors, seal) {
    for (const packed of tensors) {
        seal ??= packed.seal;
        if (packed.seal !== seal)
            throw new PackedError(`${printable(packed.name)} belongs to another model: download all files again`);
    }
}

/**
 * @param {Part} part
 * @param {Tensor} tensor
 * @returns {Uint8Array}
 */
function constant(part, tensor) {
    let shape = tensor.shape;
    /** @type {Values} */
    let values = tensor.values instanceof Float64Array ? new Float32Array(tensor.values) : tensor.values;
    if (part.take !== "values") {
        if (!tensor.scales) throw new PackedError(`${printable(tensor.name)} has no scales: the files are not of one model`);
        values = part.take === "scales" ? tensor.scales : scaled(tensor);
        if (part.take === "scales") shape = [shape[0], shape[0] ? values.length / shape[0] : 0];
    }
    if (part.transposed) {
        if (shape.length < 2) throw new PackedError(`${printable(tensor.name)} has no transpose`);
        const columns = shape.slice(1).reduce((product, size) => product * size, 1);
        values = transpose(values, [shape[0], columns]);
        shape = [columns, shape[0]];
    }
    if (!part.pack) return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    if (!(values instanceof Int8Array) || shape.length !== 2)
        throw new PackedError(`${printable(tensor.name)} has no integers that share bytes`);
    return part.pack === "nibbles" ? nibbles(values) : halves(values, shape[1]);
}

/**
 * @param {Tensor} tensor
 * @returns {Float32Array}
 */
function scaled({ values, scales, shape, group }) {
    if (!scales) return values instanceof Float32Array ? values : Float32Array.from(/** @type {any} */ (values), Number);
    const products = new Float32Array(values.length);
    const rows = shape[0];
    const columns = rows ? values.length / rows : 0;
    const groups = Math.ceil(columns / group);
    for (let row = 0, at = 0; row < rows; row++)
        for (let column = 0; column < columns; column++, at++)
            products[at] = Number(values[at]) * scales[row * groups + Math.floor(column / group)];
    return products;
}

/**
 * @template {Values} T
 * @param {T} values
 * @param {number[]} shape
 * @returns {T}
 */
function transpose(values, [rows, columns]) {
    const turned = new /** @type {any} */ (values.constructor)(values.length);
    const block = 64; // So that rows and columns of a block stay in the cache.
    for (let top = 0; top < rows; top += block)
        for (let left = 0; left < columns; left += block)
            for (let row = top; row < Math.min(top + block, rows); row++)
                for (let column = left; column < Math.min(left + block, columns); column++)
                    turned[column * rows + row] = values[row * columns + column];
    return turned;
}

/** @param {Int8Array} values */
function nibbles(values) {
    const bytes = new Uint8Array(Math.ceil(values.length / 2));
    for (let index = 0; index < values.length; index++) bytes[index >> 1] |= (values[index] & 15) << (4 * (index & 1));
    return bytes;
}

/**
 * @param {Int8Array} values
 * @param {number} columns
 */
function halves(values, columns) {
    const half = Math.ceil(columns / 2);
    const bytes = new Uint8Array(columns ? (values.length / columns) * half : 0);
    for (let index = 0; index < values.length; index++) {
        const column = index % columns;
        const at = Math.floor(index / columns) * half + (column % half);
        bytes[at] |= (values[index] + 8) << (column < half ? 0 : 4);
    }
    return bytes;
}

/**
 * Returns the values that share bytes, as the bytes of signed numbers. Escaped ones are half of the base.
 *
 * @param {Uint8Array} tuples
 * @param {number} codec
 * @param {number} count
 */
function digits(tuples, codec, count) {
    const { size, table } = DIGITS[codec];
    const values = new Uint8Array(tuples.length * size);
    const whole = size === 2 ? new Uint16Array(values.buffer) : size === 4 ? new Uint32Array(values.buffer) : null;
    if (whole) for (let index = 0; index < tuples.length; index++) whole[index] = table[tuples[index]];
    else
        for (let index = 0, at = 0; index < tuples.length; index++) {
            const word = table[tuples[index]];
            values[at++] = word;
            values[at++] = word >> 8;
            values[at++] = word >> 16;
        }
    return values.subarray(0, count);
}

// For each byte its digits as the bytes of one little-endian word.
const DIGITS = TUPLES.map((tuple) => {
    const { size, base } = tuple ?? { size: 0, base: 0 };
    const table = new Uint32Array(256);
    for (let byte = 0; byte < 256; byte++)
        for (let place = 0, rest = byte; place < size; place++, rest = Math.floor(rest / base))
            table[byte] |= (((rest % base) - (base / 2 - 1)) & 255) << (8 * place);
    return { size, table };
});

/**
 * Returns the places of the bits that are 1.
 *
 * @param {Uint8Array} bits
 * @param {number} count
 */
function maskPlaces(bits, count) {
    const places = new Uint32Array(count);
    let found = 0;
    for (let place = 0; place < count; place++) if ((bits[place >> 3] >> (place & 7)) & 1) places[found++] = place;
    return places.subarray(0, found);
}

/**
 * Puts runs of `size` bytes into their places, each place counted in runs.
 *
 * @param {Uint8Array} runs
 * @param {Uint8Array} target
 * @param {Uint32Array} places
 * @param {number} size
 */
function scatter(runs, target, places, size) {
    if (size === 1) for (let index = 0; index < runs.length; index++) target[places[index]] = runs[index];
    else
        for (let begin = 0, index = 0; begin < runs.length; begin += size, index++)
            target.set(runs.subarray(begin, begin + size), places[index] * size);
}

/**
 * Returns the numbers of the runs, the run with the smallest key first, equal ones in their own order.
 *
 * @param {Uint8Array | Uint16Array} keys
 */
function inOrder(keys) {
    const order = Uint32Array.from(keys, (_, index) => index);
    return order.sort((one, other) => keys[one] - keys[other] || one - other);
}

/**
 * Returns the float32 numbers whose upper halves are given: bfloat16 as float32.
 *
 * @param {Uint16Array} halves
 */
function upperHalves(halves) {
    return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
}

/** @param {number} half The bits of a float16. */
function fromFloat16(half) {
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    if (exponent === 31 && fraction) return NaN;
    const size = exponent === 31 ? Infinity : exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return half >> 15 ? -size : size;
}

/**
 * @param {ArrayBuffer} buffer
 * @param {(typeof KINDS)[number][0]} kind
 * @returns {Values}
 */
function valuesOf(buffer, kind) {
    switch (kind) {
        case "int8":
            return new Int8Array(buffer);
        case "float32":
            return new Float32Array(buffer);
        case "float16":
            return Float32Array.from(new Uint16Array(buffer), fromFloat16);
        case "bfloat16":
            return upperHalves(new Uint16Array(buffer));
        case "float64":
            return new Float64Array(buffer);
        case "int16":
            return new Int16Array(buffer);
        case "int32":
            return new Int32Array(buffer);
        case "int64":
            return new BigInt64Array(buffer);
        default:
            return new Uint8Array(buffer);
    }
}

/**
 * Returns the size of the content that a zstandard frame states (RFC 8878, 3.1.1.1), -1 if it states none.
 *
 * @param {Uint8Array} frame
 */
function frameSize(frame) {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
    if (frame.length < 5 || view.getUint32(0, true) !== 0xfd2fb528) return -1;
    const descriptor = frame[4];
    const single = (descriptor >> 5) & 1;
    const flag = descriptor >> 6;
    const at = 5 + (single ? 0 : 1) + [0, 1, 2, 4][descriptor & 3];
    const size = flag ? 1 << flag : single;
    if (!size || frame.length < at + size) return -1;
    if (size === 1) return view.getUint8(at);
    if (size === 2) return view.getUint16(at, true) + 256;
    return size === 4 ? view.getUint32(at, true) : Number(view.getBigUint64(at, true));
}

/**
 * @param {Uint8Array} frame
 * @param {number} expected
 */
function decompress(frame, expected) {
    let content;
    try {
        content = zstandard.decode(frame, expected);
    } catch (error) {
        throw new PackedError(`a section does not decompress: ${error}`);
    }
    if (content.length !== expected) throw new PackedError("a section does not decompress: it is damaged");
    return content;
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
    for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
    return byte;
});

/**
 * Returns the CRC-32 of bytes, as zlib computes it.
 *
 * @param {Uint8Array} bytes
 * @param {number} [before] That of the bytes before these.
 */
function crc32(bytes, before = 0) {
    let value = ~before;
    for (let index = 0; index < bytes.length; index++) value = (value >>> 8) ^ CRC[(value ^ bytes[index]) & 255];
    return ~value >>> 0;
}

/**
 * @param {Uint8Array} bytes
 * @param {string} what
 * @returns {any}
 */
function json(bytes, what) {
    try {
        return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    } catch {
        throw new PackedError(`${what} is not JSON: it is damaged`);
    }
}

/** @param {unknown} value */
function isCount(value) {
    return Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;
}

/** @param {string} name */
function printable(name) {
    return name.replace(/[^\x20-\x7e]/g, "?");
}
