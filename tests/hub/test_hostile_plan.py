"""`hf-compress finish` reads a plan that may hold anything: it completes the run, or says in a sentence why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hf_compress_cli import app
from tests.hub.accounts import GOOD_TOKEN
from tests.hub.local import LocalHub

pytestmark = pytest.mark.slow

PLAN: dict[str, Any] = {"command": "python train.py", "formats": [], "reported": True, "hub_id": "me/x"}


@pytest.fixture
def run_folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A run that is finished but for its push."""
    shutil.copytree(folders["finished"], tmp_path / "run" / "compressed")
    (tmp_path / "run" / ".compressed.unfinished").mkdir()
    write(tmp_path / "run", PLAN)
    return tmp_path / "run"


def write(folder: Path, plan: object) -> None:
    text = plan if isinstance(plan, str) else json.dumps(plan)
    (folder / ".compressed.unfinished" / "plan.json").write_text(text)


def finish(folder: Path) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["finish", str(folder), "--token", GOOD_TOKEN])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), repr(ran.exception)
    assert GOOD_TOKEN not in ran.output
    return ran.exit_code, ran.output


def test_a_run_that_lacks_its_push_is_pushed_once(local_hub: LocalHub, run_folder: Path) -> None:
    status, said = finish(run_folder)
    assert status == 0, said
    assert f"{local_hub.url}/me/x" in said
    assert len(local_hub.repository("me/x").history()) == 1
    finish(run_folder)
    assert len(local_hub.repository("me/x").history()) == 1


@pytest.mark.parametrize(
    "plan",
    [
        "",
        "[" * 5000,
        "[]",
        "{}",
        PLAN | {"formats": ["nonsense"]},
        PLAN | {"formats": "onnx"},
        PLAN | {"formats": ["../../x"]},
        PLAN | {"hub_id": "../../x"},
        PLAN | {"hub_id": GOOD_TOKEN},
        PLAN | {"hub_id": "me/x", "revision": "refs/pr/99"},
        PLAN | {"max_drop": float("nan")},
        PLAN | {"max_drop": "much"},
        PLAN | {"command": "rm -rf \x1b[2J /", "formats": ["nonsense"]},
        PLAN | {"surprise": 1},
    ],
    ids=range(14),
)
def test_a_strange_plan_is_a_sentence(local_hub: LocalHub, run_folder: Path, plan: object) -> None:
    write(run_folder, plan)
    before = {path.name: path.read_bytes() for path in (run_folder / "compressed").iterdir() if path.is_file()}
    status, said = finish(run_folder)
    assert status in (0, 1, 3)
    assert "\x1b" not in said
    if status == 1:
        assert said.count("Error: ") == 1
    weights = (run_folder / "compressed" / "model.safetensors").read_bytes()
    assert weights == before["model.safetensors"], "what is finished is never destroyed"
    assert not any(GOOD_TOKEN.encode() in request.body for request in local_hub.requests)


def test_a_plan_behind_a_link_destroys_nothing(local_hub: LocalHub, run_folder: Path, tmp_path: Path) -> None:
    """`.compressed.unfinished` is removed at the end; what it links to is not."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run_folder / ".compressed.unfinished", elsewhere)
    (elsewhere / "precious").write_text("kept")
    (run_folder / ".compressed.unfinished").symlink_to(elsewhere, target_is_directory=True)
    status, said = finish(run_folder)
    assert status in (0, 1), said
    assert (elsewhere / "precious").read_text() == "kept"
