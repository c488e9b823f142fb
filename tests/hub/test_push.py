"""Pushing, with the real client against the local Hub: a replacement in one commit."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_compress.hub.push import publish, push
from hf_compress.report.card import save_card
from hf_compress.report.eval_results import RESULTS_NAME
from hf_compress.report.report import Report
from hf_compress_cli import app
from tests.hub.accounts import GOOD_TOKEN, OTHER_TOKEN
from tests.hub.faults import status
from tests.hub.local import LocalHub

ID = "me/small"


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["finished"], tmp_path / "compressed"))


@pytest.fixture
def other(folders: dict[str, Path], tmp_path: Path) -> Path:
    """What another run left: other weights and a graph."""
    return Path(shutil.copytree(folders["earlier"], tmp_path / "other"))


def on_disk(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def in_repository(hub: LocalHub, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.repository(ID).files(revision).items() if name != ".gitattributes"}


def test_a_finished_folder_arrives_whole_in_one_commit(local_hub: LocalHub, folder: Path) -> None:
    url = push(folder, ID, token=GOOD_TOKEN)
    made = local_hub.repository(ID).history()
    size = (folder / "model.safetensors").stat().st_size
    assert [one.message for one in made] == [f"Add kd+mp60+int8 for made-up films, {size:,} bytes"]
    assert url == f"{local_hub.url}/{ID}/commit/{made[-1].oid}"
    assert in_repository(local_hub) == on_disk(folder)
    assert Report.load(folder).hub_id == ID


def test_a_second_push_makes_no_commit(local_hub: LocalHub, folder: Path) -> None:
    first = push(folder, ID, token=GOOD_TOKEN)
    again = publish(folder, ID, token=GOOD_TOKEN)
    assert again.url == first
    assert again.changes.nothing
    assert len(local_hub.repository(ID).history()) == 1


def test_the_next_run_replaces_the_last_one(local_hub: LocalHub, folder: Path, other: Path) -> None:
    push(other, ID, token=GOOD_TOKEN)
    assert in_repository(local_hub) == on_disk(other)
    pushed = publish(folder, ID, token=GOOD_TOKEN)
    assert in_repository(local_hub) == on_disk(folder), "the graph of the other run is gone"
    assert pushed.changes.removed == ["model_quantized.onnx"]
    assert {"model.safetensors", "report.json"} <= set(pushed.changes.changed)
    assert len(local_hub.repository(ID).history()) == 2


def test_many_files_arrive_in_one_commit(local_hub: LocalHub, folder: Path) -> None:
    for number in range(60):
        (folder / f"part-{number}.txt").write_text(f"{number}")
    save_card(folder)
    push(folder, ID, token=GOOD_TOKEN)
    assert len(local_hub.repository(ID).history()) == 1
    assert in_repository(local_hub) == on_disk(folder)


def test_what_the_report_does_not_record_stays_here(local_hub: LocalHub, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"stray")
    (folder / ".env").write_text(f"HF_TOKEN={GOOD_TOKEN}")
    pushed = publish(folder, ID, token=GOOD_TOKEN)
    assert pushed.left == ["pytorch_model.bin"]
    assert not {"pytorch_model.bin", ".env"} & in_repository(local_hub).keys()


def test_another_model_is_not_mixed_with_ours(local_hub: LocalHub, folder: Path) -> None:
    theirs = {"pytorch_model.bin": b"dense", "config.json": b'{"a": 1}', "LICENSE": b"MIT", "README.md": b"# Mine\n"}
    local_hub.add(ID, theirs)
    with pytest.raises(ValueError, match=r"files of another model.*: config\.json, pytorch_model\.bin.*`--replace`"):
        push(folder, ID, token=GOOD_TOKEN)
    assert in_repository(local_hub) == theirs
    pushed = publish(folder, ID, token=GOOD_TOKEN, replace=True)
    assert pushed.changes.removed == ["pytorch_model.bin"]
    assert "LICENSE" in pushed.changes.kept
    assert in_repository(local_hub)["LICENSE"] == b"MIT"
    assert in_repository(local_hub)["config.json"] == (folder / "config.json").read_bytes()
    assert b"# Mine" in in_repository(local_hub)["README.md"]


def test_a_gitignore_in_the_repository_leaves_nothing_out(local_hub: LocalHub, folder: Path) -> None:
    local_hub.add(ID, {".gitignore": b"*.json\n"})
    push(folder, ID, token=GOOD_TOKEN)
    asked = [request.json() for request in local_hub.requests if "/preupload/" in request.path]
    assert all("json" not in one["gitIgnore"] for one in asked), "our rules go before those of the repository"
    assert in_repository(local_hub).keys() >= on_disk(folder).keys()


def test_a_branch_is_created_and_main_stays(local_hub: LocalHub, folder: Path) -> None:
    push(folder, ID, token=GOOD_TOKEN, revision="v2")
    assert set(in_repository(local_hub)) == set()
    assert in_repository(local_hub, "v2") == on_disk(folder)


def test_a_pull_request_changes_no_branch(local_hub: LocalHub, folder: Path) -> None:
    local_hub.add(ID, {"LICENSE": b"MIT"})
    url = push(folder, ID, token=OTHER_TOKEN, create_pr=True, message="A smaller one")
    assert url == f"{local_hub.url}/{ID}/discussions/1"
    assert in_repository(local_hub) == {"LICENSE": b"MIT"}
    assert in_repository(local_hub, "refs/pr/1") == {**on_disk(folder), "LICENSE": b"MIT"}
    assert push(folder, ID, token=OTHER_TOKEN, revision="refs/pr/1"), "its author may complete it"


@pytest.mark.parametrize(("private", "found"), [(None, False), (True, True), (False, False)])
def test_visibility_is_asked_for_only_if_it_is_set(
    local_hub: LocalHub, folder: Path, private: bool | None, found: bool
) -> None:
    push(folder, ID, token=GOOD_TOKEN, private=private)
    assert local_hub.repository(ID).private is found
    (created,) = [request.json() for request in local_hub.requests if request.path == "/api/repos/create"]
    assert (created.get("visibility"), created.get("private")).count(None) == (2 if private is None else 1)


@pytest.mark.slow
def test_the_default_of_an_organisation_holds(local_hub: LocalHub, folder: Path) -> None:
    push(folder, "team/small", token=GOOD_TOKEN)
    assert local_hub.repository("team/small").private


def test_a_bare_name_goes_to_the_owner_of_the_token(local_hub: LocalHub, folder: Path) -> None:
    push(folder, "small", token=GOOD_TOKEN)
    assert in_repository(local_hub) == on_disk(folder)


def test_the_command_prints_what_it_did(local_hub: LocalHub, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["push", str(folder), ID, "--token", "-", "--public"], input=GOOD_TOKEN + "\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"{local_hub.url}/{ID}/commit/{local_hub.repository(ID).history()[-1].oid}"
    assert "added: " in result.stderr
    assert "not in the report, left here: notes.txt" in result.stderr
    assert "SecretOfMine" not in result.output


def test_an_unreachable_hub_is_named_with_the_next_step(folder: Path) -> None:
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE. Unset that variable"):
        push(folder, ID, token="hf_secret")


def test_a_failed_push_says_how_to_repeat_it(local_hub: LocalHub, folder: Path) -> None:
    local_hub.faults(status("/commit/", 403, message="Forbidden"))
    with pytest.raises(ValueError, match="could not be pushed to me/small. This token may not write") as error:
        push(folder, ID, token=GOOD_TOKEN)
    assert shlex.join(["hf-compress", "push", str(folder), ID]) in str(error.value)
    assert set(in_repository(local_hub)) == set()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        push(tmp_path / "nowhere", ID)


def test_files_of_a_report_without_ours_are_named(local_hub: LocalHub, folder: Path) -> None:
    local_hub.add(ID, {"report.json": json.dumps({"accuracy": 1}).encode()})
    with pytest.raises(ValueError, match=re.escape("report.json")):
        push(folder, ID, token=GOOD_TOKEN)


@pytest.mark.slow
def test_the_hub_s_file_of_results_comes_and_goes(local_hub: LocalHub, folder: Path) -> None:
    report = Report.load(folder)
    replace(report, dataset=replace(report.dataset, hub_id="me/films")).save(folder)
    save_card(folder)
    push(folder, ID, token=GOOD_TOKEN)
    assert b"me/films" in in_repository(local_hub)[RESULTS_NAME]
    replace(Report.load(folder), dataset=report.dataset).save(folder)
    save_card(folder)
    assert publish(folder, ID, token=GOOD_TOKEN).changes.removed == [RESULTS_NAME]


@pytest.mark.slow
def test_a_branch_may_have_slashes_in_its_name(local_hub: LocalHub, folder: Path) -> None:
    push(folder, ID, token=GOOD_TOKEN, revision="runs/second")
    assert in_repository(local_hub, "runs/second") == on_disk(folder)


def test_an_empty_standard_input_is_no_token(local_hub: LocalHub, folder: Path) -> None:
    result = CliRunner().invoke(app, ["push", str(folder), ID, "--token", "-"], input="\n")
    assert (result.exit_code, local_hub.requests) == (1, [])
    assert "`--token -` reads the token from standard input" in result.stderr
