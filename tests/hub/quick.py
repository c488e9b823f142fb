"""A finished folder, made in an instant: all that a push looks at, without a training."""

import shutil
from dataclasses import replace
from pathlib import Path

from hf_compress.report.card import save_card
from hf_compress.report.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = bytes(range(250)) * 4


def finished(path: Path) -> Path:
    """Write a finished folder to `path`: weights that are only as long as the report says, and no predictions."""
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(WEIGHTS)
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    report = replace(Report.load(GOLDEN), card_picture=None, predictions=None)
    report.recipe.save(path / "recipe.json")
    replace(report, size=replace(report.size, packed_bytes=len(WEIGHTS)), formats={}).save(path)
    save_card(path)
    return path


def another(folder: Path, path: Path) -> Path:
    """Write to `path` what another run left: other weights, a file more, and no tokenizer.json."""
    shutil.copytree(folder, path)
    (path / "model.safetensors").write_bytes(WEIGHTS[::-1])
    (path / "tokenizer.json").rename(path / "tokenizer_config.json")
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(b"\0graph")
    save_card(path)
    return path
