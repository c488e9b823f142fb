"""A table of a study, written as CSV, Parquet and Markdown."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOW, HIGH = "_low", "_high"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        key: key of the values in the rows.
        heading: text of the heading.
        form: format of numbers; None writes values as they are.
        interval: whether rows also have the ends of an interval, under the key + `_low` and `_high`.
        beside: key of a remark that follows the number.

    Example:
        >>> from hf_compress.study.report.tables import Column
        >>> Column("x", "x", ".1f", interval=True).text({"x": 1.0, "x_low": 0.5, "x_high": 2.0})
        '1.0 (0.5 to 2.0)'
    """

    key: str
    heading: str
    form: str | None = None
    interval: bool = False
    beside: str | None = None

    def values(self) -> list[str]:
        """Return the keys that the column reads from a row."""
        ends = [self.key + LOW, self.key + HIGH] if self.interval else []
        return [self.key, *ends, *([self.beside] if self.beside else [])]

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the text of a cell; empty if the value is missing."""
        value = row[self.key]
        if value is None or self.form is None:
            return "" if value is None else str(value)
        said = format(value, self.form)
        if self.interval and row[self.key + LOW] is not None:
            said += f" ({row[self.key + LOW]:{self.form}} to {row[self.key + HIGH]:{self.form}})"
        return f"{said} {row[self.beside]}" if self.beside and row[self.beside] else said


@dataclass(frozen=True)
class Table:
    """Rows under columns. `note` explains how to read them."""

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]

    def save(self, folder: Path) -> None:
        """Write the table to `folder` as NAME.csv and NAME.parquet, without rounding."""
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
        """Return the table in Markdown, with its note below; the note alone if there are no rows."""
        if not self.rows:
            return _inert(self.note) + "\n"
        lines = ["| " + " | ".join(column.heading for column in self.columns) + " |"]
        lines.append("| " + " | ".join("---" if column.form is None else "---:" for column in self.columns) + " |")
        lines += ["| " + " | ".join(_inert(column.text(row)) for column in self.columns) + " |" for row in self.rows]
        return "\n".join([*lines, "", _inert(self.note), ""])


def _inert(text: str) -> str:
    """Return text on one line that is neither HTML nor the end of a Markdown cell."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def spread(key: str, value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None]:
    """Return the part of a row that a column with an interval reads."""
    low, high = interval or (None, None)
    return {key: value, key + LOW: low, key + HIGH: high}
