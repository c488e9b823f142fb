"""Variants are timed in turns and compared pair by pair; what a folder can be run with is found, measured, kept."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import quantize_layers
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report import variants
from hf_compress.report.bench import bench, save_latency
from hf_compress.report.card import render, template_version
from hf_compress.report.contents import contents
from hf_compress.report.latency import Latency, Timing, measure_latency, paired_ratio
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.report.tables import latency_table
from hf_compress_cli import app

GOLDEN = Path(__file__).parents[1] / "golden"
MakeBert = Callable[..., BertForSequenceClassification]


@pytest.fixture
def folders(make_bert: MakeBert, tmp_path: Path) -> tuple[Path, Path]:
    """A dense tiny BERT, and one with integer weights and ranges beside the golden report."""
    make_bert().save_pretrained(tmp_path / "dense")
    model = make_bert()
    for layer in quantize_layers(model, SCHEMES["int8"]):
        layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-2.0, 3.0]))
    with torch.no_grad():
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
    recipe = Recipe(quantization=QuantizationArguments(quant_scheme="int8"))
    small = save_compressed(model, tmp_path / "small", recipe)
    shutil.copy(GOLDEN / REPORT_NAME, small)
    return tmp_path / "dense", small


def test_variants_take_turns_in_a_rotating_order() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    ticks: list[None] = []
    seconds = measure_latency(variants, 4, settle=0, after_call=lambda: ticks.append(None))
    timed = calls[-12:]
    assert ["".join(timed[start : start + 3]) for start in (0, 3, 6, 9)] == ["abc", "bca", "cab", "abc"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(ticks) == 12
    calls.clear()
    measure_latency(variants, 4, settle=2)
    assert set(Counter(calls[-36:]).values()) == {12}


def test_a_paired_ratio_cancels_shared_noise() -> None:
    noise = [1.0, 7.0, 2.0, 5.0, 3.0]
    found = paired_ratio([2 * value for value in noise], noise)
    assert (found.ratio, found.interval, found.quartiles) == (2, [2, 2], [2, 2])
    wide = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert wide.ratio == 3
    assert wide.quartiles == [2, 4]
    assert 1 <= wide.interval[0] < 3 < wide.interval[1] <= 5
    assert wide == paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)


def test_a_timing_has_throughput_and_speedup() -> None:
    timing = Timing.of("small", (8, 16), [0.5, 0.5, 0.5], [1.0, 1.0, 1.0])
    assert (timing.seconds, timing.throughput, timing.speedup.ratio) == (0.5, 16, 2)


def test_every_variant_is_measured_against_the_dense_one(folders: tuple[Path, Path]) -> None:
    dense, small = folders
    latency = bench([small, dense], batch_sizes=[1, 2], lengths=[4], rounds=2)
    names = ["dense: torch-fp32", "small: torch-dense", "small: torch-int8"]
    assert latency.baseline == names[0]
    assert [variant.name for variant in latency.variants] == names
    assert [(timing.variant, timing.batch_size) for timing in latency.timings] == [
        (name, rows) for rows in (1, 2) for name in names
    ]
    assert latency.variants[0].file_bytes == (dense / "model.safetensors").stat().st_size
    assert latency.timings[0].speedup.ratio == 1
    assert latency_table(latency).row_count == 6


def test_a_compressed_folder_has_its_own_dense_baseline(folders: tuple[Path, Path]) -> None:
    latency = bench(folders[1:], batch_sizes=[1], lengths=[4], rounds=1)
    assert [variant.name for variant in latency.variants] == ["torch-fp32", "torch-dense", "torch-int8"]
    assert abs(latency.variants[0].file_bytes - (folders[0] / "model.safetensors").stat().st_size) < 500


def test_onnx_files_run_in_the_installed_runtimes(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    (folders[1] / "onnx").mkdir()
    (folders[1] / "onnx" / "model_quantized.onnx").write_bytes(b"graph")
    opened = []

    def runtime(path: Path, config: object) -> torch.nn.Module:
        opened.append(path.name)
        return BertForSequenceClassification(config)

    monkeypatch.setattr(variants, "RUNTIMES", {"onnxruntime": runtime, "no_such_runtime": runtime})
    latency = bench(folders[1:], batch_sizes=[1], lengths=[4], rounds=1, variants=["torch-fp32", "onnxruntime"])
    assert [variant.name for variant in latency.variants] == ["torch-fp32", "onnxruntime"]
    assert opened == ["model_quantized.onnx"]


def test_threads_are_set_and_restored(folders: tuple[Path, Path]) -> None:
    before = torch.get_num_threads()
    latency = bench(folders[:1], batch_sizes=[1], lengths=[4], rounds=1, threads=2)
    assert (latency.threads, torch.get_num_threads()) == (2, before)


def test_latency_is_saved_in_report_and_card(folders: tuple[Path, Path]) -> None:
    dense, small = folders
    plain = Report.load(small)
    latency = bench([dense, small], batch_sizes=[1], lengths=[4], rounds=1)
    assert save_latency(dense, latency) is None
    card = save_latency(small, latency)
    assert card is not None
    report = Report.load(small)
    drawn = replace(plain, latency=latency, card_picture="size.png", card_curve="training.png")
    assert report == replace(drawn, card_template=template_version(), files=contents(small))
    text = card.read_text()
    assert latency.hardware in text
    assert "small: torch-int8" in text
    assert "## Speed" not in render(plain)
    assert "latency" not in plain.to_dict()


def test_a_report_takes_its_own_variants_and_the_baseline(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders[1], tmp_path / "other")
    latency = bench([*folders, other], batch_sizes=[1], lengths=[4], rounds=1)
    save_latency(other, latency)
    kept: Latency | None = Report.load(other).latency
    assert kept is not None
    names = ["dense: torch-fp32", "other: torch-dense", "other: torch-int8"]
    assert [timing.variant for timing in kept.timings] == [variant.name for variant in kept.variants] == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [0]}, "`--batch-size` must be positive; got 0"),
        ({"threads": 0}, "`--threads` must be positive; got 0"),
        ({"rounds": -1}, "`--rounds` must be positive; got -1"),
        ({"lengths": [33]}, "`--length` may be at most 32 for this model; got 33"),
        ({"variants": ["tensorrt"]}, "`--variants` must be among torch-fp32, torch-dense"),
        ({"lengths": [4], "variants": ["openvino"]}, "`--variants` leaves nothing to measure"),
    ],
)
def test_a_mistake_is_named(folders: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        bench(folders[:1], **options)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \*.safetensors file"):
        bench([tmp_path])


def test_the_command_prints_a_table_or_json(folders: tuple[Path, Path]) -> None:
    arguments = ["bench", str(folders[1]), "--batch-size", "1", "--length", "4", "--rounds", "1", "--save"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "torch-int8" in result.stdout
    assert "Written to" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout)["baseline"] == "torch-fp32"
