"""Results of a study in one file, one line of JSON per finished cell."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import zstandard

from hf_compress.extras import extra
from hf_compress.report import records
from hf_compress.report.report import SCHEMA
from hf_compress.study.grid.answers import Answers
from hf_compress.study.grid.plan import Cell

with extra("study", "A study"):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

ZSTD = ".zst"
MAIN = "main"


@dataclass(frozen=True)
class Measured:
    """What was measured of a cell.

    Args:
        report: its report, as `Report.to_dict` returns it. Counting thousands of cells then needs no decoding.
        answers: its predictions by evaluation set, "main" and "extra"; None where they cannot be kept.
    """

    report: dict[str, Any]
    answers: dict[str, Answers | None]


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Args:
        cell: the cell.
        report: its report, as `Report.to_dict` returns it. Counting thousands of cells then needs no decoding.
        seconds: time of the whole node, evaluation and files included.
        answers: what it predicts for each row, by evaluation set.

    Example:
        >>> from hf_compress.study.grid import Identities, StudyGrid, make_plan
        >>> from hf_compress.study.run import Result
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> plan = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> cell = next(iter(plan.cells.values()))
        >>> result = Result(cell, report={"schema": "hf_compress.report/1"}, seconds=60.0)
        >>> Result.from_dict(result.to_dict()) == result
        True
    """

    cell: Cell
    report: dict[str, Any]
    seconds: float
    answers: dict[str, Answers] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        values = {"cell": self.cell.to_dict(), "report": self.report, "seconds": self.seconds}
        return values | ({"answers": records.encode(self.answers)} if self.answers else {})

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the result from what `to_dict` returned.

        Raises:
            ValueError: the values are not a result.
        """
        if not isinstance(values, dict) or set(values) - {"answers"} != {"cell", "report", "seconds"}:
            raise ValueError("A result must have `cell`, `report` and `seconds`, and may have `answers`.")
        if not isinstance(values["report"], dict) or values["report"].get("schema") != SCHEMA:
            raise ValueError(f"The report of a result must have the schema {SCHEMA!r}.")
        answers = records.decode(dict[str, Answers], values.get("answers", {}), "answers")
        return cls(Cell.from_dict(values["cell"]), values["report"], _seconds(values["seconds"]), answers)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"`seconds` of a result must be a number from 0; got {value!r}.")
    return float(value)


def decompressed(content: bytes) -> bytes:
    """Return the content of a zstd file.

    Raises:
        ValueError: the file is cut, or is not compressed by zstd.
    """
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        found = decompressor.decompress(content)
    except zstandard.ZstdError as error:
        raise ValueError(f"it is not compressed by zstd ({error}).") from error
    if not decompressor.eof:
        raise ValueError("it ends too early.")
    return found


def write_results(results: Iterable[Result], file: str | Path) -> int:
    """Write results to a file, ordered by key, and return how many. Of results with the same key the last one is kept.

    Args:
        results: the results.
        file: a path or URL; compressed if its name ends in `.zst`.

    Example:
        >>> from hf_compress.study.grid import Identities, StudyGrid, make_plan
        >>> from hf_compress.study.run import Result, write_results
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> plan = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> cell = next(iter(plan.cells.values()))
        >>> result = Result(cell, report={"schema": "hf_compress.report/1"}, seconds=60.0)
        >>> write_results([result, result], "results.jsonl")
        1
    """
    by_key = {result.cell.key: result.to_dict() for result in results}
    lines = [json.dumps(by_key[key], ensure_ascii=False, allow_nan=False) + "\n" for key in sorted(by_key)]
    content = "".join(lines).encode()
    if str(file).endswith(ZSTD):
        content = zstandard.ZstdCompressor(level=19).compress(content)
    files, path = fsspec.core.url_to_fs(str(file))
    if isinstance(files, LocalFileSystem):
        # Written to another file first, so that a full disk does not destroy the earlier results.
        partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    else:
        files.pipe_file(path, content)
    return len(lines)


def read_results(file: str | Path) -> list[Result]:
    """Return the results in a file that `write_results` wrote.

    Raises:
        ValueError: the file is missing, or holds something else.

    Example:
        >>> from hf_compress.study.grid import Identities, StudyGrid, make_plan
        >>> from hf_compress.study.run import Result, read_results, write_results
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> plan = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> cell = next(iter(plan.cells.values()))
        >>> result = Result(cell, report={"schema": "hf_compress.report/1"}, seconds=60.0)
        >>> _ = write_results([result], "results.jsonl.zst")
        >>> read_results("results.jsonl.zst") == [result]
        True
    """
    try:
        with fsspec.open(str(file), "rb") as stream:
            content = stream.read()
    except IsADirectoryError as error:
        raise ValueError(f"{file} is a folder, not a file of results.") from error
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no file of results at {file}. Write one with `hf-compress study collect`."
        ) from error
    try:
        if str(file).endswith(ZSTD):
            content = decompressed(content)
        return [Result.from_dict(json.loads(line)) for line in content.decode().split("\n") if line.strip()]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is not a file of results: {error} Write one with `hf-compress study collect`."
        ) from error
