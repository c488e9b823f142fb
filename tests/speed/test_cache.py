"""Tables of latency are measured once for a machine, an architecture and a shape of a batch."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoConfig, BertForSequenceClassification

from hf_compress import QuantizationArguments, Recipe, save_compressed
from hf_compress.prune.latency import Course, LatencyTable
from hf_compress.speed import cache, cached_table
from tests.tiny import bert

INT8 = QuantizationArguments(quant_scheme="int8")
KINDS = ("neurons", "heads")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[LatencyTable]:
    """All tables that were measured, in an empty cache."""
    tables: list[LatencyTable] = []

    def measure(*given: Any, batch: int, length: int, **options: Any) -> LatencyTable:
        courses = (Course("heads", 2, 2, [1, 2], [0.5 + len(tables) / 10, 1.0]),)
        tables.append(LatencyTable(f"{batch} x {length} tokens", 0.01, 0.5, courses, "int8", "a runtime", "a machine"))
        return tables[-1]

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "measure_table", measure)
    return tables


def table(seed: int = 0, quantization: QuantizationArguments = INT8, **changes: Any) -> LatencyTable:
    model = bert(seed=seed, **{name: changes.pop(name) for name in ("intermediate_size",) if name in changes})
    return cached_table(BertForSequenceClassification, model.config, quantization, KINDS, **changes)


def test_a_table_is_measured_once(measured: list[LatencyTable]) -> None:
    assert table() == table(seed=1) == measured[0]
    assert len(measured) == 1


def test_a_finished_folder_needs_no_other_table(measured: list[LatencyTable], tmp_path: Path) -> None:
    table()
    model = bert()
    model.config.problem_type, model.config.use_cache = "single_label_classification", False
    folder = save_compressed(model, tmp_path / "compressed", Recipe())
    cached_table(BertForSequenceClassification, AutoConfig.from_pretrained(folder), INT8, KINDS)
    assert len(measured) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 2},
        {"length": 64},
        {"runtime": "openvino"},
        {"intermediate_size": 48},
        {"exclude": ["layer.0"]},
        {"quantization": QuantizationArguments(quant_scheme="int8-dynamic")},
    ],
    ids=str,
)
def test_another_architecture_or_batch_is_measured(measured: list[LatencyTable], changes: dict[str, Any]) -> None:
    table()
    table(**changes)
    assert len(measured) == 2


def test_another_machine_measures_again(measured: list[LatencyTable], monkeypatch: pytest.MonkeyPatch) -> None:
    table()
    monkeypatch.setattr(cache, "machine", lambda: "another CPU")
    table()
    assert len(measured) == 2


@pytest.mark.parametrize("content", ["", "{}", '{"batch": 1}', "[]"])
def test_a_broken_file_is_measured_again(measured: list[LatencyTable], content: str) -> None:
    table()
    (path,) = cache.table_folder().iterdir()
    path.write_text(content)
    assert table() == measured[1]
    assert table() == measured[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"least": 0},
        {"least": math.nan},
        {"seconds": "1"},
        {"courses": []},
        {"courses": [["heads", 2, 2, [1, 2], [0.5, math.nan]]]},
        {"courses": [["heads", 2, 2, [1, 2], [0.5]]]},
        {"courses": [["heads", 2, 2, [2, 1], [0.5, 1.0]]]},
        {"courses": [["heads", 4, 2, [1, 2], [0.5, 1.0]]]},
    ],
    ids=str,
)
def test_impossible_times_are_measured_again(measured: list[LatencyTable], changes: dict[str, Any]) -> None:
    table()
    (path,) = cache.table_folder().iterdir()
    if "courses" in changes:
        names = ("kind", "count", "blocks", "kept", "shares")
        changes = {"courses": [dict(zip(names, one, strict=True)) for one in changes["courses"]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert table() == measured[1]


def test_a_table_that_cannot_be_kept_is_returned(
    measured: list[LatencyTable], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf_compress").write_text("a file in the place of the folder")
    monkeypatch.setattr(cache.logger, "handlers", [caplog.handler])
    assert table() == measured[0]
    assert "measured again next time" in caplog.text
    assert table() == measured[1]
