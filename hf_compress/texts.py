"""Texts of a file, a folder or a dataset of the Hub: their splits, and the columns that hold text."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_compress.failures import failures

# Files by their ending, and the loader of `datasets` that reads them.
FILES = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Columns that hold a pair of texts, by the names that datasets give them.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
)
SINGLE = ("text", "sentence", "content")
# Columns that hold no text, though their values may be words.
LABELS = ("label", "labels")
WORDS = 3  # A name of a column with more words may be a text.
EMPTY = "corresponds to no data"  # What `datasets` says of a file without rows.


def load_splits(
    name: str, config: str | None = None, *, option: str, configured: str, token: str | None = None
) -> dict[str, Any]:
    """Return the splits of a file, a folder or a dataset of the Hub, by name.

    Args:
        name: a file (.txt, .csv, .tsv, .json, .jsonl, .parquet), a folder that `datasets.load_dataset` loads, or an id
            of the Hub.
        config: the configuration of the dataset.
        option: the flag that it was given to, for the errors.
        configured: how users name a configuration, for the errors.
        token: a Hub token.

    Raises:
        ValueError: it cannot be loaded.
    """
    from datasets import load_dataset

    path = Path(name).expanduser()
    reader = FILES.get(path.suffix.lower()) if path.is_file() else None
    if path.is_file() and reader is None:
        raise ValueError(f"`--{option} {name}` must end in {', '.join(FILES)}, or be a dataset; got {path.suffix!r}.")
    if path.is_file() and config is not None:
        raise ValueError(f"`--{option} {name}` is a file, which has no configurations; got {config!r}. Leave it out.")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"`--{option} {name}` is an empty file.")
    try:
        if reader is None:
            found = load_dataset(name, config, token=token)
        else:
            options = {"encoding": "utf-8-sig"} if reader == "text" else {}  # Windows puts a mark before UTF-8.
            options |= {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
            found = load_dataset(reader, data_files=str(path), **options)
            _warn_of_header(name, found, option)
    except failures() as error:
        if EMPTY in str(error):
            raise ValueError(f"`--{option} {name}` has no rows.") from error
        said = _said(error) if path.exists() or path.suffix.lower() not in FILES else "there is no such file"
        raise ValueError(f"`--{option} {name}` could not be loaded: {said}. {_step(said, configured)}") from error
    return dict(found)


def _warn_of_header(name: str, found: Any, option: str) -> None:
    """Warn if a file of columns seems to have no line with their names: `datasets` takes its first line for that."""
    names = [column for rows in found.values() for column in rows.column_names if len(column.split()) > WORDS]
    if names and Path(name).suffix.lower() in (".csv", ".tsv"):
        warnings.warn(
            f"`--{option} {name}`: the first line names the columns, one of them {names[0][:60]!r}. If that is a "
            "text, it is lost: put a line with names such as `text` before it, or give a .txt file with one text a "
            "line.",
            stacklevel=3,
        )


def _said(error: Exception) -> str:
    """Return what an error of `datasets` says, or what caused it if it says only that there was an error."""
    from datasets.exceptions import DatasetGenerationError

    vague = type(error) is DatasetGenerationError and isinstance(error.__cause__, Exception)
    return (
        " ".join(str(error.__cause__ if vague else error).split()).partition(" Example of usage")[0][:300].rstrip(".!")
    )


def _step(said: str, configured: str) -> str:
    """Return what to do after the error `said`."""
    if "BuilderConfig" in said or said.startswith("Config name is missing"):
        return f"Name one of its configurations: {configured}."
    if "save_to_disk" in said:
        return "Write it with `Dataset.to_parquet`, and give that file."
    return "Give a file in UTF-8, a folder or a Hub id."


def is_text(feature: Any) -> bool:
    """Return whether a column holds texts."""
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def word_columns(rows: Any) -> list[str]:
    """Return the columns of `rows` that hold lists of words."""
    return [name for name, feature in rows.features.items() if is_text(getattr(feature, "feature", None))]


def text_columns(rows: Any) -> list[str]:
    """Return the columns of `rows` that hold texts. Labels are none, although they may be words."""
    return [name for name, feature in rows.features.items() if is_text(feature) and name not in LABELS]


def filled(rows: Any, columns: Sequence[str]) -> Any:
    """Return the rows that have something in every column; the same object if all have."""
    kept = [
        number
        for number, values in enumerate(zip(*(rows[column] for column in columns), strict=True))
        if all(value is not None and (value.strip() if isinstance(value, str) else value) for value in values)
    ]
    return rows if len(kept) == len(rows) else rows.select(kept)
