"""The code on a card is valid, says what is in the folder, and runs as it stands."""

import ast
import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_compress.export import FORMATS, write_formats
from hf_compress.report.card import render
from hf_compress.report.facts import Example
from hf_compress.report.report import FormatFacts, Report
from hf_compress.report.snippets import snippets
from tests.golden.reports import golden_reports
from tests.quantized import quantized

REPORTS = golden_reports()


def titles(report: Report) -> list[str]:
    return [snippet.title.removeprefix("With ") for snippet in snippets(report)]


@pytest.mark.parametrize("name", REPORTS)
def test_python_on_a_card_is_valid(name: str) -> None:
    found = [snippet for snippet in snippets(REPORTS[name]) if snippet.language == "python"]
    assert found
    for snippet in found:
        ast.parse(snippet.code)
        assert snippet.code in render(REPORTS[name])


def test_each_runtime_has_code_only_if_its_files_are_there() -> None:
    assert titles(REPORTS["kd"]) == ["hf_compress"]
    assert titles(REPORTS["pushed"]) == [
        "hf_compress",
        "Transformers alone",
        "ONNX Runtime",
        "OpenVINO",
        "compressed-tensors",
        "transformers.js",
    ]


def test_the_browser_gets_its_weights_from_the_packed_file() -> None:
    pushed = REPORTS["pushed"]
    report = replace(pushed, formats={"web": FormatFacts(1, 0.0, {})})
    (snippet,) = [snippet for snippet in snippets(report) if snippet.language == "js"]
    assert 'load("https://huggingface.co/someone/minilm-sst2-small/resolve/main/")' in snippet.code
    assert f'model_file_name: "{FORMATS["web"].path.stem}"' in snippet.code and "{ externalData }" in snippet.code
    assert all(snippet.language == "python" for snippet in snippets(replace(report, pipeline_tag="multiple-choice")))


def test_all_code_names_the_repository_once_it_is_known() -> None:
    for snippet in snippets(REPORTS["pushed"]):
        assert snippet.code.count("someone/minilm-sst2-small") == 1
    local = replace(REPORTS["pushed"], hub_id=None)
    assert all("path/to/this/folder" in snippet.code for snippet in snippets(local))
    assert "Put the path of this folder" in render(local)
    assert "path/to" not in render(REPORTS["pushed"])


@pytest.mark.parametrize(
    "text", ['He said "no".', "it's", "a\\b", "two\nlines", "back`tick``s", "</code>", "ü é 日本"]
)
def test_an_example_survives_as_a_literal(text: str) -> None:
    report = replace(REPORTS["pushed"], example=Example([text], [{"label": "a", "score": 0.5}]))
    for snippet in snippets(report)[:3]:
        literals = [node.value for node in ast.walk(ast.parse(snippet.code)) if isinstance(node, ast.Constant)]
        assert text in literals


def test_the_measured_answer_stands_below_the_code() -> None:
    for name in ("kd", "tagging", "multi-label", "regression"):
        report = REPORTS[name]
        assert report.example is not None
        code = snippets(report)[0].code
        said = "\n".join(line[2:] for line in code.splitlines() if line.startswith("# "))
        answers = ast.literal_eval(said)
        assert (answers if isinstance(answers, list) else [answers]) == report.example.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A compressed classifier with its tokenizer and every format."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    labels: dict[str, Any] = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tiny_tokenizer), **sizes, **labels))
    path = quantized(model, tmp_path_factory.mktemp("run") / "compressed", "int8-weight")
    tiny_tokenizer.save_pretrained(path)
    write_formats(path, list(FORMATS))
    return path


def printed(code: str) -> str:
    """What the code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().strip()


@pytest.mark.slow
@pytest.mark.parametrize("texts", [["the film is good"], ["the film", "is good"]], ids=["text", "pair"])
def test_the_code_of_every_format_runs_and_agrees(folder: Path, texts: list[str]) -> None:
    written = {name: FormatFacts(1, 0.0, {}) for name, kind in FORMATS.items() if kind.write is not None}
    base = replace(REPORTS["kd"], formats=written, labels={0: "bad", 1: "good"}, example=Example(texts, []))
    found = {snippet.title: snippet.code.replace("path/to/this/folder", str(folder)) for snippet in snippets(base)}
    python = {title: code for title, code in found.items() if "js" not in title}
    assert len(python) == 1 + sum(bool(FORMATS[name].loading) for name in written)
    answers = {title: re.search("bad|good", printed(code)) for title, code in python.items()}
    assert len({answer[0] for answer in answers.values() if answer}) == 1
    assert all(answers.values())
