"""The `compute_loss` of other Trainer classes: which class defines it, what it returns, and what it averages over."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_compress.models.heads import IGNORED, Head

# Relative; mixed precision rounds each mean.
TOLERANCE = 1e-2


def owner(trainer_class: type, behind: type | None = None) -> type:
    """Return the class whose `compute_loss` is called, or the next one behind a class in the resolution order."""
    order = trainer_class.__mro__
    order = order if behind is None else order[order.index(behind) + 1 :]
    return next(cls for cls in order if "compute_loss" in vars(cls))


def loss_and_outputs(found: Any, head: Head, of: type) -> tuple[Tensor, Any]:
    """Return what a `compute_loss` returned, if it is a loss and the model's outputs with logits.

    Args:
        of: the class of that `compute_loss`, for the error.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor):
        loss, outputs = found
        if isinstance(outputs, tuple):
            head.logits(outputs)  # Explains outputs without names.
        if isinstance(outputs, Mapping) and all(name in outputs for name in head.names):
            return loss, outputs
    names = " and ".join(f"`{name}`" for name in head.names)
    raise ValueError(
        f"`compute_loss` of {of.__name__} must return `(loss, outputs)` if `return_outputs=True`, where `outputs` are "
        f"the model's with {names}; it returned {_described(found)}. Return the model's own outputs."
    )


@torch.no_grad()
def refuse_unshifted(loss: Tensor, outputs: Any, inputs: Mapping[str, Any], head: Head, of: type) -> None:
    """Check that a causal language model compares its logits with the following token.

    `models.kinds` lists the classes of Transformers that do not; this check is for those that it does not know.

    Args:
        loss: the model's own loss for the batch.
        of: the class of the model, for the error.

    Raises:
        ValueError: the loss is the mean over the labels as they are.
    """
    labels = inputs.get("labels")
    if head.descriptor.position != "next token" or "shift_labels" in inputs or not isinstance(labels, Tensor):
        return
    (logits,) = head.logits(outputs)
    same, following = (
        functional.cross_entropy(scores.flatten(0, -2).float(), target.flatten(), ignore_index=IGNORED)
        for scores, target in ((logits, labels), (logits[..., :-1, :], labels[..., 1:]))
    )
    own = loss.detach().mean().float()
    if torch.isclose(own, same, rtol=1e-4) and not torch.isclose(own, following, rtol=1e-3):
        raise ValueError(
            f"{of.__name__} compares its logits with the labels as they are, not with the following token. Use a "
            "causal language model whose forward shifts the labels."
        )


@torch.no_grad()
def refuse_other_means(
    loss: Callable[[dict[str, Any]], Tensor], batches: Sequence[Mapping[str, Any]], head: Head, of: type
) -> None:
    """Check that a loss is a mean over the positions that count, so that micro-batches add up to a large batch.

    The loss of a batch is compared with the weighted mean of the losses of its parts. Class weights, for example, make
    the loss a mean over weights, and a contrastive loss depends on the other rows of its batch.

    Args:
        loss: the loss of a batch, without randomness.
        batches: the micro-batches of one optimizer step.
        of: the class of the loss, for the error.

    Raises:
        ValueError: the loss is another mean.
    """
    for whole, parts in _splits(batches, head):
        counts = [head.count(part) for part in parts]
        if any(count is None or not count for count in counts):
            continue
        total = sum(int(count) for count in counts if count is not None)
        found = float(loss(whole).mean())
        means = [float(loss(part).mean()) for part in parts]
        expected = (
            sum(mean * int(count) for mean, count in zip(means, counts, strict=True) if count is not None) / total
        )
        if not abs(found - expected) <= TOLERANCE * max(abs(found), abs(expected)):
            raise ValueError(
                f"`compute_loss` of {of.__name__} is not a mean over the rows or tokens with labels (it may use class "
                f"weights): {found:.4g} for a batch, {expected:.4g} from its parts. With gradient accumulation or "
                "several processes, small batches would not equal a large one. Set `gradient_accumulation_steps=1` on "
                "one process, or divide the weighted sum by the number of labels that count instead of by the sum of "
                "weights."
            )


def _splits(batches: Sequence[Mapping[str, Any]], head: Head) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield batches with their halves; of single rows, neighbours of one shape with both together."""
    several = [dict(batch) for batch in batches if head.rows(batch) > 1]
    for batch in several:
        rows = head.rows(batch)
        yield batch, [_rows_of(batch, rows, slice(0, rows // 2)), _rows_of(batch, rows, slice(rows // 2, rows))]
    single = [dict(batch) for batch in batches if head.rows(batch) == 1]
    for first, second in zip(single[::2], single[1::2], strict=False):
        tensors = [name for name, value in first.items() if isinstance(value, Tensor) and value.ndim]
        if all(first[name].shape == second[name].shape for name in tensors):
            yield first | {name: torch.cat([first[name], second[name]]) for name in tensors}, [first, second]


def _rows_of(batch: dict[str, Any], rows: int, part: slice) -> dict[str, Any]:
    return {
        name: value[part] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
        for name, value in batch.items()
    }


def _described(found: Any) -> str:
    if isinstance(found, tuple):
        return f"({', '.join(map(_described, found))})"
    if isinstance(found, Mapping):
        return f"a dict of {', '.join(map(repr, found))}"
    return f"a {type(found).__name__}"
