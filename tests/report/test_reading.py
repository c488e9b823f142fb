"""The code on the card that reads pictures and sounds runs as it stands, in the package and in every graph."""

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
)

from hf_compress.export.formats import FORMATS, write_formats
from hf_compress.report.card import render
from hf_compress.report.reading import PICTURE, READING
from hf_compress.report.report import FormatFacts
from hf_compress.report.snippets import FOLDER, snippets
from tests.golden.reports import golden_reports
from tests.invariants.test_heads import vit, wav2vec2
from tests.quantized import quantized

REPORTS, FORMATS_OF_TENSORS = golden_reports(), ["onnx", "openvino", "dense"]
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "image": (AutoModelForImageClassification, vit, ViTImageProcessorPil(size={"height": 8, "width": 8})),
    "audio": (AutoModelForAudioClassification, wav2vec2, Wav2Vec2FeatureExtractor(return_attention_mask=False)),
}


def report_of(kind: str, formats: list[str]) -> Any:
    facts = dict.fromkeys(formats, FormatFacts(1000, 0.1, {"accuracy": 0.85}))
    named = {"pipeline_tag": f"{kind}-classification", "head": f"{kind} classification", "example": None}
    auto_class = KINDS[kind][0].__name__
    return replace(REPORTS["int8"], **named, auto_class=auto_class, labels={0: "one", 1: "two"}, formats=facts)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_reads_the_file_that_the_card_names(kind: str) -> None:
    for snippet in snippets(report_of(kind, FORMATS_OF_TENSORS))[1:]:
        compile(snippet.code, snippet.title, "exec")
        assert READING[f"{kind}-classification"].lines[0] in snippet.code and "{" + "missing}" not in snippet.code
        assert READING[f"{kind}-classification"].install in snippet.install


@pytest.mark.parametrize("kind", KINDS)
def test_no_language_is_said_of_pictures_and_sounds(kind: str) -> None:
    assert "and the kind of its training data" in render(report_of(kind, []))
    assert "and the language and kind of its training data" in render(REPORTS["int8"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_pictures_and_sounds_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto_class, build, processor = KINDS[kind]
    folder = quantized(auto_class.from_config(build(num_labels=2)), tmp_path / "compressed", "int8-weight")
    processor.save_pretrained(folder)
    write_formats(folder, ["onnx", "dense"])
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (12, 9), "red").save(PICTURE)
    samples = np.sin(np.arange(900.0))
    monkeypatch.setitem(sys.modules, "soundfile", SimpleNamespace(read=lambda path: (samples, 16_000)))
    out = io.StringIO()
    for snippet in snippets(report_of(kind, ["onnx", "dense"])):
        if snippet.title in (f"With {FORMATS['onnx'].runtime}", f"With {FORMATS['dense'].runtime}"):
            with contextlib.redirect_stdout(out):
                exec(snippet.code.replace(FOLDER, str(folder)), {})
    answers = out.getvalue().split()
    assert len(answers) == 2 and answers[0] == answers[1] and answers[0] in ("one", "two")
