"""A web site on this machine that hands jobs to Node or Chromium, and takes what they found."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "browser"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 240  # Seconds.
# Runs at the end of a page. SCRIPT sends to this site what it found there.
WATCH = """\
<script type="module">
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));
const until = async (reached) => { while (!reached()) await pause(20); };
const send = (found) => fetch("/found", { method: "POST", body: JSON.stringify(found) });
const said = (query) => document.querySelector(query)?.textContent;
try {
SCRIPT
} catch (error) {
    await send({ crashed: `${error.stack}` });
}
</script>
"""


class Site:
    """A folder with the example, its packages and the probe, served on this machine.

    Args:
        folder: where to make it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in (*EXAMPLE.glob("*.*"), *HERE.glob("probe.*")):
            shutil.copy(path, folder)
        if (EXAMPLE / "node_modules").is_dir():
            (folder / "node_modules").symlink_to(EXAMPLE / "node_modules")
        else:
            _install(folder)

    def in_node(self, jobs: dict[str, Any]) -> dict[str, Any]:
        """Return what Node finds."""
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        with self._served() as (address, found):
            command = [_program("node"), "probe.mjs", address]
            run = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)
            assert run.returncode == 0, run.stderr
        return dict(found[0])

    def in_chromium(self, jobs: dict[str, Any]) -> dict[str, Any]:
        """Return what Chromium finds."""
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        found = self.page("probe.html")
        assert "crashed" not in found, found
        return found

    def watch(self, page: str, script: str, query: str = "", *, before: str = "") -> dict[str, Any]:
        """Return what a script sends from a page of the example in Chromium.

        Args:
            page: its file.
            script: JavaScript that runs beside the page's own. It has `until`, `pause`, `said` and `send`.
            query: what the address says behind the question mark.
            before: HTML in front of all other scripts.
        """
        text = (EXAMPLE / page).read_text("utf-8").replace("<head>", f"<head>{before}")
        watching = WATCH.replace("SCRIPT", script)
        (self.folder / "watched.html").write_text(text.replace("</body>", f"{watching}</body>"), "utf-8")
        found = self.page(f"watched.html?{query}")
        assert "crashed" not in found, found
        return found

    def page(self, page: str) -> dict[str, Any]:
        """Return what a page of the site sends when Chromium shows it."""
        with self._served() as (address, found), _chromium(address + page):
            assert self._arrived.wait(PATIENCE), f"Chromium sent nothing from {page} in {PATIENCE} seconds"
        return dict(found[0])

    @contextmanager
    def _served(self) -> Iterator[tuple[str, list[Any]]]:
        found: list[Any] = []
        self._arrived = threading.Event()

        class Handler(SimpleHTTPRequestHandler):
            def do_POST(handler) -> None:
                found.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
                handler.send_response(204)
                handler.end_headers()
                self._arrived.set()

            def log_message(handler, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(self.folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", found
        finally:
            server.shutdown()
            server.server_close()


@contextmanager
def _chromium(address: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        process = subprocess.Popen(
            [_program(*CHROMIUM), *options, address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # Its children too, which it started in its own session.
            process.wait()


def _program(*names: str) -> str:
    """Return the path of the first of some programs that is installed; skip the test if there is none."""
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


def _install(folder: Path) -> None:
    """Install the packages of the example into `folder`; skip the test if the registry does not answer."""
    command: Sequence[str] = [_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        pytest.skip("the registry of npm does not answer")
    if run.returncode:
        pytest.skip(f"npm cannot install the packages of examples/browser: {run.stderr[-300:]}")
