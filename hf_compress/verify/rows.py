"""The rows that a model is scored on again: loaded from the dataset that its report names, or from another one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import errors

from hf_compress.failures import failures
from hf_compress.report.preprocessing import Preprocessing
from hf_compress.report.report import Report

ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]")


class NoRowsError(ValueError):
    """There are no rows to score a model on. The message says why, in a sentence."""


@dataclass(frozen=True)
class Data:
    """Which rows to score a model on. What is None is taken from the report.

    Args:
        dataset: a Hub id, or the path of a folder that `datasets.load_dataset` loads.
        config: its configuration.
        split: its split.
        revision: a commit, branch or tag of a Hub dataset.
        rows: how many rows, from the first one; all by default.

    Example:
        >>> from hf_compress.verify import Data
        >>> Data("nyu-mll/glue", "sst2", "validation", rows=100).rows
        100
    """

    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    rows: int | None = None

    @property
    def given(self) -> bool:
        """Whether the rows are other ones than those of the report, as far as names tell."""
        return any((self.dataset, self.config, self.split, self.revision))


@dataclass(frozen=True)
class Loaded:
    """A split, and the rows of it that count.

    Args:
        split: a `datasets.Dataset`.
        rows: the indices of the rows to score, in this order.
        name: what was loaded, in words.
    """

    split: Any
    rows: list[int]
    name: str


def load_rows(report: Report, data: Data, recorded: Sequence[int] | None, token: str | None = None) -> Loaded:
    """Load the split that `data` and `report` name, and return it with the rows to score.

    Args:
        report: names dataset, configuration, split and commit, where `data` does not.
        data: what to load instead.
        recorded: the indices in the split of the rows that the report's scores were measured on, if they are known.
        token: a Hub token.

    Raises:
        NoRowsError: the report names no dataset of the Hub, or it cannot be loaded.
    """
    facts = report.dataset
    name = data.dataset or facts.hub_id
    if name is None:
        raise NoRowsError(
            f"The rows of {facts.name} are not a dataset of the Hub. Name one with `--dataset`, an id or a folder."
        )
    if data.dataset is None and not ID.fullmatch(name):
        raise NoRowsError(f"The report names the dataset {name!r}, which is not a Hub id.")
    own = data.dataset is None or data.dataset == facts.hub_id
    config = data.config or (facts.config if own or data.config is None else None)
    split, first, last = _sliced(data.split or facts.eval_part or facts.eval_split)
    revision = data.revision or (facts.revision if own else None)
    loaded = _load(name, config, split, revision, token)
    rows = list(range(len(loaded)))[first:last]
    if not data.given and recorded is not None:
        rows = [index for index in recorded if index < len(loaded)]
        if len(rows) < len(recorded):
            raise NoRowsError(f"{name} has {len(loaded):,} rows in {split}, fewer than the report used.")
    elif data.split is None and recorded is not None and max(recorded, default=0) < len(loaded):
        rows = list(recorded)  # As far as is known, a copy of the same dataset.
    elif data.split is None and data.rows is None:
        rows = rows[: facts.eval_rows]
    at = f" at {revision[:12]}" if revision else ""
    said = " ".join(part for part in (name, config, split) if part)
    return Loaded(loaded, rows[: data.rows], f"{said}{at}")


def known_preprocessing(report: Report, loaded: Loaded) -> Preprocessing:
    """Return how the rows `loaded` become inputs, by `report`.

    Raises:
        NoRowsError: that is not known, or there are no rows with these columns.
    """
    preprocessing = report.dataset.preprocessing
    if preprocessing is None:
        reason = report.dataset.without_preprocessing or "The report does not say why."
        raise NoRowsError(f"The report records no preprocessing of the rows. {reason}")
    columns = [*preprocessing.columns, *([preprocessing.label_column] if preprocessing.label_column else [])]
    missing = [name for name in columns if name not in loaded.split.column_names]
    if missing:
        raise NoRowsError(
            f"{loaded.name} has no column {', '.join(missing)}, which the report's preprocessing reads. Its "
            f"columns are {', '.join(loaded.split.column_names)}."
        )
    if not loaded.rows:
        raise NoRowsError(f"{loaded.name} has no rows to score.")
    return preprocessing


def _load(name: str, config: str | None, split: str, revision: str | None, token: str | None) -> Any:
    """Return a split of a dataset.

    Raises:
        NoRowsError: it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, config, split=split, revision=revision, token=token)
    except failures() as error:
        raise NoRowsError(_said(name, error)) from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # Imported there from the HTTP client.
        raise NoRowsError(_said(name, error)) from error


def _said(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return f"{name} could not be loaded ({reason}). Check `--dataset`, `--config`, `--split` and `--data-revision`."


def _sliced(split: str) -> tuple[str, int | None, int | None]:
    """Return the name of a split, and the first and last row that `name[first:last]` takes."""
    found = SLICE.fullmatch(split)
    if found is None:
        return split, None, None
    return found[1], *(int(part) if part else None for part in found.groups()[1:])  # type: ignore[return-value]
