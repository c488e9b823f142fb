"""The results of a study in one file: a line of JSON for each finished cell."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zstandard

from hf_compress.extras import extra
from hf_compress.report.report import SCHEMA
from hf_compress.study.grid.plan import Cell

with extra("study", "A study"):
    import fsspec

ZSTD = ".zst"


@dataclass(frozen=True)
class Result:
    """A finished cell: its report, and the seconds that it took in all, evaluation and files included.

    The report is as `Report.to_dict` has it: a study of thousands of cells need not decode those that it only counts.
    """

    cell: Cell
    report: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"cell": self.cell.to_dict(), "report": self.report, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The result that `to_dict` described.

        Raises:
            ValueError: it is another thing.
        """
        if not isinstance(values, dict) or set(values) != {"cell", "report", "seconds"}:
            raise ValueError("A result has `cell`, `report` and `seconds`, and nothing else.")
        if not isinstance(values["report"], dict) or values["report"].get("schema") != SCHEMA:
            raise ValueError(f"The report of a result must be of the schema {SCHEMA!r}.")
        return cls(Cell.from_dict(values["cell"]), values["report"], float(values["seconds"]))


def write_results(results: Iterable[Result], file: str | Path) -> int:
    """The number of results written to `file`, a path or any address that fsspec knows; each cell once, the last wins.

    They are ordered by key, so that the same results make the same file; compressed if its name ends in `.zst`.
    """
    by_key = {result.cell.key: result.to_dict() for result in results}
    lines = [json.dumps(by_key[key], ensure_ascii=False, allow_nan=False) + "\n" for key in sorted(by_key)]
    content = "".join(lines).encode()
    if str(file).endswith(ZSTD):
        content = zstandard.ZstdCompressor(level=19).compress(content)
    with fsspec.open(str(file), "wb") as stream:
        stream.write(content)
    return len(lines)


def read_results(file: str | Path) -> list[Result]:
    """The results in a file that `write_results` wrote.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        with fsspec.open(str(file), "rb") as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise ValueError(f"There is no file of results at {file}. `hf-compress study collect` writes one.") from error
    try:
        if str(file).endswith(ZSTD):
            content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
        return [Result.from_dict(json.loads(line)) for line in content.decode().splitlines() if line.strip()]
    except (ValueError, zstandard.ZstdError) as error:
        raise ValueError(f"{file} is no file of results: {error} `hf-compress study collect` writes one.") from error
