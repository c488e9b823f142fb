"""Rounding and pruning with error feedback: the error of a column is made up for in the columns behind it."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from hf_compress.rate.steps import LARGEST

# Added to the diagonal of the moments, relative to its mean, so that they can be inverted (Frantar et al., 2023).
DAMPING = 0.01
BLOCK = 128
Choose = Callable[[Float[Tensor, "outputs columns"], Float[Tensor, " columns"], int], Bool[Tensor, "outputs columns"]]
CITATION = """@inproceedings{frantar-etal-2023-gptq,
  title     = {{GPTQ}: Accurate Post-Training Quantization for Generative Pre-trained Transformers},
  author    = {Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  url       = {https://arxiv.org/abs/2210.17323}
}

@inproceedings{hassibi-stork-1993-second,
  title     = {Second Order Derivatives for Network Pruning: Optimal Brain Surgeon},
  author    = {Hassibi, Babak and Stork, David G.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {1993}
}"""


@torch.no_grad()
def round_with_feedback(
    rows: Float[Tensor, "outputs inputs"],
    step: Float[Tensor, "outputs 1"],
    moments: Float[Tensor, "inputs inputs"],
    kept: Bool[Tensor, "outputs inputs"] | None = None,
) -> Int8[Tensor, "outputs inputs"]:
    """Return integers whose products with `step` give nearly the outputs of `rows` on the inputs seen.

    Columns are rounded one after another. The error of column j is distributed over the later columns such that the
    squared error of the outputs grows least (Hassibi & Stork, 1993; Frantar et al., 2023, GPTQ). With `kept`, pruned
    weights stay zero and their error is distributed too (Frantar & Alistarh, 2023, SparseGPT).

    Args:
        rows: the weight, one row per output.
        step: the distance of two neighbouring values of a row.
        moments: the sum X'X of the inputs of the layer.
        kept: where a weight may differ from zero.

    Example:
        >>> import torch
        >>> from hf_compress.rate import round_with_feedback
        >>> rows, step = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0]])
        >>> round_with_feedback(rows, step, torch.ones(2, 2) + 0.1 * torch.eye(2))  # The inputs are nearly equal.
        tensor([[0, 1]], dtype=torch.int8)
    """
    weight, spread = rows.detach().float().clone(), step.float().reshape(-1)
    integers = torch.empty_like(weight)

    def rounded(values: Tensor, column: int) -> Tensor:
        found = torch.div(values, spread).round_().clamp_(-LARGEST, LARGEST)
        if kept is not None:
            found *= kept[:, column]
        integers[:, column] = found
        return found * spread

    _sweep(weight, _factor(moments).float(), rounded)
    return integers.to(torch.int8)


@torch.no_grad()
def prune_with_feedback(
    rows: Float[Tensor, "outputs inputs"],
    moments: Float[Tensor, "inputs inputs"],
    choose: Choose,
    *,
    at_once: bool = False,
) -> tuple[Float[Tensor, "outputs inputs"], Bool[Tensor, "outputs inputs"]]:
    """Return the weight with the zeros that `choose` wants and the other values corrected for them, and its mask.

    Columns are pruned one after another. The value of a pruned weight is distributed over the later columns such that
    the outputs on the inputs seen change least (Hassibi & Stork, 1993; Frantar & Alistarh, 2023, SparseGPT). Weights
    are chosen block by block, so that a choice sees what was corrected before it.

    Args:
        rows: the weight, one row per output.
        moments: the sum X'X of the inputs of the layer.
        choose: returns where the values of a block of columns are kept. It gets the values, by column what removing
            a 1 adds to the squared error of the outputs if the columns behind make up for it, and the first column.
        at_once: choose in all columns at the beginning, not in blocks of 128.

    Example:
        >>> import torch
        >>> from hf_compress.rate import prune_with_feedback
        >>> inputs_are_nearly_equal = torch.ones(2, 2) + 1e-3 * torch.eye(2)
        >>> def first(values, errors, begin):
        ...     return torch.tensor([[False, True]])
        >>> weight, mask = prune_with_feedback(torch.tensor([[0.5, 0.5]]), inputs_are_nearly_equal, first)
        >>> weight.round(decimals=1)
        tensor([[0., 1.]])
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    found, kept = rows.detach().to(wide, copy=True), torch.ones_like(rows, dtype=torch.bool)
    factor, width = _factor(moments).to(wide), rows.shape[1]
    errors, size = factor.diagonal().square().reciprocal(), width if at_once else BLOCK

    def pruned(values: Tensor, column: int) -> Tensor:
        if column % size == 0:
            end = min(column + size, width)
            kept[:, column:end] = choose(found[:, column:end], errors[column:end], column)
        return values * kept[:, column]

    _sweep(found, factor, pruned)
    return (found * kept).to(rows.dtype), kept


def damped(moments: Float[Tensor, "inputs inputs"]) -> Float[Tensor, "inputs inputs"]:
    """Return moments that can be inverted, in float64: a hundredth of their mean diagonal is added to the diagonal.

    Source: Frantar et al., 2023.

    Example:
        >>> import torch
        >>> from hf_compress.rate import damped
        >>> damped(torch.ones(2, 2))
        tensor([[1.0100, 1.0000],
                [1.0000, 1.0100]], dtype=torch.float64)
    """
    found = moments.double().clone()
    found.diagonal().add_(DAMPING * found.diagonal().mean().clamp(min=1e-12))
    return found


def _sweep(
    weight: Float[Tensor, "outputs inputs"],
    factor: Float[Tensor, "inputs inputs"],
    replace: Callable[[Float[Tensor, " outputs"], int], Float[Tensor, " outputs"]],
) -> None:
    """Replace the columns of `weight` one after another, and make up for each error in the columns behind it.

    In place: the columns hold what was replaced, compensation included.

    Args:
        factor: from `_factor`.
        replace: returns the new values of a column from its values and its place.
    """
    width = weight.shape[1]
    for begin in range(0, width, BLOCK):
        end = min(begin + BLOCK, width)
        block, errors = weight[:, begin:end], torch.empty_like(weight[:, begin:end])
        for column in range(end - begin):
            place = begin + column
            errors[:, column] = (block[:, column] - replace(block[:, column], place)) / factor[place, place]
            block[:, column + 1 :] -= torch.outer(errors[:, column], factor[place, place + 1 : end])
        weight[:, end:] -= errors @ factor[begin:end, end:]


def _factor(moments: Float[Tensor, "inputs inputs"]) -> Float[Tensor, "inputs inputs"]:
    """Return the upper Cholesky factor of the inverse of the damped moments, in float64."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moments)))
    return torch.linalg.cholesky(inverse, upper=True)
