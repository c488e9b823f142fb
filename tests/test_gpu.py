"""The script that runs everything that needs a GPU works here in tiny shapes, and its results reach the pages."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
TRIAL = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick"]
RATIO = {"ratio": 1.25, "interval": [1.2, 1.3], "quartiles": [1.22, 1.28]}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("gpu")


@pytest.fixture
def page(script: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_page")


@pytest.fixture
def results(script: ModuleType) -> dict[str, Any]:
    """Made-up results of a GPU that does not exist."""
    cells = [
        cell | {"state": "skipped", "why": "no time left"}
        for part in script.SHARES
        for cell in script.planned(part, quick=False)
    ]
    made_up = {
        "steps": {"rounds": 37, "plain_seconds": 0.0123, "ratios": {"control": RATIO, "int8": RATIO}},
        "memory": {"bytes": {"plain": 1_234_000_000, "int8": None}},
        "int8": {"speed": {"1 x 128": {"bf16": RATIO, "int8": RATIO}}},
        "processes": {"processes": 2, "steps": 24, "ratios": {"control": RATIO, "all three": RATIO}}
        | {"bytes": {"plain": 1e9, "all three": 2e9}},
    }
    for cell in cells:
        if not cell.get("compiled"):
            cell |= {"state": "done", "why": "", "result": made_up[cell["what"]]}
    outcomes = {"tests/test_a.py::test_one[cuda bf16]": "passed", "tests/test_a.py::test_two": "failed"}
    return {
        "schema": script.SCHEMA,
        "date": "2030-01-02",
        "commit": "0123456789",
        "changed": False,
        "quick": False,
        "machine": {"device": "cuda", "gpus": ["Imaginary 9"] * 2},
        "versions": {"torch": "9.9", "transformers": "8.8"},
        "tests": {"state": "cut", "why": "no time left", "outcomes": outcomes},
        "cells": cells,
    }


def test_pages_hold_what_the_file_of_results_says(page: ModuleType) -> None:
    """Run `python benchmarks/gpu_page.py [docs/gpu.json]` if this fails."""
    file = ROOT / "docs" / "gpu.json"
    found = page.read(file) if file.exists() else None
    for name, render in page.PAGES.items():
        text = (ROOT / name).read_text("utf-8")
        assert page.filled(text, render(found)) == text


def test_results_of_a_gpu_reach_both_pages(page: ModuleType, results: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(results))
    for name in page.PAGES:
        (tmp_path / Path(name).name).write_text((ROOT / name).read_text("utf-8"))
    subprocess.run(
        [sys.executable, str(SCRIPT.with_name("gpu_page.py")), str(file), "--docs", str(tmp_path)], check=True
    )
    guarantees = (tmp_path / "guarantees.md").read_text().partition("gpu: begin")[2].partition("gpu: end")[0]
    assert (
        "2 x Imaginary 9; torch 9.9, transformers 8.8; commit 0123456; 2030-01-02: 1 passed, 1 failed." in guarantees
    )
    assert "**Not all ran**: no time left." in guarantees and "Not run" not in guarantees
    assert "| `tests/test_a.py::test_one[cuda bf16]` | passed |" in guarantees
    speed = (tmp_path / "benchmarks.md").read_text().partition("gpu: begin")[2].partition("gpu: end")[0]
    assert "| minilm, fp32 | 37 | 12.3 ms | 1.25 (1.20 to 1.30) | 1.25 (1.20 to 1.30) |" in speed
    assert "| bert-base, bf16 | 1,234 |  |" in speed
    assert "| bert-base | 1 x 128 | 1.25 (1.20 to 1.30) | 1.25 (1.20 to 1.30) |" in speed
    assert "| FSDP2, bert-base, bf16 | 2 | 24 | 1.25 (1.20 to 1.30) | 1.25 (1.20 to 1.30) | 1,000 | 2,000 |" in speed
    assert "- **skipped**: steps, minilm, bf16, compiled: no time left" in speed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 0}, "must have schema 1; got 0"),
        ({"quick": True}, "must hold results of a GPU in full shapes"),
        ({"machine": {"device": "cpu", "gpus": []}}, "must hold results of a GPU in full shapes"),
    ],
)
def test_results_of_a_trial_are_kept_out_of_the_pages(
    change: dict[str, Any], says: str, page: ModuleType, results: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(results | change))
    with pytest.raises(ValueError, match=says):
        page.read(file)


def test_a_page_without_marks_is_refused(page: ModuleType) -> None:
    with pytest.raises(ValueError, match="gpu: begin"):
        page.filled("# Page\n", "content")


def test_missing_packages_are_named_with_the_way_to_get_them(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = {"zstandard", "datasets"}
    monkeypatch.setattr(script, "_installed", lambda name: name not in absent)
    monkeypatch.setattr(script.Day, "_watch", lambda *_: pytest.fail("a part ran without what it needs"))
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", "--out", str(file)])
    script.main()
    assert "pip install datasets zstandard\n" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["missing"] == ["datasets", "zstandard"]
    assert found["tests"]["why"] == "not installed: datasets, zstandard"
    # The steps run without `datasets`, but not without what the package imports.
    assert {cell["why"] for cell in found["cells"]} == {"not installed: zstandard"}


def test_without_time_every_cell_says_so(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    subprocess.run([*TRIAL, "--minutes", "0.01", "--out", str(file)], check=True, timeout=60)
    found = json.loads(file.read_text())
    whys = {cell["why"] for cell in found["cells"]} | {found["tests"]["why"]}
    assert whys == {"no time left", "accelerate enters FSDP on accelerators only"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_on_a_cpu_in_tiny_shapes(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    tests = "tests/invariants/test_precision.py"
    subprocess.run([*TRIAL, "--minutes", "14", "--out", str(file), "--tests", tests], check=True)
    found = json.loads(file.read_text())
    assert found["machine"]["device"] == "cpu" and found["versions"]["torch"]
    assert found["tests"]["state"] == "done"
    assert (
        f"{tests}::test_all_methods_train_and_the_file_has_the_trained_logits[cuda bf16]" in found["tests"]["outcomes"]
    )
    for cell in found["cells"]:
        if cell.get("way") == "FSDP2":
            assert cell["state"] == "skipped"
            continue
        assert cell["state"] == "done", cell
        if cell["what"] == "steps":
            more = [] if cell["compiled"] else ["int8 without kernels"]
            assert list(cell["result"]["ratios"]) == ["control", "cached teacher", "all three", *more]
            assert all(ratio["ratio"] > 0 for ratio in cell["result"]["ratios"].values())
        if cell["what"] == "processes":
            assert cell["result"]["processes"] == 2 and cell["result"]["ratios"]["all three"]["ratio"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_run_keeps_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    words = [*TRIAL, "--minutes", "8", "--parts", "eager", "--out", str(file)]
    # A test that a shell runs in the background inherits that this signal is ignored.
    process = subprocess.Popen(words, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while process.poll() is None:
        measured = file.exists() and [cell for cell in json.loads(file.read_text())["cells"] if cell.get("result")]
        if measured:
            break
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    kept = [cell for cell in json.loads(file.read_text())["cells"] if cell.get("result")]
    assert kept and kept[0]["what"] == "steps" and kept[0]["state"] in ("cut", "done")
