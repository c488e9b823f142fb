"""Rows that only the teacher labels: their column, how they are collated, and how they count in the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

from hf_compress.distill.foreign import owner
from hf_compress.models.heads import IGNORED, LABELS, Head

# The column of the training set that tells these rows from labelled ones. Their labels are placeholders: they mark
# the positions that the teacher answers, and no loss on the labels sees them.
COLUMN = "teacher_only"
AUGMENTED = "augmented"  # Where rows of `--distill_augment` come from.
OPTIONS = "`--distill_extra` and `--distill_augment`"


@dataclass
class TeacherOnlyCollator:
    """Collate rows with `collator`, and add a boolean for each row: whether only the teacher labels it."""

    collator: Callable[[list[dict[str, Any]]], Any]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `collator`; None if it has none."""
        return getattr(self.collator, "tokenizer", None)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        batch = self.collator([{name: value for name, value in row.items() if name != COLUMN} for row in rows])
        sizes = {len(value) for name, value in batch.items() if name in LABELS and isinstance(value, Tensor)}
        if sizes != {len(rows)}:
            raise ValueError(
                f"{OPTIONS} need a batch with one entry of `labels` for each row; the data collator "
                f"({type(self.collator).__name__}) made {sorted(sizes)} of {len(rows)} rows. Use one "
                "that keeps rows apart, such as `DataCollatorWithPadding`."
            )
        batch[COLUMN] = torch.tensor([bool(row[COLUMN]) for row in rows])
        return batch


def for_labels(inputs: Mapping[str, Any], head: Head) -> dict[str, Any]:
    """Return the inputs of a batch for the loss on the labels: labels of teacher-only rows do not count.

    Numbers to predict and independent labels stay as they are, because no number means "not labelled": see
    `label_mean`.
    """
    inputs = dict(inputs)
    only = inputs.pop(COLUMN, None)
    if only is None or predicts_numbers(inputs, head):
        return inputs
    for name in LABELS & inputs.keys():
        labels = inputs[name]
        # An answer that ends behind the text does not count.
        hidden = inputs[head.main_input].shape[-1] if head.kind == "question" else IGNORED
        inputs[name] = labels.masked_fill(only.reshape(-1, *[1] * (labels.ndim - 1)), hidden)
    return inputs


def counts(inputs: Mapping[str, Any], head: Head) -> tuple[Tensor, Tensor] | None:
    """Return how many positions of a batch count in the loss on the labels, and how many in that on the teacher.

    The result is None if the batch has no labels.
    """
    taught = head.count(inputs)
    if taught is None:
        return None
    only = inputs.get(COLUMN)
    if only is None:
        return taught, taught
    if predicts_numbers(inputs, head):
        return (~only).sum(), taught
    labelled = head.count(for_labels(inputs, head))
    assert labelled is not None
    return labelled, taught


def predicts_numbers(inputs: Mapping[str, Any], head: Head) -> bool:
    """Return whether the labels of a batch are numbers to predict or independent labels, not one class each."""
    return head.problem(inputs) != "single_label_classification"


def label_mean(outputs: Any, inputs: Mapping[str, Any], head: Head) -> Tensor:
    """Return the loss of the labelled rows of a batch for which `predicts_numbers`, as Transformers computes it.

    It is 0 if the batch has no labelled row.
    """
    (logits,) = head.logits(outputs)
    logits = logits.float() if logits.element_size() < 4 else logits
    kept = ~inputs[COLUMN].to(logits.device)
    labels = inputs["labels"].to(logits)[kept]
    logits = logits[kept].reshape(labels.shape)
    if not len(labels):
        return logits.sum()
    if head.problem(inputs) == "regression":
        return functional.mse_loss(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels)


def refuse_own_loss(trainer_class: type, behind: type) -> None:
    """Refuse labels that are not classes for a Trainer class with a loss of its own, which would see placeholders.

    Raises:
        ValueError: the class behind the mixin has a `compute_loss` that is not that of `Trainer`.
    """
    other = owner(trainer_class, behind)
    if other is not Trainer:
        raise ValueError(
            f"{OPTIONS} add rows without labels. With labels that are real numbers (regression, independent labels), "
            f"only the loss of `Trainer` can leave such rows out, but {other.__name__} has a `compute_loss` of its "
            "own. Train with another class, or leave the options out."
        )
