"""Where a study keeps what it has measured: a folder per node, named by its key, on a disk or at any address."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from hf_compress.extras import extra
from hf_compress.report.report import REPORT_NAME
from hf_compress.study.grid.plan import Cell, Dense, digest
from hf_compress.study.run.results import Result

with extra("study", "A study"):
    import fsspec

logger = logging.get_logger(__name__)

CELL, DENSE, ERROR, MODEL = "cell.json", "dense.json", "error.txt", "model"


class Store:
    """A study's folder: `KEY/cell.json` and `KEY/report.json` of a finished cell, `KEY/error.txt` of one that failed.

    The report is written last: a cell that has one is finished. `KEY/dense.json`, the scores of a dense model, is
    likewise written after `KEY/model`.

    Args:
        address: a folder, or the URL of one that fsspec knows (`s3://...`). What runs share on one machine, such as
            claims, copies of dense models and the answers of teachers, is on its disk: in the folder itself, or for a
            URL in the folder for temporary files.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._remote = "://" in self.address
        self.local = (
            Path(tempfile.gettempdir()) / f"hf-compress-study-{digest(self.address)}"
            if self._remote
            else Path(address).resolve()
        )
        self.local.mkdir(parents=True, exist_ok=True)

    @property
    def teachers(self) -> Path:
        """The folder for the answers of teachers."""
        return self.local / "teachers"

    def scratch(self, key: str) -> Path:
        """A folder for a node that is being run; it is removed when that ends."""
        return self.local / key / "work"

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """A context in which nobody else on this disk runs the node; it is given False if somebody does already.

        The operating system lets go of the claim of a process that was killed.
        """
        (self.local / key).mkdir(exist_ok=True)
        lock = FileLock(self.local / key / "lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def listed(self, name: str) -> set[str]:
        """The keys of the nodes that have a file `name` (`CELL`, `DENSE`, `ERROR`, or a report)."""
        if not self._remote:
            return {path.parent.name for path in self.local.glob(f"*/{name}")}
        files, root = fsspec.core.url_to_fs(self.address)
        return {path.rsplit("/", 2)[1] for path in files.glob(f"{root.rstrip('/')}/*/{name}")}

    def is_done(self, node: Dense | Cell) -> bool:
        """Whether the node's result is there, and valid."""
        return (self.dense(node.key) if isinstance(node, Dense) else self.result(node.key)) is not None

    def result(self, key: str) -> Result | None:
        """The result of a cell; None if it is not finished, or what is there is broken."""
        cell, report = self._read(key, CELL), self._read(key, REPORT_NAME)
        if cell is None or report is None:
            return None
        try:
            return Result.from_dict(json.loads(cell) | {"report": json.loads(report)})
        except (ValueError, TypeError) as error:
            logger.warning(f"{self.address}/{key} holds no valid result, and is run again: {error}")
            return None

    def results(self) -> Iterator[Result]:
        """All finished cells, by key."""
        for key in sorted(self.listed(REPORT_NAME)):
            result = self.result(key)
            if result is not None:
                yield result

    def save(self, result: Result) -> None:
        """Writes a finished cell."""
        values = result.to_dict()
        report = values.pop("report")
        self._write(result.cell.key, CELL, json.dumps(values, indent=2) + "\n")
        self.forget_error(result.cell.key)
        self._write(result.cell.key, REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

    def dense(self, key: str) -> dict[str, float] | None:
        """The scores of a dense model; None if it is not there."""
        text = self._read(key, DENSE)
        return None if text is None else json.loads(text)

    def model(self, key: str) -> Path:
        """A folder on this machine with the weights of a dense model, fetched if they are elsewhere."""
        folder = self.local / key / MODEL
        if self._remote:
            (self.local / key).mkdir(exist_ok=True)
            with FileLock(self.local / key / "fetching"):
                if not folder.is_dir():
                    files, root = fsspec.core.url_to_fs(f"{self.address}/{key}/{MODEL}")
                    partial = folder.with_name("fetched")
                    shutil.rmtree(partial, ignore_errors=True)
                    files.get(root, str(partial), recursive=True)
                    partial.replace(folder)
        return folder

    def save_dense(self, key: str, model: Path, scores: Mapping[str, float]) -> None:
        """Moves the weights of a dense model here, and writes its scores."""
        folder = self.local / key / MODEL
        shutil.rmtree(folder, ignore_errors=True)
        model.replace(folder)
        if self._remote:
            files, root = fsspec.core.url_to_fs(f"{self.address}/{key}/{MODEL}")
            if files.exists(root):  # Of an attempt that was killed; it would be copied into.
                files.rm(root, recursive=True)
            files.put(str(folder), root, recursive=True)
        self.forget_error(key)
        self._write(key, DENSE, json.dumps(scores, indent=2) + "\n")

    def forget_dense(self, key: str) -> None:
        """Removes a dense model; its scores go first, or they would promise weights that are not there."""
        self._remove(key, DENSE)
        shutil.rmtree(self.local / key / MODEL, ignore_errors=True)
        if self._remote:
            files, root = fsspec.core.url_to_fs(f"{self.address}/{key}/{MODEL}")
            if files.exists(root):
                files.rm(root, recursive=True)

    def error(self, key: str) -> str | None:
        """The traceback that a node failed with; None if it did not."""
        return self._read(key, ERROR)

    def save_error(self, key: str, traceback: str) -> None:
        """Keeps the traceback of a node that failed."""
        self._write(key, ERROR, traceback)

    def forget_error(self, key: str) -> None:
        """Lets a node that failed be run again."""
        self._remove(key, ERROR)

    def _read(self, key: str, name: str) -> str | None:
        try:
            if not self._remote:
                return (self.local / key / name).read_text("utf-8")
            files, path = fsspec.core.url_to_fs(f"{self.address}/{key}/{name}")
            content: Any = files.cat_file(path)
            return str(content, "utf-8")
        except FileNotFoundError:
            return None

    def _write(self, key: str, name: str, text: str) -> None:
        """Writes a file that is there as a whole or not at all, as it is by itself in a store of objects."""
        if self._remote:
            files, path = fsspec.core.url_to_fs(f"{self.address}/{key}/{name}")
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.pipe_file(path, text.encode())
            return
        path = self.local / key / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{name}.partial")
        partial.write_text(text, "utf-8")
        partial.replace(path)

    def _remove(self, key: str, name: str) -> None:
        if not self._remote:
            (self.local / key / name).unlink(missing_ok=True)
            return
        files, path = fsspec.core.url_to_fs(f"{self.address}/{key}/{name}")
        if files.exists(path):
            files.rm_file(path)
