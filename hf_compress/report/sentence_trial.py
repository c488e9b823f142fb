"""Finds by trial which rows of a dataset an evaluator of sentence-transformers has, so that others can score them."""

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_compress.report.preprocessing import Preprocessing
from hf_compress.report.source import raw_splits

PAIRS = "pairs"
SEARCHED = 200_000  # Rows of a split in which the evaluator's are looked for.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class FoundPairs:
    """Where the rows of an evaluator are.

    Args:
        split: its name.
        split_rows: rows of the whole split.
        rows: the index there of each row of the evaluator.
        preprocessing: which columns are the texts and the label, and how the label is scaled.
    """

    split: str
    split_rows: int
    rows: list[int]
    preprocessing: Preprocessing


def find_pairs(dataset: Any, pairs: Sequence[tuple[str, str]], labels: Sequence[float]) -> FoundPairs | None:
    """Return which rows have these pairs of texts and these labels; None if no split has them all.

    A row is taken only if both texts are equal. Labels may be multiplied by one number, as STS-B's are divided by 5.

    Args:
        dataset: a `datasets.Dataset`, whose other splits are searched, too.
        pairs: of an evaluator.
        labels: of the pairs, as the evaluator has them.
    """
    splits = raw_splits(dataset)
    for name in sorted(splits, key=lambda split: split.startswith("train")):  # Evaluation splits first.
        table = splits[name].with_format(None)
        first = table.select(range(min(SEARCHED, len(table))))
        for one, two in itertools.permutations(_columns(first, "string"), 2):
            rows = _placed(list(zip(first[one][:], first[two][:], strict=True)), pairs)
            for label, scale in _labelled(first, rows, labels) if rows else ():
                preprocessing = Preprocessing(PAIRS, [one, two], label, label_scale=scale)
                return FoundPairs(name, len(table), rows, preprocessing)
    return None


def _columns(table: Any, *kinds: str) -> list[str]:
    return [name for name, feature in table.features.items() if getattr(feature, "dtype", "") in kinds]


def _placed(known: list[tuple[str, str]], pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Return the index of each pair, each index once; nothing if a pair is missing."""
    places: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    for index, pair in enumerate(known):
        places[pair].append(index)
    if not pairs or any(pair not in places for pair in pairs[:8]):
        return []
    found = [places[pair].popleft() if places.get(pair) else None for pair in pairs]
    return [index for index in found if index is not None] if None not in found else []


def _labelled(table: Any, rows: list[int], labels: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Yield the columns of numbers that are the labels, with what these are multiplied by."""
    wanted = np.asarray(labels, np.float64)
    for name in _columns(table, "float32", "float64", "int64", "int32", "int8"):
        values = np.asarray(table[name][:], np.float64)[rows]
        if not np.isfinite(values).all() or not values.any():
            continue
        scale = float(wanted @ values / (values @ values))
        if np.allclose(values * scale, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            yield name, round(scale, 9)
