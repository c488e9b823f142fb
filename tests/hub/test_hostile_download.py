"""Commands that read a model from the Hub end in a sentence, whatever the Hub does, and never in a wrong verdict."""

from pathlib import Path

import pytest

from tests.hub import pushing
from tests.hub.accounts import GOOD_TOKEN, OTHER_TOKEN, WRONG_TOKEN
from tests.hub.faults import Fault, drop, gateway, slow, status
from tests.hub.local import LocalHub
from tests.hub.pushing import Ran

pytestmark = pytest.mark.slow

# The exit status when nothing could be read: `verify` keeps 1 for "differs".
COMMANDS = [("verify", 2), ("inspect", 1)]


@pytest.fixture
def hub(local_hub: LocalHub, folders: dict[str, Path]) -> LocalHub:
    """A Hub that holds a finished folder in me/x, and the same in me/hidden, which is private."""
    local_hub.add("me/x", folders["finished"])
    local_hub.add("me/hidden", folders["finished"], private=True)
    return local_hub


def check_sentence(ran: Ran, expected: int) -> None:
    assert ran.status == expected, ran.said
    assert "Traceback" not in ran.said
    assert ran.said.count("Error: ") == 1, ran.said
    assert not any(token in ran.said for token in (GOOD_TOKEN, OTHER_TOKEN, WRONG_TOKEN))
    assert "\x1b" not in ran.said


FAULTS = {
    "500 for good": lambda: status("/resolve/", 500),
    "503 on the repository": lambda: status("GET /api/models", 503),
    "403 on a file": lambda: status("/resolve/", 403),
    "429 for good": lambda: status("GET", 429, Retry_After="1"),
    "html": lambda: gateway("GET /api/models", 200),
    "dropped": lambda: drop("GET"),
    "steering": lambda: status("GET /api/models", 403, message="No \x1b[2J right"),
}


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_that_fails_is_a_sentence(hub: LocalHub, command: str, expected: int, fault: str) -> None:
    made: Fault = FAULTS[fault]()
    if made.kind == "status" and "\x1b" in made.message:
        made.headers = {}
    hub.faults(made)
    check_sentence(pushing.run(hub, [command, "me/x"], token=GOOD_TOKEN), expected)


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
@pytest.mark.parametrize(
    ("repo_id", "token"),
    [
        ("me/nothing", GOOD_TOKEN),
        ("me/hidden", None),
        ("me/hidden", OTHER_TOKEN),
        ("me/x", WRONG_TOKEN),
        ("me/x@nowhere", GOOD_TOKEN),
        ("me/my model", GOOD_TOKEN),
        ("me/../x", GOOD_TOKEN),
    ],
)
def test_what_may_not_be_read_is_a_sentence(
    hub: LocalHub, command: str, expected: int, repo_id: str, token: str | None
) -> None:
    check_sentence(pushing.run(hub, [command, repo_id], token=token), expected)


@pytest.mark.parametrize("fault", [status("/resolve/", 503, 1), drop("GET /me/x/resolve", 1), slow("tree", 0.5)])
def test_a_passing_fault_changes_no_verdict(hub: LocalHub, fault: Fault) -> None:
    """The client may give up, which is status 2, or go on; the verdict is never another one."""
    undisturbed = pushing.run(hub, ["verify", "me/x"], token=None)
    hub.faults(fault)
    ran = pushing.run(hub, ["verify", "me/x"], token=None)
    if "Error: " in ran.said:
        check_sentence(ran, 2)
    else:
        assert ran.said == undisturbed.said


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "recipe.json"])
def test_other_bytes_on_the_hub_are_told(hub: LocalHub, name: str) -> None:
    content = bytearray(hub.repository("me/x").files()[name])
    content[-2] ^= 1
    hub.add("me/x", {name: bytes(content)})
    ran = pushing.run(hub, ["verify", "me/x"], token=None)
    assert ran.status == 1, ran.said
    assert name in ran.said
    assert "Traceback" not in ran.said
