"""A store never accepts a cut, edited or swapped file as a result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from hf_compress.report.report import REPORT_NAME
from hf_compress.study.run.engine import run_plan
from hf_compress.study.run.store import CELL_FILE, DENSE_FILE, ERROR_FILE, MODEL_FOLDER, Store
from hf_compress.study.run.workers import SerialWorkers
from tests.study.stub import Stub, planned

Harm = Callable[[Path], object]
WHOLE = planned(methods=["dense", "mp"], tasks=["sst2"])


def go(folder: Path | str, work: Stub, cells: list[str] | None = None, **options: bool) -> bool:
    store = Store(folder)
    return run_plan(WHOLE, store, SerialWorkers(work, store), cells=cells, **options).finished


def reports(folder: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in folder.glob(f"*/{REPORT_NAME}")}


@pytest.fixture
def work(tmp_path: Path) -> Stub:
    return Stub(tmp_path / "diary")


def _edit(name: str, content: bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str) -> Harm:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-30])


def _as_folder(name: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return harm


def _change(name: str, *path: str, to: object) -> Harm:
    def harm(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        inner = values
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = to
        (folder / name).write_text(json.dumps(values))

    return harm


CELL_HARMS: dict[str, Harm] = {
    "cut report": _cut(REPORT_NAME),
    "cut cell": _cut(CELL_FILE),
    "empty report": _edit(REPORT_NAME, b""),
    "bytes": _edit(REPORT_NAME, b"\xff\xfe\x00"),
    "list": _edit(CELL_FILE, b"[]"),
    "nested": _edit(CELL_FILE, b"[" * 100_000),
    "folder": _as_folder(REPORT_NAME),
    "other key": _change(CELL_FILE, "cell", "key", to="0" * 20),
    "other seed": _change(CELL_FILE, "cell", "seed", to=7),
    "no scores": _change(REPORT_NAME, "compressed", to=None),
    "text for a score": _change(REPORT_NAME, "compressed", "accuracy", to="good"),
    "seconds": _change(CELL_FILE, "seconds", to="long"),
}


@pytest.mark.parametrize("harm", CELL_HARMS)
def test_a_harmed_result_runs_again(work: Stub, tmp_path: Path, harm: str) -> None:
    folder, key = tmp_path / "out", next(iter(WHOLE.cells))
    assert go(folder, work)
    undisturbed = reports(folder)
    CELL_HARMS[harm](folder / key)
    assert go(folder, work)
    assert work.begun().count(key) == 2 and reports(folder) == undisturbed


DENSE_HARMS: dict[str, Harm] = {
    "cut": _cut(DENSE_FILE),
    "bytes": _edit(DENSE_FILE, b"\xff\xfe\x00"),
    "list": _edit(DENSE_FILE, b"[1, 2]"),
    "text": _edit(DENSE_FILE, b'{"accuracy": "good"}'),
    "folder": _as_folder(DENSE_FILE),
    "no weights": lambda folder: shutil.rmtree(folder / MODEL_FOLDER),
    "empty": lambda folder: (folder / MODEL_FOLDER / "weights").unlink(),
    "cut weights": lambda folder: (
        save_file({}, folder / MODEL_FOLDER / "a.safetensors"),
        (folder / MODEL_FOLDER / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
    ),
}


@pytest.mark.parametrize("harm", DENSE_HARMS)
def test_a_harmed_dense_model_is_trained_again(work: Stub, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "out"
    first, second = (key for key in WHOLE.cells if WHOLE.cells[key].layers == 1)
    assert go(folder, work, [first])
    dense = WHOLE.cells[first].starts_from
    assert (folder / dense / DENSE_FILE).exists()
    DENSE_HARMS[harm](folder / dense)
    assert go(folder, work, [second])
    assert work.begun().count(dense) == 2


def test_a_traceback_of_any_bytes_is_shown(work: Stub, tmp_path: Path) -> None:
    folder, key = tmp_path / "out", next(iter(WHOLE.cells))
    (folder / key).mkdir(parents=True)
    (folder / key / ERROR_FILE).write_bytes(b"Traceback\nValueError: \xff broken")
    assert not go(folder, work)
    assert go(folder, work, retry_failed=True)


def test_strange_things_in_the_folder_are_left_alone(work: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / REPORT_NAME).write_text("{}")
    (folder / "README.md").write_text("mine")
    assert go(folder, work)
    assert (folder / "notes" / REPORT_NAME).read_text() == "{}" and (folder / "README.md").read_text() == "mine"
    assert len(list(Store(folder).results())) == len(WHOLE.cells)


def test_a_prepared_temporary_folder_is_refused(work: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    Store("memory://prepared").local.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link or belongs to another user"):
        go("memory://prepared", work)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_temporary_folder_of_a_url_is_private(work: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert go("memory://private", work)
    assert Store("memory://private").local.stat().st_mode & 0o077 == 0


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing://"):
        Store("nothing://here")
