"""Finds by trial how a script turned the rows of its evaluation set into inputs of the model."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from transformers import Trainer

from hf_compress.models.examples import SHAPES
from hf_compress.models.heads import Head, bare, find_head
from hf_compress.report.preprocessing import KINDS, Preprocessing, resampled
from hf_compress.report.source import raw_rows

HEADS = ("sequence", "token", "image", "audio")
STRATEGIES = ("longest_first", "only_second", "only_first")
PROBED = 8  # Rows that decide quickly that a column is not the one.
# Texts, and pictures or sounds, that an accepted preprocessing reproduces: the longest ones, and others evenly spread.
COMPARED, COMPARED_MEDIA, LONGEST = 2000, 32, 500
SEARCHED = 50_000  # Rows of a split in which the evaluation rows are looked for, if they are not its first ones.
TOLERANCE = 1e-4  # Of pixels and samples.
CLASSES = 1000  # Different labels that a mapping may have.


@dataclass(frozen=True)
class Found:
    """What the trial found.

    Args:
        preprocessing: reproduces the inputs and labels of the rows; None if none was found.
        reason: why none was found, in one sentence; empty if one was.
        rows: the index of each evaluation row in its split; None if it is not known.
    """

    preprocessing: Preprocessing | None
    reason: str = ""
    rows: list[int] | None = None


class NotFoundError(Exception):
    """No preprocessing can be found. The message says why."""


def find_preprocessing(trainer: Trainer, rows: Any) -> Found:
    """Return the preprocessing that turns the split behind `rows` into the inputs that `trainer` evaluates on.

    Columns, order and length are tried: the tokenizer or processor of the trainer runs again on the original rows, and
    a candidate is accepted only if it gives the same inputs and labels for all compared rows. So what is found is true
    for any script, and a script that does something else has no recorded preprocessing.

    Args:
        trainer: with its model, its collator and its tokenizer or processor.
        rows: the evaluation set, as the trainer gets it.

    Example:
        >>> from hf_compress.report.trial import find_preprocessing
        >>> find_preprocessing(trainer, trainer.eval_dataset).preprocessing.columns  # doctest: +SKIP
        ['sentence']
    """
    try:
        return _Trial(trainer, rows).run()
    except NotFoundError as error:
        return Found(None, str(error))


class _Trial:
    """The rows as the model gets them, and the split that they come from."""

    def __init__(self, trainer: Trainer, rows: Any) -> None:
        from datasets import Dataset

        if not isinstance(rows, Dataset):
            raise NotFoundError("The evaluation set is not one `datasets.Dataset`.")
        self.head: Head = find_head(trainer.model)
        if self.head.kind not in HEADS:
            raise NotFoundError(f"The inputs of {self.head.name} are made by code of the script.")
        processor = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
        if processor is None:
            raise NotFoundError("The trainer has no `processing_class`.")
        self.processor, self.main = processor, self.head.main_input
        self.width = getattr(bare(trainer.model).config, "type_vocab_size", 0)
        prepared = trainer._remove_unused_columns(rows, "evaluation")
        self.compared = _sample(prepared, self.main)
        collate = trainer.data_collator
        self.given = [_trimmed(collate([prepared[index]]), self.main) for index in self.compared]
        self.length = max((len(row[self.main]) for row in self.given), default=0)
        raw = raw_rows(rows)
        self.raw = resampled(rows.with_format(None) if raw is None else raw, processor)
        self.total = len(rows)

    def run(self) -> Found:
        for candidate in self._candidates():
            placed = self._placed(candidate)
            if placed is None:
                continue
            indices, candidate = placed
            return Found(self._with_labels(candidate, indices), rows=self._all(candidate, indices))
        raise NotFoundError(
            f"No column, and no two columns, of the evaluation rows ({', '.join(self.raw.column_names)}) give the "
            "inputs of the model."
        )

    def _candidates(self) -> Iterator[Preprocessing]:
        """Yield every choice of columns."""
        for kind in KINDS.get(self.main, ()):
            names = [name for name, feature in self.raw.features.items() if _is(kind, feature)]
            if kind == "words" and self.head.kind != "token":
                continue
            pairs = itertools.permutations(names, 2) if kind == "text" and len(names) <= 6 else ()
            for columns in [*((name,) for name in names), *pairs]:
                yield Preprocessing(kind, list(columns), None)

    def _placed(self, candidate: Preprocessing) -> tuple[list[int], Preprocessing] | None:
        """Return where the compared rows are in the split and the candidate with its length; None if it is wrong."""
        if len(self.raw) >= self.total:
            for variant in self._cuts(candidate):
                if self._gives(variant, self.compared[:PROBED], self.given[:PROBED]) and self._gives(
                    variant, self.compared, self.given
                ):
                    return self.compared, variant
        if candidate.kind not in ("text", "words") or len(self.raw) > SEARCHED:
            return None
        for variant in self._cuts(candidate):
            indices = self._search(variant)
            if indices is not None and self._gives(variant, indices, self.given):
                return indices, variant
        return None

    def _cuts(self, candidate: Preprocessing) -> Iterator[Preprocessing]:
        """Yield the candidate without a length, and with the length of the longest row in every strategy."""
        yield candidate
        if candidate.kind in ("text", "words"):
            for strategy in STRATEGIES if len(candidate.columns) > 1 else STRATEGIES[:1]:
                yield replace(candidate, max_length=self.length, truncation=strategy)

    def _gives(self, candidate: Preprocessing, indices: Sequence[int], given: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the candidate turns the rows `indices` of the split into the inputs `given`."""
        try:
            made = candidate.inputs(self.processor, self.raw.select(indices)[:])
        except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError):
            return False  # A missing text, a picture that cannot be read, a tokenizer that takes no pairs.
        return all(self._same(one, two) for one, two in zip(made, given, strict=True))

    def _same(self, made: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
        """Return whether two rows are the same inputs. Token types that are missing are zeros."""
        if self.main not in made:
            return False
        one, two = np.asarray(made[self.main]), np.asarray(given[self.main])
        if one.shape != two.shape:
            return False
        if self.main != "input_ids":
            return bool(np.allclose(one, two, atol=TOLERANCE))
        types = [row.get("token_type_ids", [0] * len(two)) for row in (made, given)]
        return list(one) == list(two) and (self.width < 2 or list(types[0]) == list(types[1]))

    def _search(self, candidate: Preprocessing) -> list[int] | None:
        """Return the index in the split of each compared row, found by its inputs; None if one is not there."""
        places: dict[tuple[int, ...], list[int]] = {}
        try:
            ids = candidate.encoded(self.processor, self.raw[:])["input_ids"]
        except (AttributeError, TypeError, ValueError):
            return None
        for index, row in enumerate(ids):
            places.setdefault(tuple(row), []).append(index)
        found = []
        for row in self.given:
            known = places.get(tuple(row["input_ids"]))
            if not known:
                return None
            found.append(known.pop(0) if len(known) > 1 else known[0])
        return found

    def _all(self, candidate: Preprocessing, indices: Sequence[int]) -> list[int] | None:
        """Return the index of every evaluation row, or None if only some rows were found."""
        if list(indices) == list(self.compared):
            return list(range(self.total))
        return (
            [index for _, index in sorted(zip(self.compared, indices, strict=True))]
            if len(indices) == self.total
            else None
        )

    def _with_labels(self, candidate: Preprocessing, indices: Sequence[int]) -> Preprocessing:
        """Return the candidate with the column and the mapping that give the labels."""
        if any(row.get("labels") is None for row in self.given):
            raise NotFoundError("The evaluation rows have no labels.")
        rows = self.raw.select(indices)
        names = [name for name in rows.column_names if name not in candidate.columns]
        for name in sorted(names, key=lambda name: "label" not in name.lower()):
            for variant in self._labellings(replace(candidate, label_column=name), rows[name]):
                if self._labels(variant, rows[:]):
                    return variant
        raise NotFoundError(f"No column of the evaluation rows ({', '.join(rows.column_names)}) gives the labels.")

    def _labellings(self, candidate: Preprocessing, values: Sequence[Any]) -> Iterator[Preprocessing]:
        """Yield the ways in which a column may give the labels: as it is, or by a mapping of its values to classes."""
        for pieces in (False, True) if candidate.kind == "words" else (False,):
            plain = replace(candidate, all_pieces=pieces)
            yield plain
            if candidate.kind != "words" and not self.head.regression:
                classes = _mapping(values, [row["labels"] for row in self.given])
                if classes is not None:
                    yield replace(plain, classes=classes)

    def _labels(self, candidate: Preprocessing, rows: Any) -> bool:
        """Return whether the candidate gives the labels of all compared rows."""
        try:
            made = candidate.labels(self.processor, rows, self.head)
            pairs = [
                (np.asarray(one, dtype=float), two["labels"]) for one, two in zip(made or (), self.given, strict=True)
            ]
        except (IndexError, KeyError, TypeError, ValueError):
            return False
        return all(one.shape == np.shape(two) and np.allclose(one, np.asarray(two, dtype=float)) for one, two in pairs)


def _mapping(values: Sequence[Any], labels: Sequence[Any]) -> dict[str, int] | None:
    """Return the class of each value of a column, if each value has one class and each class one value."""
    found: dict[str, int] = {}
    for value, label in zip(values, labels, strict=True):
        if not isinstance(value, str | int) or not isinstance(label, int) or len(found) > CLASSES:
            return None
        if found.setdefault(str(value), label) != label:
            return None
    return found if len(set(found.values())) == len(found) else None


def _is(kind: str, feature: Any) -> bool:
    """Return whether a column of this type can be what the tokenizer or processor reads."""
    from datasets import Audio, Image, List, Value

    text = ("string", "large_string")
    if kind == "text":
        return isinstance(feature, Value) and feature.dtype in text
    if kind == "words":
        return isinstance(feature, List) and isinstance(feature.feature, Value) and feature.feature.dtype in text
    if kind == "image":
        return isinstance(feature, Image)
    floats = (
        isinstance(feature, List) and isinstance(feature.feature, Value) and feature.feature.dtype.startswith("float")
    )
    return isinstance(feature, Audio) or floats


def _sample(rows: Any, main: str) -> list[int]:
    """Return the indices of the rows to compare, in order: all, or the longest ones and others evenly spread."""
    total, most = len(rows), COMPARED if main == "input_ids" else COMPARED_MEDIA
    if total <= most:
        return list(range(total))
    longest: list[int] = []
    if main in rows.column_names and main == "input_ids":
        lengths = [len(row) for row in rows.with_format(None)[main]]
        longest = sorted(range(total), key=lambda index: -lengths[index])[:LONGEST]
    spread = np.linspace(0, total - 1, most - len(longest), dtype=int).tolist()
    return sorted({*longest, *spread})


def _trimmed(batch: Mapping[str, Any], main: str) -> dict[str, Any]:
    """Return the one row of a batch without its padding."""
    row = {name: value[0] for name, value in batch.items() if isinstance(value, Tensor)}
    mask = row.get("attention_mask")
    if main == "input_ids" and main in row and mask is not None:
        kept = mask.bool()
        row = {name: value[kept] if value.shape == kept.shape else value for name, value in row.items()}
    if main not in row:
        raise NotFoundError(f"The batches of the evaluation have no `{main}`.")
    return {name: value.numpy() if name in SHAPES else value.tolist() for name, value in row.items()}
