"""Pushing, with the real client against a small Hub on this machine."""

import base64
import json
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from hf_compress.hub.push import push
from hf_compress.report.card import SECTIONS, save_card
from hf_compress.report.report import Report
from hf_compress.report.section import Section

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass
class FakeHub:
    """What reached the server."""

    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A server that creates repositories and takes commits of small files, as the Hub's API does."""
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fake.tokens.add(self.headers.get("Authorization"))
            self.answer(self.reply(self.path.partition("?")[0], data))

        def reply(self, path: str, data: bytes) -> dict[str, Any] | None:
            if path == "/api/repos/create":
                fake.created.append(json.loads(data))
                return {"url": f"{fake.url}/someone/small", "name": "someone/small", "id": "1"}
            if path == "/api/validate-yaml":
                return {"errors": [], "warnings": []}
            if re.fullmatch(r"/api/models/someone/small/preupload/main", path):
                files = [entry["path"] for entry in json.loads(data)["files"]]
                return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]}
            if re.fullmatch(r"/api/models/someone/small/commit/main", path):
                lines = [json.loads(line) for line in data.splitlines()]
                added = {entry["value"]["path"]: entry["value"]["content"] for entry in lines[1:]}
                decoded = {name: base64.b64decode(content) for name, content in added.items()}
                fake.commits.append((lines[0]["value"]["summary"], decoded))
                return {"commitUrl": f"{fake.url}/someone/small/commit/{'0' * 40}", "commitOid": "0" * 40}
            return None

        def answer(self, reply: dict[str, Any] | None) -> None:
            body = json.dumps(reply).encode()
            self.send_response(404 if reply is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder, but for weights that are only as long as a report says."""
    path = tmp_path / "compressed"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(1000))
    (path / "config.json").write_text("{}")
    report = Report.load(GOLDEN)
    report.recipe.save(path / "recipe.json")
    replace(report, size=replace(report.size, packed_bytes=1000)).save(path)
    save_card(path)
    return path


def test_a_finished_folder_arrives_whole_in_one_commit(hub: FakeHub, folder: Path) -> None:
    url = push(folder, "someone/small", private=True, token="hf_secret")
    assert url == f"{hub.url}/someone/small"
    ((summary, added),) = hub.commits
    assert "kd+mp60+int8" in summary
    assert added == {path.name: path.read_bytes() for path in folder.iterdir()}
    (repository,) = hub.created
    # Which of the two depends on the version of the client.
    assert repository.get("visibility") == "private" or repository.get("private") is True
    assert hub.tokens == {"Bearer hf_secret"}


def test_hidden_files_stay_at_home(hub: FakeHub, folder: Path) -> None:
    (folder / ".env").write_text("SECRET=1")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes").write_text("mine")
    push(folder, "someone/small", token="hf_secret")
    assert not {name for name in hub.commits[0][1] if "notes" in name or name.startswith(".")}


@pytest.mark.parametrize("name", ["report.json", "README.md", "config.json", "model.safetensors", "size.png"])
def test_a_folder_that_lacks_a_file_is_not_pushed(hub: FakeHub, folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=re.escape(f"lacks {name}")):
        push(folder, "someone/small", token="hf_secret")
    assert not hub.created


def test_a_card_edited_by_hand_is_not_pushed(hub: FakeHub, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text("utf-8").replace("85.60", "95.60"), "utf-8")
    with pytest.raises(ValueError, match="edited"):
        push(folder, "someone/small", token="hf_secret")
    assert not hub.created


def test_weights_written_after_the_report_are_not_pushed(hub: FakeHub, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(1001))
    with pytest.raises(ValueError, match="1,001 bytes, but its report says 1,000"):
        push(folder, "someone/small", token="hf_secret")
    assert not hub.created


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "some one/small", "-"])
def test_a_malformed_repository_id_is_refused_offline(hub: FakeHub, folder: Path, repo_id: str) -> None:
    with pytest.raises(ValueError, match="`repo_id` must be of the form owner/name"):
        push(folder, repo_id, token="hf_secret")
    assert not hub.created


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        push(tmp_path / "nowhere", "someone/small")


def test_an_unreachable_hub_is_named_with_the_next_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="could not be pushed to someone/small.*`hf-compress push"):
        push(folder, "someone/small", token="hf_secret")
    assert (folder / "model.safetensors").is_file()


def test_a_card_of_an_older_template_is_not_pushed(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The words of this card are the same under both templates, so the text alone does not show its age.
    monkeypatch.setitem(SECTIONS, "empty", Section("empty", "Empty", 99, lambda report: {}, ""))
    with pytest.raises(ValueError, match="another version of the card's template") as error:
        push(folder, "someone/small", token="hf_secret")
    assert not hub.created
    *_, code = shlex.split(str(error.value).partition("run: ")[2])
    exec(code, {})
    push(folder, "someone/small", token="hf_secret")
    assert hub.created


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "logs/events"])
def test_a_folder_that_holds_the_token_is_not_pushed(
    hub: FakeHub, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_compress.hub.checking.READ_BYTES", 16)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    content = path.read_bytes() if path.is_file() else bytes(100)
    path.write_bytes(content[:-20] + b"hf_secret" + content[-11:])
    with pytest.raises(ValueError, match=re.escape(f"{name} holds the Hub token that is in use")):
        push(folder, "someone/small", token="hf_secret")
    assert not hub.created


def test_a_hidden_file_may_hold_the_token(hub: FakeHub, folder: Path) -> None:
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    push(folder, "someone/small", token="hf_secret")
    assert hub.created
