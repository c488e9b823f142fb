"""Counts of what a model predicted, which metrics are computed from: hits, classes, entities, losses."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_compress.report.entities import entity_counts
from hf_compress.report.outputs import Outputs

# Counts of each class would take too much memory beyond this many entries.
MOST_COUNTS = 30_000_000


class Tally:
    """The outputs of one model with the counts that several metrics share, each made once.

    Args:
        outputs: of the model.
        names: the names of the classes by number.
        scores: what the script reports on these outputs, by metric.
    """

    def __init__(self, outputs: Outputs, names: Mapping[int, str], scores: Mapping[str, float]) -> None:
        self.outputs, self.names, self.scores = outputs, names, scores

    @cached_property
    def classes(self) -> NDArray[Any] | None:
        """Counts of classes (`class_counts`)."""
        return class_counts(self.outputs)

    @cached_property
    def entities(self) -> NDArray[Any] | None:
        """Counts of entities (`entity_counts`)."""
        return entity_counts(self.outputs, self.names)


def hits(outputs: Outputs) -> NDArray[Any]:
    """How often each row is right: 0 or 1, and for tokens how many of them. A row of flags is right if all are."""
    equal = outputs.labels == outputs.predicted
    return outputs.in_rows(equal.astype(np.int64)) if equal.ndim == 1 else equal.all(1).astype(np.int64)


def class_counts(outputs: Outputs) -> NDArray[Any] | None:
    """How often each row has each class right, predicted and labelled: shape (rows, 3, classes).

    None for numbers and spans, and for more classes than can be counted.
    """
    if outputs.kind == "flags":
        predicted, labels = outputs.predicted, outputs.labels
        return np.stack([predicted & labels, predicted, labels], 1)
    if outputs.kind not in ("classes", "tokens"):
        return None
    classes = 1 + int(max(outputs.labels.max(initial=1), outputs.predicted.max(initial=1)))
    if classes * max(len(outputs.labels), outputs.rows) > MOST_COUNTS or outputs.predicted.min(initial=0) < 0:
        return None
    row = np.arange(outputs.rows) if outputs.lengths is None else np.repeat(np.arange(outputs.rows), outputs.lengths)
    right = outputs.labels == outputs.predicted
    found = ((row[right], outputs.labels[right]), (row, outputs.predicted), (row, outputs.labels))
    size = outputs.rows * classes
    counts = [np.bincount(place * classes + number, minlength=size).reshape(-1, classes) for place, number in found]
    return np.stack(counts, 1)


def row_losses(outputs: Outputs) -> NDArray[Any] | None:
    """The loss of each row as Transformers' models compute it; None without the logits of all classes."""
    if outputs.kind == "numbers":
        return (outputs.labels - outputs.predicted) ** 2
    if outputs.logits is None:
        return None
    logits = outputs.logits.astype(np.float64)
    if outputs.kind == "flags":
        return (np.logaddexp(0, logits) - logits * outputs.labels).mean(1)
    if outputs.labels.max(initial=0) >= logits.shape[1]:
        return None
    chosen = np.take_along_axis(logits, outputs.labels[:, None], 1)[:, 0]
    return np.logaddexp.reduce(logits, axis=1) - chosen
