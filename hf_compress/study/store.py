"""Where a study keeps what it has measured: a folder per node, named by its key; and all reports in one file."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import fsspec
import zstandard
from filelock import FileLock, Timeout
from transformers.utils import logging

from hf_compress.report import REPORT_NAME, SCHEMA, Report
from hf_compress.study.plan import Cell

logger = logging.get_logger(__name__)

CELL, DENSE, ERROR, MODEL = "cell.json", "dense.json", "error.txt", "model"
ZSTD = ".zst"


@dataclass(frozen=True)
class Result:
    """A finished cell: its report, and the seconds that it took in all, evaluation and files included."""

    cell: Cell
    report: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values; `report` is as `Report.to_dict` has it."""
        return {"cell": self.cell.to_dict(), "report": self.report, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The result that `to_dict` described.

        Raises:
            ValueError: it is another thing.
        """
        if not isinstance(values, dict) or set(values) != {"cell", "report", "seconds"}:
            raise ValueError("a result has `cell`, `report` and `seconds`, and nothing else.")
        if not isinstance(values["report"], dict) or values["report"].get("schema") != SCHEMA:
            raise ValueError(f"the report of a result must be of the schema {SCHEMA!r}.")
        return cls(Cell.from_dict(values["cell"]), values["report"], float(values["seconds"]))


class Store:
    """The folder of a study: `KEY/cell.json` and `KEY/report.json` of a finished cell, `KEY/error.txt` of a failed one.

    The report is written last: a cell that has one is finished. `KEY/dense.json`, the scores of a dense model, is
    likewise written after `KEY/model`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def teachers(self) -> Path:
        """The folder for the answers of teachers."""
        return self.folder / "teachers"

    def scratch(self, key: str) -> Path:
        """A folder for a node that is being run; it is removed when that ends."""
        return self.folder / key / "work"

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """A context in which nobody else runs the node; it is given False if somebody else does already.

        The operating system lets go of the claim of a process that was killed.
        """
        (self.folder / key).mkdir(exist_ok=True)
        lock = FileLock(self.folder / key / "lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def result(self, key: str) -> Result | None:
        """The result of a cell; None if it is not finished, or what is there is broken."""
        folder = self.folder / key
        try:
            return Result.from_dict(
                json.loads((folder / CELL).read_text("utf-8"))
                | {"report": json.loads((folder / REPORT_NAME).read_text("utf-8"))}
            )
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning(f"{folder} holds no valid result, and is run again: {error}")
            return None

    def save(self, result: Result) -> None:
        """Writes a finished cell."""
        folder = self.folder / result.cell.key
        values = result.to_dict()
        report = values.pop("report")
        _write(folder / CELL, json.dumps(values, indent=2) + "\n")
        (folder / ERROR).unlink(missing_ok=True)
        _write(folder / REPORT_NAME, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

    def dense(self, key: str) -> dict[str, float] | None:
        """The scores of a dense model; None if it is not there."""
        file = self.folder / key / DENSE
        return json.loads(file.read_text("utf-8")) if file.is_file() else None

    def model(self, key: str) -> Path:
        """The folder of a dense model's weights."""
        return self.folder / key / MODEL

    def save_dense(self, key: str, model: Path, scores: Mapping[str, float]) -> None:
        """Moves the weights of a dense model here, and writes its scores."""
        shutil.rmtree(self.model(key), ignore_errors=True)
        model.replace(self.model(key))
        (self.folder / key / ERROR).unlink(missing_ok=True)
        _write(self.folder / key / DENSE, json.dumps(scores, indent=2) + "\n")

    def forget_dense(self, key: str) -> None:
        """Removes a dense model; its scores go first, or they would promise weights that are not there."""
        (self.folder / key / DENSE).unlink(missing_ok=True)
        shutil.rmtree(self.model(key), ignore_errors=True)

    def error(self, key: str) -> str | None:
        """The traceback that a node failed with; None if it did not."""
        file = self.folder / key / ERROR
        return file.read_text("utf-8") if file.is_file() else None

    def save_error(self, key: str, traceback: str) -> None:
        """Keeps the traceback of a node that failed."""
        (self.folder / key).mkdir(exist_ok=True)
        _write(self.folder / key / ERROR, traceback)

    def forget_error(self, key: str) -> None:
        """Lets a node that failed be run again."""
        (self.folder / key / ERROR).unlink(missing_ok=True)

    def results(self) -> Iterator[Result]:
        """All finished cells, by key."""
        for file in sorted(self.folder.glob(f"*/{REPORT_NAME}")):
            result = self.result(file.parent.name)
            if result is not None:
                yield result


def collect(folder: str | Path, file: str | Path, also: Iterable[Result] = ()) -> int:
    """The number of results written to `file`: those in the folder of a study, and those `also` that are not there.

    One JSON object a line, ordered by key so that the same results are the same file; compressed if its name ends in
    `.zst`. The file may be at any address that fsspec knows.
    """
    results = {result.cell.key: result for result in [*also, *Store(folder).results()]}
    text = "".join(
        json.dumps(results[key].to_dict(), ensure_ascii=False, allow_nan=False) + "\n" for key in sorted(results)
    )
    content = text.encode()
    if str(file).endswith(ZSTD):
        content = zstandard.ZstdCompressor(level=19).compress(content)
    with fsspec.open(str(file), "wb") as stream:
        stream.write(content)
    return len(results)


def read_results(file: str | Path) -> list[Result]:
    """The results in a file that `collect` wrote.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        with fsspec.open(str(file), "rb") as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise ValueError(f"`--results` must be a file of results; there is none at {file}.") from error
    try:
        if str(file).endswith(ZSTD):
            content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
        return [Result.from_dict(json.loads(line)) for line in content.decode().splitlines() if line.strip()]
    except (ValueError, zstandard.ZstdError) as error:
        raise ValueError(
            f"{file} holds no results of a study: {error} `hf-compress study collect` writes one."
        ) from error


def reports(results: Iterable[Result]) -> list[Report]:
    """The reports of the results, decoded."""
    return [Report.from_dict(result.report) for result in results]


def _write(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
