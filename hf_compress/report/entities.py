"""Entities in tagged tokens, counted as `seqeval` and the CoNLL script count them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_compress.report.outputs import Outputs

OUTSIDE = "O"
PREFIXES = "BIES"


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """The type, first and last token of each entity in `tags`, which are O or a prefix of B, I, E, S and a type.

    An I that follows another type, or nothing, begins an entity, as in the CoNLL script.

    Example:
        >>> from hf_compress.report.entities import entities
        >>> list(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('PER', 0, 1), ('LOC', 3, 3), ('LOC', 4, 4)]
    """
    begun, before, kind = 0, OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, this = tag.partition("-")
        inside = before != OUTSIDE
        if inside and (before in "ES" or prefix in ("B", "S", OUTSIDE) or this != kind):
            yield kind, begun, place - 1
            inside = False
        if prefix != OUTSIDE and not inside:
            begun = place
        before, kind = prefix, this


def entity_counts(outputs: Outputs, names: Mapping[int, str]) -> NDArray[Any] | None:
    """How many entities of each type each row has right, predicted and labelled: shape (rows, 3, types).

    None if the classes are not named like O and B-PER.
    """
    kinds = sorted({name.partition("-")[2] for name in names.values()} - {""})
    if outputs.kind != "tokens" or outputs.lengths is None or not kinds or not all(map(_is_tag, names.values())):
        return None
    if not {*np.unique(outputs.labels).tolist(), *np.unique(outputs.predicted).tolist()} <= set(names):
        return None
    number = {kind: place for place, kind in enumerate(kinds)}
    counts = np.zeros((outputs.rows, 3, len(kinds)), np.int32)
    ends = np.cumsum(outputs.lengths)
    for row, (end, length) in enumerate(zip(ends, outputs.lengths, strict=True)):
        labels, predicted = (
            {*entities([names[tag] for tag in tags[end - length : end].tolist()])}
            for tags in (outputs.labels, outputs.predicted)
        )
        for part, found in enumerate((labels & predicted, predicted, labels)):
            for kind, *_ in found:
                counts[row, part, number[kind]] += 1
    return counts


def _is_tag(name: str) -> bool:
    return name == OUTSIDE or (name[:1] in PREFIXES and name[1:2] == "-" and len(name) > 2)
