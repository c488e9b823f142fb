"""examples/browser/search.html: vectors and ranks as in Python, search while typing, errors in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from hf_compress import compress, finish
from hf_compress.export.parity import load as load_model
from hf_compress.export.web_format import PATH, read_web
from hf_compress.models.sentences import around
from hf_compress.oneshot import quantize_once
from tests.browser.pieces import word_pieces
from tests.browser.site import Site
from tests.invariants.harness import PRUNE, QUANT, recipe

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer  # noqa: E402
from sentence_transformers.util import semantic_search  # noqa: E402

pytestmark = pytest.mark.slow
RUNTIMES = ("in_node", "in_chromium")
LONGEST = 24  # Tokens.
QUERIES = ["water damage at home", "feeling ill", "ein Fahrrad", "Lucía", ""]
UNUSUAL = ["", "an UPPER case Straße, naïve café 日本語 🙂", "word " * 60, "[MASK] [SEP] <b>&amp;"]
# What search.html shows. It is ready when all sentences are read.
SHOWN = """
const terms = () => Object.fromEntries(
    [...document.querySelectorAll("dt")].map((term) => [term.textContent, term.nextElementSibling.textContent]));
const rows = () => [...document.querySelectorAll("#found li")].map((row) =>
    [...row.querySelectorAll("span")].map((part) => part.textContent));
const shown = () => ({ state: document.body.dataset.state, problem: said("#problem"), status: said("#status"),
    facts: terms(), rows: rows() });
const field = document.querySelector("#query");
const list = document.querySelector("#found");
const type = (text) => { field.value = text; field.dispatchEvent(new InputEvent("input")); };
const answered = (text) => until(() => list.ariaLabel === `Sentences nearest to: ${text}`);
"""


@pytest.fixture(scope="module")
def sentences(site: Site) -> list[str]:
    """Those that the page makes up."""
    return list(site.in_node({"made": {"job": "sentences", "count": 1000, "seed": 1}})["made"])


@pytest.fixture(scope="module")
def embedder(site: Site, sentences: list[str]) -> Path:
    """A tiny embedder that `hf-compress quantize` compressed. Like MiniLM's, its tokenizer asks to cut and to pad."""
    tokenizer = word_pieces(sentences)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, max_position_embeddings=64, **sizes)
    plain, dense = site.folder / "plain", site.folder / "dense"
    BertModel(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    parts = [Transformer(str(plain), max_seq_length=LONGEST), Pooling(64, "mean"), Normalize()]
    library.SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(dense))
    (site.folder / "texts.txt").write_text("\n".join(sentences[:200]), "utf-8")
    quantize_once(dense, str(site.folder / "texts.txt"), site.folder / "embedder", budget_mb=0.2, formats=["web"])
    return site.folder / "embedder"


def in_python(folder: Path) -> Any:
    """The embedder, computing with the graph in ONNX Runtime, as its user's Python would."""
    model = library.SentenceTransformer(str(folder), device="cpu")
    return around(model, read_web(folder / PATH, load_model(folder)))


def copy_of(folder: Path, name: str, **files: Any) -> Path:
    """A copy in the site, whose JSON files (with __ for a slash) are updated."""
    copy = shutil.copytree(folder, folder.parent / "copies" / name)
    for file, changes in files.items():
        path = copy / f"{file.replace('__', '/')}.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return copy


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_vectors_and_ranks_are_those_of_python(runtime: str, site: Site, embedder: Path, sentences: list[str]) -> None:
    texts = [*sentences[:60], *UNUSUAL]
    job = {"job": "search", "path": "embedder/", "texts": texts, "queries": QUERIES, "top": 10}
    found = getattr(site, runtime)({"search": job})["search"]
    assert "crashed" not in found, found
    assert found["tokens"] == LONGEST
    model = in_python(embedder)
    for vectors, kind, expected in (
        ("vectors", texts, model.encode(texts)),
        ("asked", QUERIES, model.encode(QUERIES)),
    ):
        assert np.linalg.norm(found[vectors], axis=1) == pytest.approx(1, abs=1e-5)
        apart = np.abs(np.array(found[vectors]) - expected).max(1)
        assert apart.max() < 0.01, kind[int(apart.argmax())]
    hits = semantic_search(model.encode(QUERIES), model.encode(texts), top_k=10)
    own = semantic_search(torch.tensor(found["asked"]), torch.tensor(found["vectors"]), top_k=10)
    for answer, theirs, exact in zip(found["found"], hits, own, strict=True):
        assert [row["score"] for row in answer] == pytest.approx([hit["score"] for hit in theirs], abs=0.02)
        assert [row["sentence"] for row in answer] == [texts[hit["corpus_id"]] for hit in exact]
        assert len({row["sentence"] for row in answer}) == 10


def test_every_pooling_and_prompt_is_that_of_python(site: Site, embedder: Path, sentences: list[str]) -> None:
    texts, jobs, expected = [*sentences[:8], *UNUSUAL], {}, {}
    prompts = {"prompts": {"query": "a student ", "document": "my sister "}}
    for mode in ("cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"):
        changes = {"pooling_mode": mode, "pooling_mode_mean_tokens": False}
        copy = copy_of(embedder, mode, **{"1_Pooling__config": changes, "config_sentence_transformers": prompts})
        jobs[mode] = {"job": "search", "path": f"copies/{mode}/", "texts": texts, "queries": QUERIES, "top": 3}
        model = in_python(copy)
        vectors = model.encode_document(texts), model.encode_query(QUERIES)
        expected[mode] = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in vectors]
    found = site.in_node(jobs)
    for mode, (vectors, asked) in expected.items():
        assert "crashed" not in found[mode], found[mode]
        np.testing.assert_allclose(found[mode]["vectors"], vectors, atol=0.01)
        np.testing.assert_allclose(found[mode]["asked"], asked, atol=0.01)


def test_queries_go_before_sentences_the_newest_first(site: Site) -> None:
    found = site.in_node({"order": {"job": "order"}})["order"]
    # The first batch has begun; of the queries that come meanwhile only the last is asked, before the second batch.
    assert found["log"][:4] == ["batch 8", "abc", "batch 8", "batch 4"]
    assert found["answers"][:2] == [None, None]
    assert found["answers"][2] | {"milliseconds": 0} == {
        "found": [{"sentence": "xxx", "score": pytest.approx(1)}],
        "of": 8,
        "milliseconds": 0,
    }
    assert (found["first"], found["second"]) == (True, False)  # Others took the place of the second.
    assert (found["third"], found["refused"]) == ("bad text", "bad text")
    # It works on after errors.
    read, answer, size = found["last"]
    assert read and size == 2 and answer["found"][0]["sentence"] == "zz"


def test_the_page_finds_sentences_while_they_are_typed(site: Site, embedder: Path, sentences: list[str]) -> None:
    script = """
await until(() => !document.querySelector("#use").disabled);
type("the night");
await answered("the night");
const early = shown();
await until(() => document.body.dataset.state);
const text = "water damage at home";
for (let end = 1; end <= text.length; end++) { type(text.slice(0, end)); await pause(5); }
await answered(text);
const late = shown();
list.querySelector("button").click();
await answered(late.rows[0][0]);
const alike = shown();
type("");
await until(() => !list.children.length);
document.dispatchEvent(new KeyboardEvent("keydown", { key: "/" }));
document.querySelector("#measure").click();
await until(() => document.body.dataset.measured);
await send({ early, late, alike, focused: document.activeElement.id, measured: shown().facts, workers });
"""
    counted = """<script>
const workers = [];
window.Worker = class extends Worker {
    constructor(address, options) { super(address, options); workers.push(options?.name); }
};
</script>"""
    shown = site.watch("search.html", SHOWN + script, "model=embedder", before=counted)
    assert shown["workers"] == ["ort-wasm-proxy-worker"]  # The model does not compute where keys are heard.
    early, late, alike = (shown[name] for name in ("early", "late", "alike"))
    assert not early["problem"] and not late["problem"]
    # The first query is answered before all sentences are read.
    assert "state" not in early and early["status"] == "Reading 1,000 sentences. You can search already."
    assert late["state"] == "ready" and late["status"] == "1,000 sentences are ready."
    model = in_python(embedder)
    hits = semantic_search(model.encode("water damage at home"), model.encode(sentences), top_k=10)[0]
    assert len(late["rows"]) == 10
    for (_, score), hit in zip(late["rows"], hits, strict=True):
        assert float(score) == pytest.approx(hit["score"], abs=0.02)
    assert late["rows"][0][0] in {sentences[hit["corpus_id"]] for hit in hits[:3]}
    assert alike["rows"][0] == [late["rows"][0][0], "1.000"]
    assert shown["focused"] == "query"
    # Fewer queries were asked than keys pressed: a pause is waited for, and waiting queries are dropped.
    asked = int(late["facts"]["A query, median"].split(": ")[1].split()[0])
    assert 0 < asked < 15
    assert "ms" in shown["measured"]["A query, median"] and "1,000 sentences" in shown["measured"]["A query, median"]
    files = [embedder / "model.safetensors", embedder / PATH, (embedder / PATH).with_suffix(".json")]
    assert late["facts"]["Download: weights and graph"] == f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB"
    runtime = site.folder / "node_modules" / "onnxruntime-web" / "dist" / "ort-wasm-simd-threaded.wasm"
    assert late["facts"]["Download: runtime, for all models"] == f"{runtime.stat().st_size / 1e6:.2f} MB"


def test_the_page_reads_texts_of_its_user(site: Site, embedder: Path) -> None:
    script = """
await until(() => !document.querySelector("#use").disabled);
const own = document.querySelector("#own");
const ready = () => document.body.dataset.state === "ready";
const read = (count) => until(() => said("#status") === `${count} sentences are ready.` && ready());
own.value = "\\n  One line. \\r\\nAnother line.\\n\\nOne line.\\n";
type("line");
document.querySelector("#use").click();  // In place of those that are being read.
await read(2);
const pasted = shown();
const drop = (bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "own.txt"));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
};
drop("Uno\\nDos\\nTres");
await read(3);
const dropped = { ...shown(), own: own.value };
const problems = [];
const numbers = Array.from({ length: 20001 }, (_, at) => at).join("\\n");
for (const bytes of [Uint8Array.of(255, 254, 0), "\\n \\n", "a".repeat(9e6), numbers]) {
    document.querySelector("#problem").textContent = "";
    drop(bytes);
    await until(() => said("#problem"));
    problems.push(said("#problem"));
}
await send({ pasted, dropped, problems, after: shown() });
"""
    found = site.watch("search.html", SHOWN + script, "model=embedder")
    assert sorted(text for text, _ in found["pasted"]["rows"]) == ["Another line.", "One line."]
    assert found["dropped"]["own"] == "Uno\nDos\nTres" and len(found["dropped"]["rows"]) == 3
    encoding, empty, large, many = found["problems"]
    assert encoding == "own.txt is not a text in UTF-8. Save it as plain text first."
    assert empty == "There is no line with words. Give one sentence per line."
    assert large == "A text file has at most 8.00 MB here; own.txt has 9.00 MB."
    assert many == "At most 20,000 lines are read here. Give fewer."
    assert found["after"]["state"] == "ready" and len(found["after"]["rows"]) == 3


def test_the_page_says_what_is_wrong(site: Site, embedder: Path, folder: Path) -> None:
    def damaged(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        weights["embeddings.word_embeddings.weight"][-9] ^= 1
        save_file(weights, copy / "model.safetensors")

    def cut(copy: Path) -> None:
        (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text("utf-8")[:-9], "utf-8")

    def missing(copy: Path) -> None:
        shutil.rmtree(copy / "web")

    def dense(copy: Path) -> None:
        modules = json.loads((copy / "modules.json").read_text("utf-8"))
        modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
        (copy / "modules.json").write_text(json.dumps(modules), "utf-8")

    def several(copy: Path) -> None:
        (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["cls", "max"]}', "utf-8")

    wrong: dict[Callable[[Path], None], str] = {
        damaged: "its checksum does not match: the file is damaged, download it again",
        cut: "tokenizer.json is not JSON: it is damaged",
        missing: "web/graph.json cannot be downloaded: status 404",
        dense: "modules.json names a part Dense, which this page cannot compute",
        several: "1_Pooling/config.json says pooling cls + max; one of mean, ",
    }
    failed = "await until(() => document.body.dataset.state); await send(shown());"
    cases = {"model": "this model classifies texts: take an embedding model"}
    for change, words in wrong.items():
        change(copy_of(embedder, change.__name__))
        cases[f"copies/{change.__name__}"] = words
    for name, words in cases.items():
        shown = site.watch("search.html", SHOWN + failed, f"model={name}")
        assert words in shown["problem"] and shown["problem"].endswith("says how to make this folder."), shown
        assert shown["state"] == "failed" and not shown["status"]
    # What goes wrong outside of the folder.
    without = "<script>delete globalThis.WebAssembly;</script>"
    assert "WebAssembly is switched off" in site.watch("search.html", SHOWN + failed, before=without)["problem"]
    (site.folder / "tokenizers").mkdir()
    moved = '<base href="tokenizers/" />'  # No package is found from there.
    shown = site.watch("search.html", SHOWN + failed, before=moved)
    assert shown["problem"].startswith("The packages of this page are missing: run `npm install")


def test_the_folder_of_a_training_is_read_as_well(site: Site, sentences: list[str]) -> None:
    from tests.sentence_bench import Bench

    tokenizer = word_pieces(sentences)
    bench = Bench(site.folder / "training", tokenizer, sentences[:32])
    start = bench.folder_of("start", BertModel, vocab_size=len(tokenizer), num_hidden_layers=1)
    evaluator = EmbeddingSimilarityEvaluator(*bench.texts, list(range(16)), name="dev")
    run = bench.trainer("run", library.SentenceTransformer(start, device="cpu"), evaluator=evaluator)
    compress(run, recipe((PRUNE, QUANT))).train()
    assert finish(run, formats=["web"])
    jobs = {
        "run": {"job": "search", "path": "training/run/compressed/", "texts": sentences[:9], "queries": [], "top": 3}
    }
    found = site.in_node(jobs)["run"]
    assert "crashed" not in found, found
    expected = in_python(bench.folder / "run" / "compressed").encode(sentences[:9], normalize_embeddings=True)
    np.testing.assert_allclose(found["vectors"], expected, atol=0.01)
