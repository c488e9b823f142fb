"""What a model predicted for each row of an evaluation set, in one compact form for every head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hf_compress.models.heads import IGNORED, Head

Kind = Literal["classes", "numbers", "flags", "tokens", "spans"]
# Logits of more classes are not kept: they would make a large file.
MOST_LOGITS = 32
UNITS: dict[Kind, str] = {"classes": "rows", "numbers": "rows", "flags": "rows", "tokens": "tokens", "spans": "rows"}


class UnreadableError(ValueError):
    """What a script gives to `compute_metrics` cannot be told apart by rows. The message is a sentence."""


@dataclass(frozen=True)
class Outputs:
    """Labels and predictions of one model, a row of the evaluation set each.

    Args:
        kind: "classes" (one class for a row), "numbers" (regression), "flags" (independent labels, each 0 or 1),
            "tokens" (a class for each labelled token), or "spans" (first and last token of an answer).
        labels: shape (rows,) for classes and numbers, (rows, labels) for flags, (rows, 2) for spans, and (tokens,) for
            tokens, the rows one after the other.
        predicted: of the same shape.
        lengths: labelled tokens of each row, for tokens only.
        logits: shape (rows, classes), if there are at most 32 classes and the script kept them.

    Example:
        >>> import numpy as np
        >>> from hf_compress.report.outputs import Outputs
        >>> Outputs("classes", np.array([0, 1, 1]), np.array([0, 1, 0])).rows
        3
    """

    kind: Kind
    labels: NDArray[Any]
    predicted: NDArray[Any]
    lengths: NDArray[Any] | None = None
    logits: NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        """The number of evaluation rows."""
        return len(self.labels if self.lengths is None else self.lengths)

    @property
    def units(self) -> str:
        """What is labelled, in the plural."""
        return UNITS[self.kind]

    def in_rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over the tokens of each row, of `values` with a first dimension of tokens; else `values` as they are.

        Example:
            >>> import numpy as np
            >>> from hf_compress.report.outputs import Outputs
            >>> tokens = Outputs("tokens", np.array([0, 1, 1]), np.array([0, 1, 0]), lengths=np.array([2, 0, 1]))
            >>> tokens.in_rows(np.array([1, 1, 0])).tolist()
            [2, 0, 0]
        """
        if self.lengths is None:
            return values
        sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)]) if len(values) else values
        ends = np.cumsum(self.lengths)
        return sums[ends] - sums[ends - self.lengths] if len(values) else np.zeros(self.rows, values.dtype)

    def shown(self) -> "Outputs":
        """These outputs without the logits."""
        return Outputs(self.kind, self.labels, self.predicted, self.lengths)


def read_outputs(head: Head, predictions: Any, labels: Any) -> Outputs:
    """The outputs in the arguments of `compute_metrics`: arrays or tensors of a batch or of all rows, or their lists.

    Args:
        head: of the model.
        predictions: logits, or class numbers if the script reduces logits to them. Of a tuple, the first part counts.
        labels: as the Trainer gives them; -100 marks tokens that do not count.

    Raises:
        UnreadableError: the head, or what the script made of its logits, has no such form.

    Example:
        >>> import numpy as np
        >>> from hf_compress.models import Head
        >>> from hf_compress.report.outputs import read_outputs
        >>> head = Head("sequence", "input_ids", 2, None)
        >>> read_outputs(head, np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])).predicted.tolist()
        [1, 0]
    """
    # With `eval_do_concat_batches=False` both are lists, an entry for each batch.
    if isinstance(predictions, list) and isinstance(labels, list) and len(predictions) == len(labels):
        if not predictions or isinstance(predictions[0], Mapping | str):
            raise UnreadableError("The script scores texts that it makes of the predictions.")
        return joined([read_outputs(head, *batch) for batch in zip(predictions, labels, strict=True)])
    if head.kind == "question":
        return _spans(predictions, labels)
    answer, given = _array(predictions), _array(labels)
    if head.kind == "seq2seq" or not len(given) or len(answer) != len(given):
        raise UnreadableError(f"The predictions of {head.name} are not a number of classes for each row.")
    if head.descriptor.position != "row":
        return _tokens(answer, given, shifted=head.descriptor.position == "next token")
    if given.dtype.kind == "f" or head.regression:
        return _flags(answer, given) if given.ndim == 2 and not head.regression else _numbers(answer, given)
    return _classes(answer, given)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of batches that follow each other.

    Raises:
        UnreadableError: there are none.
    """
    if not parts:
        raise UnreadableError("The script's evaluation does not call `compute_metrics`.")
    first = parts[0]

    def join(name: str) -> Any:
        return None if getattr(first, name) is None else np.concatenate([getattr(part, name) for part in parts])

    return Outputs(first.kind, *(join(name) for name in ("labels", "predicted", "lengths", "logits")))


def part_of(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    """The outputs of some rows, in the given order."""
    chosen = np.asarray(rows, np.int64)
    if outputs.lengths is None:
        logits = None if outputs.logits is None else outputs.logits[chosen]
        return Outputs(outputs.kind, outputs.labels[chosen], outputs.predicted[chosen], None, logits)
    ends = np.cumsum(outputs.lengths)
    spans = [np.arange(ends[row] - outputs.lengths[row], ends[row]) for row in chosen]
    tokens = np.concatenate([np.empty(0, np.int64), *spans])
    return Outputs(outputs.kind, outputs.labels[tokens], outputs.predicted[tokens], outputs.lengths[chosen])


def _array(values: Any) -> NDArray[Any]:
    while isinstance(values, tuple) and values:
        values = values[0]
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().float().numpy() if values.is_floating_point() else values.cpu().numpy()
    if not isinstance(values, np.ndarray) or values.ndim == 0 or values.dtype.kind not in "iufb":
        raise UnreadableError("The script scores something else than an array of predictions.")
    return values


def _classes(answer: NDArray[Any], labels: NDArray[Any]) -> Outputs:
    labels = labels.reshape(len(labels), -1)
    scored = answer.ndim == 2 and answer.dtype.kind == "f"
    if labels.shape[1] != 1 or not (scored or answer.shape == (len(labels),)) or labels.min() < 0:
        raise UnreadableError("The rows have no label, or the predictions are not one class for each row.")
    predicted = answer.argmax(-1) if scored else answer.astype(np.int64)
    logits = answer.astype(np.float32) if scored and answer.shape[1] <= MOST_LOGITS else None
    return Outputs("classes", labels[:, 0].astype(np.int64), predicted, logits=logits)


def _numbers(answer: NDArray[Any], labels: NDArray[Any]) -> Outputs:
    if answer.size != len(labels) or labels.size != len(labels):
        raise UnreadableError("The model predicts several numbers for each row.")
    return Outputs("numbers", labels.reshape(-1).astype(np.float64), answer.reshape(-1).astype(np.float64))


def _flags(answer: NDArray[Any], labels: NDArray[Any]) -> Outputs:
    if answer.shape != labels.shape or not np.isin(labels, (0, 1)).all():
        raise UnreadableError("The labels are neither 0 nor 1.")
    scored = answer.dtype.kind == "f" and not np.isin(answer, (0, 1)).all()
    # Scripts may have turned logits into probabilities.
    share = scored and answer.min() >= 0 and answer.max() <= 1
    logits = answer.astype(np.float32) if scored and not share and answer.shape[1] <= MOST_LOGITS else None
    predicted = answer > (0.5 if share else 0)
    return Outputs("flags", labels.astype(np.int8), predicted.astype(np.int8), logits=logits)


def _tokens(answer: NDArray[Any], labels: NDArray[Any], *, shifted: bool) -> Outputs:
    if answer.shape[:2] != labels.shape or answer.ndim not in (2, 3):
        raise UnreadableError("The predictions are not one class for each token.")
    classes = answer.argmax(-1) if answer.ndim == 3 else answer
    if shifted:
        classes, labels = classes[:, :-1], labels[:, 1:]
    counted = labels != IGNORED
    return Outputs(
        "tokens", labels[counted].astype(np.int64), classes[counted].astype(np.int64), counted.sum(1).astype(np.int64)
    )


def _spans(predictions: Any, labels: Any) -> Outputs:
    if not (isinstance(predictions, tuple) and isinstance(labels, tuple) and len(predictions) > 1 < len(labels)):
        raise UnreadableError("The script scores texts that it makes of the predictions.")
    ends = [_array(part) for part in predictions[:2]]
    given = [_array(part) for part in labels[:2]]
    if any(part.ndim != 2 for part in ends) or any(part.ndim != 1 for part in given):
        raise UnreadableError("The predictions are not a first and a last token for each row.")
    return Outputs("spans", np.stack(given, 1).astype(np.int64), np.stack([part.argmax(-1) for part in ends], 1))
