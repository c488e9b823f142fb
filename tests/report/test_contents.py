"""report.json binds every file of its folder: a file that changes, goes or comes is named in a sentence."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hf_compress.report.card import save_card
from hf_compress.report.contents import check_contents, contents
from hf_compress.report.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the golden report, a card, and a few files that stand for a model."""
    path = tmp_path / "compressed"
    (path / "onnx").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(1000))
    (path / "onnx" / "model.onnx").write_bytes(b"graph")
    Report.load(GOLDEN).save(path)
    save_card(path)
    return path


def test_the_report_records_every_file_of_its_folder(folder: Path) -> None:
    report = Report.load(folder)
    names = ["config.json", "model.safetensors", "onnx/model.onnx", "size.png", "training.png"]
    assert list(report.files) == names
    # What `printf graph | sha256sum` prints.
    facts = report.files["onnx/model.onnx"]
    assert (facts.bytes, facts.sha256[:16]) == (5, "eef93e1d14482804")
    assert check_contents(folder, report) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda path: (path / "model.safetensors").write_bytes(b"1" * 1000),
            "`model.safetensors` has another content",
        ),
        (lambda path: (path / "onnx/model.onnx").write_bytes(b"g"), "`onnx/model.onnx` has 1 bytes, but"),
        (lambda path: (path / "config.json").unlink(), "`config.json` is missing"),
        (lambda path: (path / "pytorch_model.bin").touch(), "`pytorch_model.bin` is not one of the files"),
        (lambda path: (path / "onnx/pytorch_model.bin").touch(), "`onnx/pytorch_model.bin` is not one of the files"),
    ],
)
def test_a_changed_folder_is_named_file_by_file(folder: Path, change: Callable[[Path], object], sentence: str) -> None:
    change(folder)
    (said,) = check_contents(folder, Report.load(folder))
    assert said.startswith(sentence)


def test_hidden_files_the_report_and_the_card_are_free(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes").touch()
    (folder / "README.md").write_text("mine")
    assert check_contents(folder, Report.load(folder)) == []


def test_a_report_without_files_shows_nothing(folder: Path) -> None:
    (said,) = check_contents(folder, replace(Report.load(folder), files={}))
    assert "records no files" in said


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.onnx").write_bytes(b"graph")
    if kind == "file":
        (folder / "onnx" / "model.onnx").unlink()
        (folder / "onnx" / "model.onnx").symlink_to(outside / "model.onnx")
    else:
        (folder / "linked").symlink_to(outside)
    (said,) = check_contents(folder, Report.load(folder))
    assert "a link to something outside the folder" in said
    with pytest.raises(ValueError, match="a link to something outside the folder"):
        contents(folder)


def test_a_snapshot_in_the_hub_s_cache_is_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for name in [*Report.load(folder).files, "report.json"]:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(blobs / name.replace("/", "-"))
        (snapshot / name).symlink_to(blobs / name.replace("/", "-"))
    assert check_contents(snapshot, Report.load(snapshot)) == []


def test_a_stale_picture_goes_with_the_card_that_showed_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_card(folder)
    assert not (folder / "size.png").exists()
    assert check_contents(folder, Report.load(folder)) == []
