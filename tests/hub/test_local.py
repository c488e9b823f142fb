"""The local Hub answers the real clients as the Hub does."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, snapshot_download

from tests.hub import accounts, seeds
from tests.hub.faults import drop, lost, status
from tests.hub.local import LocalHub

WEIGHTS = bytes(range(256)) * 500


@pytest.fixture
def api(local_hub: LocalHub) -> HfApi:
    """A client that may write, and the repository me/x."""
    api = local_hub.api()
    api.create_repo("me/x")
    return api


def test_an_upload_comes_back(local_hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    api.upload_folder(repo_id="me/x", folder_path=tmp_path)
    assert local_hub.repository("me/x").files() == {"onnx/model.onnx": WEIGHTS, "config.json": b"{}"}
    (made,) = local_hub.repository("me/x").history()
    folder = Path(snapshot_download("me/x", endpoint=local_hub.url, cache_dir=tmp_path / "cache"))
    assert folder.name == made.oid
    assert (folder / "onnx" / "model.onnx").read_bytes() == WEIGHTS


def test_a_large_file_comes_in_parts(local_hub: LocalHub, api: HfApi) -> None:
    local_hub.in_parts_of(100_000)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors", repo_id="me/x")
    assert local_hub.repository("me/x").files() == {"model.safetensors": WEIGHTS}
    assert sum(request.method == "PUT" for request in local_hub.requests) == 2


def test_commits_are_whole_and_based_on_their_parent(local_hub: LocalHub, api: HfApi) -> None:
    first = local_hub.repository("me/x").at()
    api.create_commit("me/x", [CommitOperationAdd("a/b", b"1")], commit_message="one", parent_commit=first.oid)
    with pytest.raises(errors.HfHubHTTPError, match="412"):
        api.create_commit("me/x", [CommitOperationAdd("c", b"2")], commit_message="two", parent_commit=first.oid)
    api.create_commit("me/x", [CommitOperationDelete("a/")], commit_message="three")
    assert local_hub.repository("me/x").files() == {}
    assert [made.message for made in local_hub.repository("me/x").history()] == ["one", "three"]
    assert [made.title for made in api.list_repo_commits("me/x")] == ["three", "one", "initial commit"]


def test_branches_tags_and_pull_requests_are_kept_apart(local_hub: LocalHub, api: HfApi) -> None:
    api.create_branch("me/x", branch="v1")
    api.create_tag("me/x", tag="first")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="me/x", revision="v1")
    opened = api.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id="me/x", create_pr=True)
    assert opened.pr_revision == "refs/pr/1"
    repository = local_hub.repository("me/x")
    assert repository.files() == {}
    assert (repository.files("v1"), repository.files("refs/pr/1")) == ({"a": b"1"}, {"b": b"2"})
    found = api.list_repo_refs("me/x", include_pull_requests=True)
    assert {ref.name for ref in found.branches} == {"main", "v1"}
    assert [ref.name for ref in found.tags + found.pull_requests] == ["first", "refs/pr/1"]


@pytest.mark.parametrize(
    ("token", "repo_id", "expected"),
    [
        (None, "me/x", 401),
        (accounts.WRONG_TOKEN, "me/x", 401),
        (accounts.READ_TOKEN, "me/x", 403),
        (accounts.NARROW_TOKEN, "me/x", 403),
        (accounts.OTHER_TOKEN, "me/x", 403),
        (accounts.GOOD_TOKEN, "someone/x", 403),
        (accounts.GOOD_TOKEN, "club/x", 403),
        (accounts.GOOD_TOKEN, "team/x", 200),
        (accounts.FINE_TOKEN, "me/x", 200),
        (accounts.NARROW_TOKEN, "me/allowed", 200),
    ],
)
def test_only_writers_create(local_hub: LocalHub, token: str | None, repo_id: str, expected: int) -> None:
    if expected == 200:
        local_hub.api(token).create_repo(repo_id)
        assert local_hub.has(repo_id)
        return
    with pytest.raises(errors.HfHubHTTPError) as refused:
        local_hub.api(token).create_repo(repo_id)
    assert refused.value.response.status_code == expected
    assert not local_hub.has(repo_id)


def test_an_organisation_decides_what_is_private(local_hub: LocalHub) -> None:
    api = local_hub.api()
    for repo_id, private in (("team/a", None), ("team/b", False), ("me/a", None), ("me/b", True)):
        api.create_repo(repo_id, private=private)
    found = {name: local_hub.repository(name).private for name in ("team/a", "team/b", "me/a", "me/b")}
    assert found == {"team/a": True, "team/b": False, "me/a": False, "me/b": True}
    with pytest.raises(errors.RepositoryNotFoundError):
        local_hub.api(accounts.OTHER_TOKEN).model_info("team/a")


def test_faults_happen_as_often_as_asked(local_hub: LocalHub, api: HfApi) -> None:
    local_hub.faults(status("GET /api/models", 403, 1), drop("GET /api/models", 1), lost("/commit/"))
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        api.model_info("me/x")
    with pytest.raises(Exception, match="disconnected|reset|Server"):
        api.model_info("me/x")
    assert api.model_info("me/x").id == "me/x"
    with pytest.raises(Exception, match="disconnected|reset|Server"):
        api.create_commit("me/x", [CommitOperationAdd("a", b"1")], commit_message="one")
    assert local_hub.repository("me/x").files() == {"a": b"1"}


def test_what_xet_uploads_comes_back(local_hub: LocalHub, tmp_path: Path) -> None:
    floats = numpy.random.default_rng(0).normal(size=200_000).astype("float32")
    floats[::2] = 0  # So that Xet sorts and compresses bytes.
    files = {"model.safetensors": floats.tobytes(), "model.onnx": WEIGHTS, "c.bin": floats.tobytes()[:300_000] + b"x"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code = "from huggingface_hub import HfApi; HfApi().create_repo('me/x');"
    run(f"{code} HfApi().upload_folder(repo_id='me/x', folder_path={str(tmp_path)!r})", local_hub, xet=True)
    assert local_hub.repository("me/x").files() == files
    assert not any("objects/batch" in request.path for request in local_hub.requests)


@pytest.mark.slow
def test_seeds_load_by_id(local_hub: LocalHub) -> None:
    seeds.add_model(local_hub)
    seeds.add_data(local_hub)
    printed = run(
        "from datasets import load_dataset; from transformers import pipeline;"
        f"rows = load_dataset({seeds.DATA!r}, split='validation');"
        f"model = pipeline('text-classification', {seeds.MODEL!r});"
        "print(len(rows), rows[0]['sentence'], model(rows[0]['sentence'])[0]['label'])",
        local_hub,
    )
    assert printed.startswith("32 the ")
    assert printed.split()[-1] in {"negative", "positive"}


def run(code: str, hub: LocalHub, **options: bool) -> str:
    """What a new process that talks to `hub` prints."""
    environment = hub.environment(**options)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
