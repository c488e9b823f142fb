"""examples/browser/index.html answers with a classifier or an encoder, and says what is wrong."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hf_compress.export.formats import write_formats
from hf_compress.export.parity import load as load_model
from hf_compress.export.web_format import PATH, read_web
from tests.browser.pieces import word_pieces
from tests.browser.site import Site
from tests.quantized import quantized

pytestmark = pytest.mark.slow
# What index.html shows once it is ready.
SHOWN = """
await until(() => document.body.dataset.state);
const cells = (row) => [...row.cells].map((cell) => cell.textContent);
const rows = (id) => [...document.querySelectorAll(`#${id} tr`)].map(cells);
const { state } = document.body.dataset;
await send({ state, problem: said("#problem"), answers: rows("answers"), facts: rows("facts") });
"""


def test_the_page_classifies_texts_and_says_what_it_cost(site: Site, folder: Path) -> None:
    shown = site.watch("index.html", SHOWN)
    assert shown["state"] == "ready" and not shown["problem"]
    model, tokenizer = read_web(folder / PATH, load_model(folder)), PreTrainedTokenizerFast.from_pretrained(folder)
    assert len(shown["answers"]) == 3
    for text, answer, time in shown["answers"]:
        shares = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        label, share, _ = answer.split()
        assert label == ["bad", "good"][int(shares.argmax())]
        assert abs(float(share) / 100 - float(shares.max())) < 0.02
        assert time.endswith(" ms")
    bytes_shown = dict(shown["facts"])["Weights and graph, downloaded"]
    files = [folder / "model.safetensors", folder / PATH, (folder / PATH).with_suffix(".json")]
    assert bytes_shown == f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB"


def test_the_page_compares_texts_by_an_encoder(site: Site) -> None:
    torch.manual_seed(0)
    tokenizer = word_pieces()
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    folder = quantized(model, site.folder / "encoder", "int8")
    tokenizer.save_pretrained(folder)
    write_formats(folder, ["web"])
    shown = site.watch("index.html", SHOWN, "model=encoder")
    assert shown["state"] == "ready", shown["problem"]
    encoder = read_web(folder / PATH, load_model(folder))
    texts = [text for text, _, _ in shown["answers"]]
    means = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in texts]
    for (_, said, _), mean in zip(shown["answers"], means, strict=True):
        expected = float(torch.cosine_similarity(means[0], mean))
        assert abs(float(said.removeprefix("similarity to the first: ")) - expected) < 0.02


def test_the_page_says_what_is_wrong_with_a_folder(site: Site, folder: Path) -> None:
    shown = site.watch("index.html", SHOWN, "model=nowhere")
    assert shown["state"] == "failed"
    assert "/nowhere/: " in shown["problem"] and "cannot be downloaded: status 404" in shown["problem"]
