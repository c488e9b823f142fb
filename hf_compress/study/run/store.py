"""The folder of a study: one folder per node, named by its key, on a disk or at a URL."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from hf_compress.extras import extra
from hf_compress.report import records
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.study.grid.plan import Cell, DenseModel, digest
from hf_compress.study.run.results import Result

with extra("study", "A study"):
    import fsspec

logger = logging.get_logger(__name__)

CELL_FILE, DENSE_FILE, ERROR_FILE, MODEL_FOLDER = "cell.json", "dense.json", "error.txt", "model"


class Store:
    """The folder of a study.

    A finished cell has `KEY/cell.json` and `KEY/report.json`; the report is written last. A dense model has
    `KEY/model` and then `KEY/dense.json` with its scores. A node that failed has `KEY/error.txt`.

    Args:
        address: a folder, or a URL that fsspec knows (`s3://...`). Claims, copies of dense models and cached
            answers of teachers are always on a local disk: in the folder itself, or, for a URL, in the folder for
            temporary files.

    Nothing is created before the first node runs.

    Raises:
        ValueError: the address is that of a file.

    Example:
        >>> from hf_compress.study.grid import DenseModel
        >>> from hf_compress.study.run import Store
        >>> store = Store("study")
        >>> store.is_done(DenseModel("a1b2", "tiny", None, "sst2", seed=1, training={}))
        False
        >>> list(store.results())
        []
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._remote = "://" in self.address
        self.local = (
            Path(tempfile.gettempdir()) / f"hf-compress-study-{digest(self.address)}"
            if self._remote
            else Path(address).resolve()
        )
        if self._remote:
            try:
                fsspec.core.url_to_fs(self.address)
            except ValueError as error:
                raise ValueError(f"{self.address} must be a folder or a URL that fsspec knows: {error}.") from error
        elif self.local.exists() and not self.local.is_dir():
            raise ValueError(f"{self.address} must be the folder of a study; it is a file.")

    @property
    def teachers(self) -> Path:
        """The folder that caches the answers of teachers."""
        return self.local / "teachers"

    def scratch(self, key: str) -> Path:
        """The temporary folder of a node while it runs."""
        return self.local / key / "work"

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """A context that claims a node; yields False if another process on this disk has claimed it.

        The operating system releases the claim of a process that was killed.
        """
        self._make_local()
        (self.local / key).mkdir(parents=True, exist_ok=True)
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
        """Return the keys of the nodes that have a file with this name."""
        if not self._remote:
            return {path.parent.name for path in self.local.glob(f"*/{name}")}
        files, root = fsspec.core.url_to_fs(self.address)
        return {path.rsplit("/", 2)[1] for path in files.glob(f"{root.rstrip('/')}/*/{name}")}

    def is_done(self, node: DenseModel | Cell) -> bool:
        """Whether the node has its own valid result."""
        if isinstance(node, DenseModel):
            return self.dense(node.key) is not None
        result = self.result(node.key)
        if result is None:
            return False
        # The same cell may have other names, for example after a model was renamed in the grid.
        named = replace(result.cell, model=node.model, teacher=node.teacher, recipe=node.recipe)
        if named != node:
            logger.warning(f"{self.address}/{node.key} has the result of another cell, so the cell runs again.")
        return named == node

    def result(self, key: str) -> Result | None:
        """Return the result of a cell; None if it is not finished or its files are invalid."""
        try:
            cell, report = self._read(key, CELL_FILE), self._read(key, REPORT_NAME)
            if cell is None or report is None:
                return None
            result = Result.from_dict(json.loads(cell) | {"report": json.loads(report)})
            Report.from_dict(result.report)
            if result.cell.key != key:
                raise ValueError(f"it is the cell {result.cell.key}.")
        except (ValueError, TypeError, RecursionError) as error:
            logger.warning(f"{self.address}/{key} has no valid result, so the cell runs again: {error}")
            return None
        return result

    def results(self) -> Iterator[Result]:
        """Yield all finished cells, by key."""
        for key in sorted(self.listed(REPORT_NAME)):
            result = self.result(key)
            if result is not None:
                yield result

    def save(self, result: Result) -> None:
        """Write a finished cell."""
        values = result.to_dict()
        report = values.pop("report")
        self._write(result.cell.key, CELL_FILE, json.dumps(values, indent=2) + "\n")
        self.forget_error(result.cell.key)
        self._write(result.cell.key, REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

    def dense(self, key: str) -> dict[str, float] | None:
        """Return the scores of a dense model; None if there is no valid one."""
        try:
            text = self._read(key, DENSE_FILE)
            if text is None:
                return None
            scores: dict[str, float] = records.decode(dict[str, float], json.loads(text), DENSE_FILE)
            self._check_weights(self.local / key / MODEL_FOLDER)
        except (ValueError, RecursionError) as error:
            logger.warning(f"{self.address}/{key} has no valid dense model, so it is trained again: {error}")
            return None
        return scores

    def model(self, key: str) -> Path:
        """Return a local folder with the weights of a dense model. Download it if it is elsewhere."""
        folder = self.local / key / MODEL_FOLDER
        if self._remote:
            (self.local / key).mkdir(parents=True, exist_ok=True)
            with FileLock(self.local / key / "fetching"):
                if not folder.is_dir():
                    files, root = fsspec.core.url_to_fs(f"{self.address}/{key}/{MODEL_FOLDER}")
                    partial = folder.with_name("fetched")
                    shutil.rmtree(partial, ignore_errors=True)
                    files.get(root, str(partial), recursive=True)
                    partial.replace(folder)
        return folder

    def save_dense(self, key: str, model: Path, scores: Mapping[str, float]) -> None:
        """Move the weights of a dense model into the store, and write its scores."""
        folder = self.local / key / MODEL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        model.replace(folder)
        shutil.rmtree(self.scratch(key), ignore_errors=True)  # Before the scores, after which nobody looks here again.
        if self._remote:
            files, root = fsspec.core.url_to_fs(f"{self.address}/{key}/{MODEL_FOLDER}")
            if files.exists(root):  # Left by an attempt that was killed; `put` would copy into it.
                files.rm(root, recursive=True)
            files.put(str(folder), root, recursive=True)
        self.forget_error(key)
        self._write(key, DENSE_FILE, json.dumps(scores, indent=2) + "\n")

    def forget_dense(self, key: str) -> None:
        """Remove a dense model. Remove its scores first, because they promise that the weights are there."""
        self._remove(key, DENSE_FILE)
        shutil.rmtree(self.local / key / MODEL_FOLDER, ignore_errors=True)
        if self._remote:
            files, root = fsspec.core.url_to_fs(f"{self.address}/{key}/{MODEL_FOLDER}")
            if files.exists(root):
                files.rm(root, recursive=True)

    def error(self, key: str) -> str | None:
        """Return the traceback of a node that failed; None if it did not."""
        return self._read(key, ERROR_FILE, errors="replace")

    def save_error(self, key: str, traceback: str) -> None:
        """Keep the traceback of a node that failed."""
        self._write(key, ERROR_FILE, traceback)

    def forget_error(self, key: str) -> None:
        """Remove the traceback of a node, so that it can run again."""
        self._remove(key, ERROR_FILE)

    def _make_local(self) -> None:
        """Make the folder on this disk. For a URL it has a predictable name in a shared place, so it must be ours."""
        self.local.mkdir(mode=0o700 if self._remote else 0o777, parents=True, exist_ok=True)
        if self._remote and (self.local.is_symlink() or self.local.stat().st_uid != os.getuid()):
            raise ValueError(f"{self.local} is a link or belongs to another user. Remove it, or set TMPDIR.")

    def _check_weights(self, folder: Path) -> None:
        """Check that a dense model has its files, each of the length that its header says.

        Raises:
            ValueError: a file is missing or cut.
        """
        if self._remote and not folder.exists():
            return  # It is downloaded when a cell needs it.
        if not folder.is_dir() or not any(folder.iterdir()):
            raise ValueError(f"{folder} has no files.")
        for file in folder.glob("*.safetensors"):
            try:
                with safe_open(file, "numpy"):
                    pass  # The reader compares the header with the length of the file.
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged: {error}") from error

    def _read(self, key: str, name: str, errors: str = "strict") -> str | None:
        try:
            if not self._remote:
                return (self.local / key / name).read_text("utf-8", errors)
            files, path = fsspec.core.url_to_fs(f"{self.address}/{key}/{name}")
            content: Any = files.cat_file(path)
            return str(content, "utf-8", errors)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def _write(self, key: str, name: str, text: str) -> None:
        """Write a whole file or nothing. At a URL, object stores do that themselves."""
        if self._remote:
            files, path = fsspec.core.url_to_fs(f"{self.address}/{key}/{name}")
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.pipe_file(path, text.encode())
            return
        path = self.local / key / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{name}.partial")
        partial.write_text(text, "utf-8")
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)

    def _remove(self, key: str, name: str) -> None:
        if not self._remote:
            path = self.local / key / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            return
        files, address = fsspec.core.url_to_fs(f"{self.address}/{key}/{name}")
        if files.exists(address):
            files.rm_file(address)
