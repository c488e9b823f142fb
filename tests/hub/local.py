"""The local Hub as tests hold it: a server in a thread, its repositories, its faults, and clients for it."""

import os
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from huggingface_hub import HfApi

from tests.hub.accounts import GOOD_TOKEN
from tests.hub.api import Api
from tests.hub.faults import Fault
from tests.hub.repositories import File, Repository, is_large
from tests.hub.wire import Handler, Request

# Set by the tests' own process or by a developer; a process that talks to the local Hub must not inherit them.
UNSET = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
UNSET += ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_DISABLE_XET", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that a test kills break their connections."""


class LocalHub:
    """A Hub on a free port of this machine, for as long as the `with` block lasts.

    Example:
        >>> from tests.hub.local import LocalHub
        >>> with LocalHub() as hub:
        ...     _ = hub.add("me/notes", {"README.md": b"# Notes"})
        ...     print(hub.repository("me/notes").files())
        {'README.md': b'# Notes'}
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._api = Api()
        handler = type(
            "HubHandler",
            (Handler,),
            {
                "route": staticmethod(self._api.answer),
                "strike": staticmethod(self._strike),
                "note": staticmethod(self.requests.append),
            },
        )
        self._server = _Server(("127.0.0.1", port), handler)
        self.url = self._api.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._home = tempfile.TemporaryDirectory(prefix="local-hub-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._home.cleanup()

    def reset(self) -> None:
        """Forget all repositories, uploads, faults and requests."""
        with self._api.lock:
            self._api.reset()
            self._faults.clear()
            self.requests.clear()

    def faults(self, *faults: Fault) -> None:
        """Let these faults, and no others, happen from now on; they are made in `tests.hub.faults`."""
        with self._api.lock:
            self._faults[:] = faults

    def in_parts_of(self, size: int | None) -> None:
        """Ask for large files in parts of `size` bytes (LFS multipart); None asks for them whole."""
        self._api.multipart_bytes = size

    @property
    def stored(self) -> frozenset[str]:
        """The SHA-256 of all large files that were uploaded, whether or not a commit names them."""
        return frozenset(self._api.blobs)

    def has(self, repo_id: str, kind: str = "model") -> bool:
        return (kind, repo_id) in self._api.repositories

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        """The repository `repo_id`; `kind` is "model" or "dataset"."""
        return self._api.repositories[kind, repo_id]

    def move(self, repo_id: str, new: str, kind: str = "model") -> None:
        """Rename a repository; the old name leads to the new one, as on the Hub."""
        with self._api.lock:
            self._api.repositories[kind, new] = self._api.repositories.pop((kind, repo_id))
            self._api.repositories[kind, new].name = new
            self._api.moved[kind, repo_id] = new

    def add(
        self,
        repo_id: str,
        files: dict[str, bytes] | Path,
        kind: str = "model",
        *,
        private: bool = False,
        message: str = "Add files",
    ) -> Repository:
        """Put files, or all files of a folder, into a repository in one commit, past all rights and faults."""
        if isinstance(files, Path):
            found = (path for path in sorted(files.rglob("*")) if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        contents = {path: File(data, is_large(path, data[:512], len(data))) for path, data in files.items()}
        with self._api.lock:
            repository = self._api.repositories.get((kind, repo_id)) or Repository(repo_id, kind, private)
            self._api.repositories[kind, repo_id] = repository
            self._api.blobs |= {file.sha256: file.content for file in contents.values() if file.large}
            repository.commit("main", contents, (), message, repo_id.partition("/")[0])
        return repository

    def api(self, token: str | None = GOOD_TOKEN) -> HfApi:
        """A client of this Hub in this process."""
        return HfApi(endpoint=self.url, token=token or False)

    def environment(
        self, token: str | None = GOOD_TOKEN, *, xet: bool = False, home: Path | None = None
    ) -> dict[str, str]:
        """The environment of a process that talks to this Hub.

        Args:
            token: put into HF_TOKEN; None for nobody.
            xet: whether large files are uploaded through Xet instead of LFS.
            home: HF_HOME, the folder of caches. The default is a new, empty one.
        """
        home = home or Path(tempfile.mkdtemp(dir=self._home.name))
        kept = {name: value for name, value in os.environ.items() if name not in UNSET}
        found = kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        found |= {"HF_TOKEN": token} if token else {}
        # Without a limit, Xet repeats a request for many minutes.
        return found | ({"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"} if xet else {"HF_HUB_DISABLE_XET": "1"})

    def _strike(self, line: str) -> Fault | None:
        with self._api.lock:
            return next((fault for fault in self._faults if fault.strikes(line)), None)
