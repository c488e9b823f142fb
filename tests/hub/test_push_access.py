"""What is asked of the Hub before training: id, token, right to write, visibility, and what stands there."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from hf_compress.hub import check_access
from hf_compress.hub.preflight import check_right_to_write
from tests.hub.accounts import FINE_TOKEN, GOOD_TOKEN, NARROW_TOKEN, OTHER_TOKEN, READ_TOKEN, WRONG_TOKEN
from tests.hub.faults import drop, status
from tests.hub.local import LocalHub

OURS = {"report.json": b'{"schema": "hf_compress.report/1", "files": {"model.safetensors": {}}}'}
DENSE = {"pytorch_model.bin": b"dense", "README.md": b"# Mine"}


@pytest.mark.parametrize(
    ("repo_id", "token"),
    [
        ("me/new", GOOD_TOKEN), ("new", GOOD_TOKEN), ("team/new", GOOD_TOKEN), ("ME/new", GOOD_TOKEN),
        ("me/new", FINE_TOKEN), ("me/allowed", NARROW_TOKEN),
    ],
)  # fmt: skip
def test_whoever_may_write_passes_and_nothing_is_created(local_hub: LocalHub, repo_id: str, token: str) -> None:
    check_access(repo_id, token=token)
    assert {request.method for request in local_hub.requests} == {"GET"}


@pytest.mark.parametrize(
    ("repo_id", "token", "words"),
    [
        ("me/new", WRONG_TOKEN, "does not accept the token.*`hf auth login`"),
        ("me/new", READ_TOKEN, "may only read.*role `write`"),
        ("me/new", NARROW_TOKEN, "fine-grained token has no write access"),
        ("team/new", FINE_TOKEN, "fine-grained token has no write access.*of team"),
        ("google/new", GOOD_TOKEN, "repositories of me, team, club, not of google"),
        ("me/new", OTHER_TOKEN, "repositories of someone, not of me"),
        ("club/new", GOOD_TOKEN, "role `read` in club"),
    ],
)
def test_whoever_may_not_write_is_told_what_to_do(local_hub: LocalHub, repo_id: str, token: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        check_access(repo_id, token=token)
    assert token not in str(error.value)


@pytest.mark.parametrize(
    "repo_id",
    ["", "a/b/c", "some one/small", "-", "me/modèle", "me/a--b", "me/x.git", "https://hub/me/x", "me/" + "a" * 97],
)
def test_a_malformed_id_is_refused_without_a_request(local_hub: LocalHub, repo_id: str) -> None:
    with pytest.raises(ValueError, match="`repo_id` must be of the form owner/name"):
        check_access(repo_id, token=GOOD_TOKEN)
    assert not local_hub.requests


def test_an_id_that_holds_a_secret_is_refused_unprinted(local_hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="`repo_id` would be public") as error:
        check_access(f"me/{GOOD_TOKEN}", token=GOOD_TOKEN)
    assert GOOD_TOKEN not in str(error.value)
    assert not local_hub.requests


@pytest.mark.parametrize("revision", ["", "a b", "-x", "a..b", "x.lock", "refs/heads/x", "refs/pr/x", "f" * 40, "@"])
def test_a_revision_that_takes_no_commit_is_refused(local_hub: LocalHub, revision: str) -> None:
    with pytest.raises(ValueError, match="`--revision` must be the name of a branch"):
        check_access("me/new", revision=revision, token=GOOD_TOKEN)


def test_a_pull_request_against_another_branch_is_refused(local_hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="`--create-pr` opens a pull request against main"):
        check_access("me/new", revision="v1", create_pr=True, token=GOOD_TOKEN)


def test_anyone_may_propose_to_a_repository_that_exists(local_hub: LocalHub) -> None:
    local_hub.add("me/there", {"LICENSE": b"MIT"})
    check_access("me/there", create_pr=True, token=OTHER_TOKEN)
    with pytest.raises(ValueError, match="A pull request needs a repository"):
        check_access("me/missing", create_pr=True, token=OTHER_TOKEN)


@pytest.mark.parametrize("is_private", [True, False])
def test_visibility_must_agree_with_what_is_there(local_hub: LocalHub, is_private: bool) -> None:
    local_hub.add("me/there", {"LICENSE": b"MIT"}, private=is_private)
    check_access("me/there", token=GOOD_TOKEN)
    check_access("me/there", private=is_private, token=GOOD_TOKEN)
    with pytest.raises(ValueError, match=f"me/there is {'private' if is_private else 'public'}"):
        check_access("me/there", private=not is_private, token=GOOD_TOKEN)


def test_a_repository_with_another_model_is_refused(local_hub: LocalHub) -> None:
    local_hub.add("me/there", DENSE)
    with pytest.raises(ValueError, match=r"files of another model.*pytorch_model\.bin"):
        check_access("me/there", token=GOOD_TOKEN)


def test_a_repository_with_an_earlier_push_passes(local_hub: LocalHub) -> None:
    local_hub.add("me/there", {**OURS, "model.safetensors": b"\0ours", "LICENSE": b"MIT"})
    check_access("me/there", token=GOOD_TOKEN)


def test_there_must_be_a_token(local_hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="there is none. Run `hf auth login`"):
        check_access("me/new")


def test_a_switched_off_hub_is_named() -> None:
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE. Unset that variable"):
        check_access("me/new", token=GOOD_TOKEN)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that would have taken place."""
    found: list[float] = []
    monkeypatch.setattr("hf_compress.hub.patience.time.sleep", found.append)
    return found


def test_waits_double_and_end(local_hub: LocalHub, waits: list[float]) -> None:
    local_hub.faults(status("whoami", 503))
    with pytest.raises(ValueError, match=r"The Hub does not work now \(the Hub answered 503: injected\)"):
        check_access("me/new", token=GOOD_TOKEN)
    assert waits == [1, 2, 4, 8, 16]


def test_the_hub_says_how_long_to_wait(local_hub: LocalHub, waits: list[float]) -> None:
    local_hub.faults(status("whoami", 429, 1, Retry_After="7"), drop("GET /api/models/me/new", 1))
    check_access("me/new", token=GOOD_TOKEN)
    assert waits == [7, 1]


@pytest.mark.parametrize(
    "header",
    [
        {"Retry-After": "200"},
        {"Retry-After": "in 200 s, as a date"},
        {"RateLimit": '"api";r=0;t=200'},
    ],
)
def test_the_limit_of_the_hub_is_waited_for(local_hub: LocalHub, waits: list[float], header: dict[str, str]) -> None:
    if header.get("Retry-After", "").endswith("date"):
        header = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=200))}
    local_hub.faults(status("whoami", 429, 1, **header))
    check_access("me/new", token=GOOD_TOKEN)
    assert 100 < waits[0] <= 200


def test_a_wait_that_is_too_long_is_not_begun(local_hub: LocalHub, waits: list[float]) -> None:
    local_hub.faults(status("whoami", 429, Retry_After="3600"))
    with pytest.raises(ValueError, match="limits the number of requests.*Try again in 3600 s"):
        check_access("me/new", token=GOOD_TOKEN)
    assert waits == []


def test_what_does_not_pass_is_not_tried_again(local_hub: LocalHub, waits: list[float]) -> None:
    local_hub.faults(status("whoami", 403))
    with pytest.raises(ValueError, match="This token may not write"):
        check_access("me/new", token=GOOD_TOKEN)
    assert waits == []
    assert len(local_hub.requests) == 1


@pytest.mark.parametrize("auth", [{}, {"accessToken": None}, {"accessToken": {"role": "unheard of"}}])
def test_an_account_that_tells_no_role_is_not_refused(auth: dict[str, Any]) -> None:
    check_right_to_write("me/new", {"name": "me", "auth": auth})
    check_right_to_write("team/new", {"name": "me", "orgs": [{"name": "team"}], "auth": auth})
