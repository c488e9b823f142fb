"""A Hub that answers strangely does no harm: one sentence, nothing half-published, no token shown, no long wait."""

import threading
from pathlib import Path

import pytest

from tests.hub import pushing
from tests.hub.accounts import GOOD_TOKEN
from tests.hub.faults import Fault, gateway, lost, slow, status
from tests.hub.local import LocalHub
from tests.hub.pushing import Ran

ESCAPE = "\x1b[2J\x1b]0;title\x07"


def push(hub: LocalHub, folder: Path, repo_id: str = "me/x", *options: str) -> Ran:
    return pushing.run(hub, ["push", folder, repo_id, *options], token=GOOD_TOKEN)


def check_sentence(ran: Ran) -> None:
    assert ran.status == 1, ran.said
    assert "Traceback" not in ran.said
    assert ran.said.count("Error: ") == 1, ran.said
    assert GOOD_TOKEN not in ran.said


def check_empty(hub: LocalHub) -> None:
    assert not hub.has("me/x") or not hub.repository("me/x").files()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["whoami", "repos/create", "GET /api/models", "/preupload/", "objects/batch"])
def test_a_page_of_html_instead_of_json_is_no_traceback(
    local_hub: LocalHub, folders: dict[str, Path], where: str
) -> None:
    local_hub.faults(gateway(where, 200))
    ran = push(local_hub, folders["finished"])
    if ran.status != 0:  # A push need not ask everything.
        check_sentence(ran)
        check_empty(local_hub)


@pytest.mark.slow
def test_what_the_hub_says_cannot_steer_the_terminal(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    said = Fault("/commit/", "status", status=403, message=f"No right {ESCAPE} here", headers={"X-Error-Message": ""})
    local_hub.faults(said)
    ran = push(local_hub, folders["finished"])
    check_sentence(ran)
    assert "\x1b" not in ran.said and "\x07" not in ran.said
    check_empty(local_hub)


@pytest.mark.slow
def test_a_hub_that_repeats_the_token_does_not_print_it(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    local_hub.faults(status("repos/create", 403, message=f"The token {GOOD_TOKEN} may not do that"))
    check_sentence(push(local_hub, folders["finished"]))


@pytest.mark.slow
def test_a_renamed_repository_gets_the_model(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    assert push(local_hub, folders["earlier"]).status == 0
    local_hub.move("me/x", "me/y")
    ran = push(local_hub, folders["finished"])
    assert ran.status in (0, 1) and "Traceback" not in ran.said
    history = local_hub.repository("me/y").history()
    assert not local_hub.has("me/x"), "no second repository under the old name"
    if ran.status == 0:
        assert len(history) == 2 and "onnx/model_quantized.onnx" not in local_hub.repository("me/y").files()
    else:
        assert len(history) == 1 and "me/y" in ran.said


@pytest.mark.slow
def test_a_hub_that_asks_for_a_long_wait_is_told_no(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    local_hub.faults(status("/commit/", 429, Retry_After="86400"))
    ran = push(local_hub, folders["finished"])
    check_sentence(ran)
    assert ran.seconds < 120


@pytest.mark.slow
def test_an_unreachable_hub_is_a_sentence(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    ran = pushing.run(local_hub, ["push", folders["finished"], "me/x"], token=GOOD_TOKEN, environment=nobody)
    check_sentence(ran)
    offline = {"HF_HUB_OFFLINE": "1"}
    ran = pushing.run(local_hub, ["push", folders["finished"], "me/x"], token=GOOD_TOKEN, environment=offline)
    check_sentence(ran)
    assert "HF_HUB_OFFLINE" in ran.said


@pytest.mark.slow
def test_a_slow_hub_is_waited_for(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    local_hub.faults(slow(".", 0.3))
    ran = push(local_hub, folders["finished"])
    assert ran.status == 0, ran.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", b"[" * 200_000),
        ("report.json", b'{"schema": "hf_compress.report/1", "files": {"../../etc/passwd": {}, "LICENSE/": 3}}'),
        ("report.json", b'{"schema": "hf_compress.report/1", "files": ["LICENSE"]}'),
        ("report.json", b"\xff\xfe\x00"),
        ("README.md", b"---\n" + b"[" * 5_000 + b"\n---\n"),
        ("README.md", b"---\na: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (98 + i, 98 + i, *[97 + i] * 9) for i in range(9)
        ) + b"tags: *j\n---\n# Mine\n"),
        ("README.md", b"\xff\xfe\x00 not text"),
        ("README.md", b"<!-- hf_compress: end -->\n# Mine\n<!-- hf_compress: begin -->\n"),
        ("README.md", b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n# Mine\r\n"),
    ],
    ids=["deep", "paths", "list", "binary", "deep card", "bomb", "binary card", "marks", "windows"],
)  # fmt: skip
def test_a_strange_repository_neither_hangs_nor_breaks(
    local_hub: LocalHub, folders: dict[str, Path], name: str, content: bytes
) -> None:
    """What a push reads in the repository may hold anything: it is replaced, or the push is refused in a sentence."""
    local_hub.add("me/x", {name: content, "LICENSE": b"MIT"})
    before = local_hub.repository("me/x").files()
    ran = push(local_hub, folders["finished"])
    if ran.status != 0:
        check_sentence(ran)
        assert local_hub.repository("me/x").files() == before
        ran = push(local_hub, folders["finished"], "me/x", "--replace")
    assert ran.status == 0, ran.said
    assert local_hub.repository("me/x").files()["LICENSE"] == b"MIT"
    assert len(local_hub.repository("me/x").history()) == 2


@pytest.mark.slow
def test_two_pushes_at_once_never_mix(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    """Both look at the empty repository; the repository then holds one of the folders, whole."""
    local_hub.faults(slow("/preupload/", 1.0))
    ends: dict[str, Ran] = {}
    names = ("finished", "earlier")
    threads = [
        threading.Thread(target=lambda name=name: ends.update({name: push(local_hub, folders[name])}))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = {path: content for path, content in local_hub.repository("me/x").files().items() if path != "README.md"}
    folder = {
        name: {
            path.relative_to(folders[name]).as_posix(): path.read_bytes()
            for path in folders[name].rglob("*")
            if path.is_file() and path.name != "README.md"
        }
        for name in names
    }
    assert held in folder.values()
    assert any(end.status == 0 for end in ends.values()), ends
    for end in ends.values():
        assert "Traceback" not in end.said
    assert len(local_hub.repository("me/x").history()) == sum(end.status == 0 for end in ends.values())


@pytest.mark.slow
def test_a_commit_in_between_is_kept(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    """Somebody adds a file while the push uploads."""
    local_hub.faults(slow("/commit/", 1.0))
    local_hub.add("me/x", {"LICENSE": b"MIT"})
    pushed: list[Ran] = []
    thread = threading.Thread(target=lambda: pushed.append(push(local_hub, folders["finished"])))
    thread.start()
    pushing.wait(lambda: any("/commit/" in request.line for request in local_hub.requests), 60)
    local_hub.add("me/x", {"NOTICE": b"kept"})
    thread.join()
    assert pushed[0].status == 0, pushed[0].said
    assert local_hub.repository("me/x").files()["NOTICE"] == b"kept"


@pytest.mark.slow
def test_the_answers_of_all_calls_may_be_lost(local_hub: LocalHub, folders: dict[str, Path]) -> None:
    local_hub.faults(lost("repos/create"), lost("/preupload/"), lost("PUT /__lfs"), lost("/commit/", 2))
    ran = push(local_hub, folders["finished"])
    assert ran.status == 0, ran.said
    assert len(local_hub.repository("me/x").history()) == 1
