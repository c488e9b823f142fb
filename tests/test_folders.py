"""A model is named by its folder, or by its id on the Hub; everything else is refused in one sentence."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from hf_compress import folders
from hf_compress.folders import is_repository, local_folder

# The HTTP client of huggingface_hub: httpx or http.
http: Any = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])  # type: ignore[attr-defined]


class FakeApi:
    """Records what is asked of the Hub, and raises or returns what the test says."""

    asked: list[tuple[str, dict[str, Any]]]
    outcome: Any

    def __init__(self, token: str | None = None) -> None:
        type(self).token = token

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append((repo_id, options))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return str(self.outcome)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeApi]:
    monkeypatch.setattr(folders, "HfApi", FakeApi)
    monkeypatch.chdir(tmp_path)
    FakeApi.asked, FakeApi.outcome = [], tmp_path
    return FakeApi


def refusal(kind: type[Exception], status: int) -> Exception:
    return kind("refused", response=http.Response(status, request=http.Request("GET", "https://hub")))  # type: ignore[call-arg]


def offline() -> Exception:
    error = errors.LocalEntryNotFoundError("not cached")
    error.__cause__ = errors.OfflineModeIsEnabled("offline")
    return error


def unreached() -> Exception:
    error = errors.LocalEntryNotFoundError("not cached")
    error.__cause__ = http.ConnectError("Connection refused")
    return error


def test_an_existing_path_wins_over_a_repository(api: type[FakeApi], tmp_path: Path) -> None:
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert local_folder("someone/model") == Path("someone/model")
    assert not is_repository("someone/model") and not api.asked


@pytest.mark.parametrize(
    ("given", "revision", "asked"),
    [
        ("someone/model", None, ("someone/model", None)),
        ("someone/model@v1", None, ("someone/model", "v1")),
        ("someone/model@refs/pr/1", None, ("someone/model", "refs/pr/1")),
        ("someone/model@v1", "v2", ("someone/model", "v2")),
        ("gpt2", "0" * 40, ("gpt2", "0" * 40)),
    ],
)
def test_an_id_is_downloaded_at_its_revision(
    given: str, revision: str | None, asked: tuple[str, str | None], api: type[FakeApi], tmp_path: Path
) -> None:
    assert local_folder(given, revision=revision, token="a token", only=["*.json"]) == tmp_path
    assert api.asked == [(asked[0], {"revision": asked[1], "allow_patterns": ["*.json"]})]
    assert api.token == "a token" and is_repository(given)


@pytest.mark.parametrize(
    "given", ["./typo", "/no/such/folder", "a/b/c", "~/typo", "some one/model", "a/b@", "a/", "\n"]
)
def test_what_is_neither_path_nor_id_is_refused(given: str, api: type[FakeApi]) -> None:
    with pytest.raises(ValueError, match="neither an existing path nor a Hub id"):
        local_folder(given)
    assert not api.asked


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (refusal(errors.GatedRepoError, 403), "is gated. Accept its terms at https://huggingface.co/a/b, then run"),
        (refusal(errors.RevisionNotFoundError, 404), "a/b has no revision v1. Give a branch, a tag or a commit"),
        (refusal(errors.RepositoryNotFoundError, 404), "if it is private, run `hf auth login`"),
        (refusal(errors.HfHubHTTPError, 401), "if it is private, run `hf auth login`"),
        (refusal(errors.HfHubHTTPError, 403), "does not let your token read a/b. To use another token, run `hf auth"),
        (refusal(errors.HfHubHTTPError, 500), "did not return a/b: refused. Try again later, or give a folder"),
        (offline(), "switched off by HF_HUB_OFFLINE"),
        (unreached(), "did not return a/b: Connection refused. Try again later"),
        (http.ReadTimeout("timed out"), "did not return a/b: timed out. Try again later"),
        (OSError(28, "No space left on device", "/cache"), "could not be stored in /cache: No space left on device"),
        (errors.HFValidationError("cannot start with --"), "neither an existing path nor a Hub id: cannot start"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(outcome: Exception, said: str, api: type[FakeApi]) -> None:
    api.outcome = outcome
    with pytest.raises(ValueError) as caught:
        local_folder("a/b@v1")
    assert said in str(caught.value) and "\n" not in str(caught.value)
