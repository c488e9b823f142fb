"""A table of a study: rows with columns, written as CSV, Parquet and Markdown."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.extras import extra

LOW, HIGH = "_low", "_high"


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in the rows, its heading, and how numbers are written; None is as they are.

    With `interval` the rows have the ends of an interval too, under the key with `_low` and `_high` behind it, both
    None where there is none. `beside` is the key of a remark that follows the number.
    """

    key: str
    heading: str
    form: str | None = None
    interval: bool = False
    beside: str | None = None

    def values(self) -> list[str]:
        """Under which a row has the column's values."""
        ends = [self.key + LOW, self.key + HIGH] if self.interval else []
        return [self.key, *ends, *([self.beside] if self.beside else [])]

    def text(self, row: Mapping[str, Any]) -> str:
        """What stands in the table; a missing number is said to be missing."""
        value = row[self.key]
        if value is None or self.form is None:
            return "" if value is None else str(value)
        said = format(value, self.form)
        if self.interval and row[self.key + LOW] is not None:
            said += f" ({row[self.key + LOW]:{self.form}} to {row[self.key + HIGH]:{self.form}})"
        return f"{said} {row[self.beside]}" if self.beside and row[self.beside] else said


@dataclass(frozen=True)
class Table:
    """Rows under columns; `note` says how to read them."""

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]

    def save(self, folder: Path) -> None:
        """Writes the table into `folder` as NAME.csv and NAME.parquet, numbers unrounded."""
        with extra("study", "A Parquet file"):
            import pyarrow
            from pyarrow import parquet

        names = [key for column in self.columns for key in column.values()]
        with (folder / f"{self.name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        parquet.write_table(
            pyarrow.table({name: [row[name] for row in self.rows] for name in names}), folder / f"{self.name}.parquet"
        )

    def markdown(self) -> str:
        """The table in Markdown, with its note below."""
        lines = ["| " + " | ".join(column.heading for column in self.columns) + " |"]
        lines.append("| " + " | ".join("---" if column.form is None else "---:" for column in self.columns) + " |")
        lines += ["| " + " | ".join(column.text(row) for column in self.columns) + " |" for row in self.rows]
        return "\n".join([*lines, "", self.note, ""])


def spread(key: str, value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None]:
    """The part of a row that a column with an interval reads."""
    low, high = interval or (None, None)
    return {key: value, key + LOW: low, key + HIGH: high}
