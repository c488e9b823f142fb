/** What search.html shows and listens to. `search.html?model=URL` loads another folder than model/. */

import * as ort from "onnxruntime-web";
import { PackedError } from "./hf_compress.mjs";
import { Embedder } from "./embedder.mjs";
import { SearchIndex, lines } from "./search.mjs";
import { sentences } from "./sentences.mjs";

/** @import { Answer } from "./search.mjs" */

const SENTENCES = 1000;
const MOST = 20_000; // Lines of the user's own text.
const LARGEST = 8e6; // Bytes of a file of the user.
const PAUSE = 40; // Milliseconds without a key before a query is asked.
const EXAMPLES = ["water damage at home", "getting money from a bank", "feeling ill", "the night sky", "bad weather", "a new job"];

const parts = /** @param {string} id */ (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const query = /** @type {HTMLInputElement} */ (parts("query"));
const own = /** @type {HTMLTextAreaElement} */ (parts("own"));
const file = /** @type {HTMLInputElement} */ (parts("file"));
const progress = /** @type {HTMLProgressElement} */ (parts("progress"));
const buttons = /** @type {HTMLButtonElement[]} */ (["measure", "use", "choose"].map(parts));
const [status, amount, problem, found, facts] = ["status", "amount", "problem", "found", "facts"].map(parts);

const count = (/** @type {number} */ number) => number.toLocaleString("en");
const mega = (/** @type {number} */ bytes) => `${(bytes / 1e6).toFixed(2)} MB`;
const milli = (/** @type {number} */ time) => `${time.toFixed(1)} ms`;
const seconds = (/** @type {number} */ time) => `${(time / 1000).toFixed(1)} s`;

/**
 * Returns a new element.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} text
 */
function made(tag, text) {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
}

/** @type {SearchIndex} */
let index;
/** @type {number[]} */
let times = [];

/**
 * Shows a fact, in the place of an older one of the same name.
 *
 * @param {string} name
 * @param {string} value
 */
function say(name, value) {
    const known = [...facts.querySelectorAll("dt")].find((term) => term.textContent === name);
    if (known?.nextElementSibling) {
        known.nextElementSibling.textContent = value;
        return;
    }
    facts.append(made("dt", name), made("dd", value));
}

/** @param {unknown} error */
function fail(error) {
    problem.textContent = `${error instanceof Error ? error.message : error}`;
    if (!(error instanceof PackedError)) console.error(error);
}

/** Answers what is in the field. */
async function answer() {
    const text = query.value.trim();
    if (!text) return found.replaceChildren();
    const answered = await index.search(text);
    // Answers to what was typed before are shown too, until the field is empty.
    if (answered && query.value.trim()) show(text, answered);
}

/**
 * @param {string} text The query.
 * @param {Answer} answered
 */
function show(text, { found: best, of, milliseconds }) {
    times.push(milliseconds);
    const rows = best.map(({ sentence, score }) => {
        const button = made("button", "");
        button.title = "Search for sentences like this one";
        button.append(made("span", sentence), made("span", score.toFixed(3)));
        button.addEventListener("click", () => ask(sentence));
        const row = made("li", "");
        row.append(button);
        return row;
    });
    found.replaceChildren(...rows);
    found.ariaLabel = `Sentences nearest to: ${text}`;
    const sorted = times.toSorted((one, other) => one - other);
    const [least, middle, most] = [sorted[0], sorted[sorted.length >> 1], sorted[sorted.length - 1]];
    const range = `${milli(middle)} (${least.toFixed(1)} to ${most.toFixed(1)})`;
    say("A query, median", `${range}: ${count(times.length)} queries, ${count(of)} sentences`);
}

/** @param {string} text */
function ask(text) {
    query.value = text;
    query.focus();
    answer().catch(fail);
}

/**
 * Reads sentences, and says how far it is.
 *
 * @param {string[]} texts
 */
async function read(texts) {
    delete document.body.dataset.state;
    problem.textContent = "";
    times = [];
    const begin = performance.now();
    const told = (/** @type {number} */ done) => {
        progress.value = done / texts.length;
        amount.textContent = `${count(done)} read`;
    };
    status.textContent = `Reading ${count(texts.length)} sentences. You can search already.`;
    progress.hidden = false;
    told(0);
    if (!(await index.fill(texts, told))) return;
    progress.hidden = true;
    amount.textContent = "";
    status.textContent = `${count(texts.length)} sentences are ready.`;
    const took = performance.now() - begin;
    say("Sentences, read once", `${count(texts.length)} in ${seconds(took)}, ${milli(took / texts.length)} each`);
    await answer();
    document.body.dataset.state = "ready";
}

/** @param {string} text */
function readOwn(text) {
    const texts = lines(text, MOST + 1);
    if (!texts.length) fail("There is no line with words. Give one sentence per line.");
    else if (texts.length > MOST) fail(`At most ${count(MOST)} lines are read here. Give fewer.`);
    else read(texts).catch(fail);
}

/** @param {File | undefined | null} chosen */
async function readFile(chosen) {
    if (!chosen) return;
    if (chosen.size > LARGEST) return fail(`A text file has at most ${mega(LARGEST)} here; ${chosen.name} has ${mega(chosen.size)}.`);
    const bytes = await chosen.arrayBuffer();
    try {
        own.value = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
        return fail(`${chosen.name} is not a text in UTF-8. Save it as plain text first.`);
    }
    readOwn(own.value);
}

/** Types all examples, a letter at a time, and waits for each answer. */
async function measure() {
    for (const button of buttons) button.disabled = true;
    times = [];
    for (const text of EXAMPLES) {
        for (let end = 1; end <= text.length; end++) {
            query.value = text.slice(0, end);
            if (query.value.endsWith(" ")) continue;
            await answer();
        }
    }
    for (const button of buttons) button.disabled = false;
    document.body.dataset.measured = `${times.length}`;
}

function listen() {
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    query.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => answer().catch(fail), PAUSE);
    });
    for (const text of EXAMPLES) {
        const button = made("button", text);
        button.addEventListener("click", () => ask(text));
        parts("examples").append(button);
    }
    document.addEventListener("keydown", (event) => {
        const target = /** @type {HTMLElement} */ (event.target);
        if (event.key !== "/" || ["INPUT", "TEXTAREA"].includes(target.tagName)) return;
        event.preventDefault();
        query.select();
    });
    parts("measure").addEventListener("click", () => measure().catch(fail));
    parts("use").addEventListener("click", () => readOwn(own.value));
    parts("choose").addEventListener("click", () => file.click());
    file.addEventListener("change", () => readFile(file.files?.[0]));
    for (const [kind, over] of /** @type {const} */ ([["dragover", true], ["dragleave", false], ["drop", false]]))
        document.addEventListener(kind, (event) => {
            event.preventDefault();
            document.body.classList.toggle("over", over);
            if (kind === "drop") readFile(event.dataTransfer?.files[0]);
        });
    for (const button of buttons) button.disabled = false;
}

async function start() {
    const begin = performance.now();
    const folder = new URL(new URLSearchParams(location.search).get("model") ?? "model/", location.href);
    // The model computes in a worker of onnxruntime-web, so that the page answers keys while it does.
    ort.env.wasm.proxy = true;
    let arrived = 0;
    const runtime = new URL("ort-wasm-simd-threaded.wasm", import.meta.resolve("onnxruntime-web"));
    const embedder = await Embedder.load(folder, {
        fetch: async (url) => {
            const response = await fetch(url);
            if (!response.ok || !response.body) return response;
            const counted = new TransformStream({
                transform(chunk, controller) {
                    arrived += chunk.length;
                    amount.textContent = mega(arrived);
                    controller.enqueue(chunk);
                },
            });
            return new Response(response.body.pipeThrough(counted), response);
        },
    }).catch((error) => {
        if (error instanceof PackedError)
            throw new PackedError(`${error.message} (${folder.href}). docs/how-to/browser.md says how to make this folder.`);
        throw error;
    });
    const { weights, milliseconds } = embedder.model.facts;
    const asked = await fetch(runtime, { method: "HEAD" }).catch(() => null);
    const size = Number(asked?.headers.get("content-length"));
    say("Download: weights and graph", mega(weights));
    say("Download: tokenizer, settings", mega(embedder.model.files.bytes));
    say("Download: runtime, for all models", size ? mega(size) : "unknown");
    const { download, decode, session } = milliseconds;
    const steps = `download ${seconds(download)}, decoding ${seconds(decode)}, session ${seconds(session)}`;
    say("Model, ready after", `${seconds(performance.now() - begin)} (${steps})`);
    index = new SearchIndex(embedder);
    listen();
    answer().catch(fail); // What was typed while the model was loading.
    await read(sentences(SENTENCES));
}

try {
    await start();
} catch (error) {
    fail(error);
    status.textContent = amount.textContent = "";
    progress.hidden = true;
    document.body.dataset.state = "failed";
}
