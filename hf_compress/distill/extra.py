"""Unlabelled texts that a teacher labels, as rows of the training set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from hf_compress.distill.made_rows import made_rows
from hf_compress.distill.row_form import Row, RowForm
from hf_compress.redaction import redact
from hf_compress.texts import PAIRS, SINGLE, filled, load_splits, text_columns, word_columns

OPTION = "distill_extra"
# What a tokenizer returns beside token ids, and the argument that makes it do so.
MADE = {
    "attention_mask": "return_attention_mask",
    "token_type_ids": "return_token_type_ids",
    "special_tokens_mask": "return_special_tokens_mask",
    "length": "return_length",
}


@dataclass(frozen=True)
class ExtraSource:
    """Where unlabelled texts are.

    Args:
        given: what the user gave: FILE, DATASET, DATASET:SPLIT or DATASET:CONFIG:SPLIT.
        name: the file, folder or Hub id.
        config: the configuration of the dataset.
        split: one of its splits; None for all of them.

    Example:
        >>> from hf_compress.distill.extra import ExtraSource
        >>> source = ExtraSource.of("nyu-mll/glue:qqp:test")
        >>> source.name, source.config, source.split
        ('nyu-mll/glue', 'qqp', 'test')
    """

    given: str
    name: str
    config: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, given: str) -> "ExtraSource":
        """Return the source that a value of `--distill_extra` names.

        Raises:
            ValueError: a part of the value is empty, or there are too many.
        """
        name, *parts = [given] if Path(given).expanduser().exists() else given.split(":")
        if not name.strip() or len(parts) > 2 or not all(part.strip() for part in parts):
            raise ValueError(
                f"`--{OPTION}` takes FILE, DATASET, DATASET:SPLIT or DATASET:CONFIG:SPLIT; got {given!r}. Name a file "
                "that exists, a folder or a Hub id."
            )
        return cls(given, name, parts[0] if len(parts) == 2 else None, parts[-1] if parts else None)

    def rows(self) -> list[Any]:
        """Return the rows of the source: of all splits, or of the one that is named.

        Raises:
            ValueError: they cannot be loaded, or there is no such split.
        """
        splits = load_splits(self.name, self.config, option=OPTION, configured="`DATASET:CONFIG:SPLIT`")
        if self.split is not None and self.split not in splits:
            raise ValueError(
                f"`--{OPTION} {self.given}`: {self.split} is not a split of the data, which has {', '.join(splits)}."
            )
        return list(splits.values()) if self.split is None else [splits[self.split]]

    @property
    def shown(self) -> str:
        """The source as others may read it."""
        return redact(Path(self.given).name if Path(self.given).expanduser().exists() else self.given)


def check_sources(given: Sequence[str]) -> None:
    """Check at the start of a run that unlabelled texts can be loaded. `datasets` keeps what it has loaded.

    Args:
        given: values of `--distill_extra`.

    Raises:
        ValueError: one cannot be loaded, or has no such split.

    Example:
        >>> from hf_compress.distill.extra import check_sources
        >>> check_sources(["no/such/file.txt"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: `--distill_extra no/such/file.txt` could not be loaded: there is no such file. ...
    """
    for source in map(ExtraSource.of, given):
        source.rows()


def extra_rows(
    source: ExtraSource, dataset: Any, form: RowForm, structure: Bool[np.ndarray, " tokens"], paired: bool
) -> list[Any]:
    """Return `datasets.Dataset`s of the texts of `source`, which only the teacher labels.

    They are tokenized as the training rows are, cut to the longest of these, and padded if these have one length.

    Args:
        dataset: the training rows, without format.
        structure: which tokens of the vocabulary stand around texts.
        paired: whether the training rows are pairs of texts.

    Raises:
        ValueError: the texts cannot be loaded, there are none, or they do not have the columns that the training rows
            need.
    """
    wanted = [name for name in dataset.column_names if name not in (*form.labels, form.head.main_input)]
    if missing := [name for name in wanted if name not in MADE]:
        raise ValueError(
            f"`--{OPTION}` cannot make {' and '.join(f'`{name}`' for name in missing)} of the training rows, which no "
            "tokenizer returns. Remove such columns (`Dataset.remove_columns`), or set "
            "`remove_unused_columns=True`."
        )
    special = bool(structure[form.trimmed(form.template)[form.head.main_input]].any())
    found = []
    for rows in source.rows():
        words = word_columns(rows) if form.head.kind == "token" else []
        columns = words if len(words) == 1 else _columns(source, rows, 1 + paired)
        kept = filled(rows, columns).select_columns(columns).with_format(None)
        options = {argument: name in wanted for name, argument in MADE.items()} | {
            "is_split_into_words": columns == words,
            "add_special_tokens": special,
            "truncation": "longest_first",
            "max_length": form.length,
        }

        def make(some: list[Row], _: list[int], columns: list[str] = columns, options: Any = options) -> list[Row]:
            encoded = form.tokenizer(*([row[name] for row in some] for name in columns), **options)
            made = [{name: encoded[name][number] for name in encoded} for number in range(len(some))]
            return [form.unlabelled(row, structure) for row in made]

        if len(kept):
            found.append(made_rows(kept, make, form, dataset, {"options": repr(options)}, "extra"))
    if not found:
        raise ValueError(f"`--{OPTION} {source.given}` has no row with text. Give other texts, or leave it out.")
    return found


def _columns(source: ExtraSource, rows: Any, number: int) -> list[str]:
    """Return the columns of one text or two, found by their types and usual names."""
    found = text_columns(rows)
    if len(found) == number:
        return found
    usual = [list(pair) for pair in PAIRS if set(pair) <= set(found)] if number == 2 else [[one] for one in SINGLE]
    for columns in usual:
        if set(columns) <= set(found):
            return columns
    if number == 2:
        need, names = "pairs of texts, so two columns of text are", " or ".join(" and ".join(pair) for pair in PAIRS)
    else:
        need, names = "single texts, so one column of text is", " or ".join(SINGLE)
    raise ValueError(
        f"`--{OPTION} {source.given}`: the training rows are {need} needed, but these rows have {len(found)} "
        f"({', '.join(found) or 'no text'}). Give rows with {'two' if number == 2 else 'one'}; of more, those named "
        f"{names} are taken."
    )
