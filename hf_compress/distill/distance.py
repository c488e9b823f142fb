"""The distillation loss of a batch: from two models' outputs to a mean over the positions that count."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_compress.distill.losses import LOSSES, REGRESSION, Loss
from hf_compress.models.heads import Head, Problem


def form(loss: Loss, problem: Problem) -> tuple[Loss, Callable[..., Tensor]]:
    """Return the loss to use for what a head predicts, and its function.

    Raises:
        ValueError: the labels are independent, and the loss has no form for them.
    """
    if problem == "regression":
        return REGRESSION, REGRESSION.function
    if problem != "multi_label_classification":
        return loss, loss.function
    if loss.independent is None:
        able = ", ".join(name for name, other in LOSSES.items() if other.independent is not None)
        raise ValueError(
            f"`--distill_loss {loss.name}` has no form for independent labels (multi-label classification). Choose "
            f"one of {able}."
        )
    return loss, loss.independent


def distance(
    student: Any,
    teacher: Any,
    inputs: Mapping[str, Any],
    head: Head,
    loss: Loss,
    temperature: float,
    classes: Tensor | None,
) -> Tensor:
    """Return the distillation loss: a mean over the positions that count, and over the two ends of an answer.

    Args:
        student: the student's outputs for the batch `inputs`.
        teacher: the teacher's outputs for it, or its cached logits by name.
        classes: the teacher's class for each of the student's; None if the order is the same.
    """
    loss, function = form(loss, head.problem(inputs))
    means = []
    both = (head.positions(outputs, inputs) for outputs in (student, teacher))
    for ours, theirs in zip(*both, strict=True):
        theirs = theirs.to(ours)
        if classes is not None:
            theirs = theirs[:, classes]
        distances = function(ours, theirs, temperature)
        means.append(distances.sum() / max(len(distances), 1))
    return torch.stack(means).mean()


def mean_over_rows(values: Tensor, inputs: Mapping[str, Any], head: Head) -> Tensor:
    """Return the mean of one value per row, each row counted as often as it has positions that count.

    So the means of micro-batches, weighted by their counts, add up to the mean of the whole batch.
    """
    counted = head.counted(inputs)
    assert counted is not None, "the label loss needs labels"
    counts = counted.reshape(len(counted), -1).sum(-1).to(values)
    means = values.reshape(len(counts), -1).mean(-1)  # Inside the model, each choice of a row is a separate row.
    return (means * counts).sum() / counts.sum().clamp(min=1)
