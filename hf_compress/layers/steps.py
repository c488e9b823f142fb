"""Rounding to fixed steps: the distance of two values is given, not computed from the largest weight of the row."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from hf_compress.layers.fused import fused, numbers
from hf_compress.layers.grids import Grid, Grids

# Integers of fixed steps fill a signed byte, without its smallest value, as those of 8-bit grids do.
STEP_BITS, LARGEST = 8, 127


def has_steps(scheme: Grids | None) -> bool:
    """Return whether the weights of `scheme` can have fixed steps: integers of 8 bits with one scale per row.

    Example:
        >>> from hf_compress.layers import SCHEMES
        >>> from hf_compress.layers.steps import has_steps
        >>> has_steps(SCHEMES["int8"]), has_steps(SCHEMES["int4-weight"])
        (True, False)
    """
    row = Grid(STEP_BITS, "row")
    return scheme is not None and scheme.weight == scheme.embedding == row


def fake_quantize_steps(
    values: Float[Tensor, "*rows width"],
    step: Float[Tensor, "*rows 1"],
    known: Float[Tensor, "*rows width"] | None = None,
) -> Float[Tensor, "*rows width"]:
    """Return `values` rounded to multiples of `step`, at most 127 of them, in their own dtype.

    Rounding is idempotent to the last bit, because steps are bfloat16 numbers. The gradient is straight-through
    (Bengio et al., 2013), and zero where a value lies beyond 127.5 steps and is clipped.

    Args:
        values: one row per output feature or token.
        step: float32, of each row.
        known: as in `fake_quantize_symmetric`.

    Example:
        >>> import torch
        >>> from hf_compress.layers import fake_quantize_steps
        >>> fake_quantize_steps(torch.tensor([[0.3, -1.0, 99.0]]), torch.tensor([[0.5]]))
        tensor([[ 0.5000, -1.0000, 63.5000]])
    """
    return _RoundToSteps.apply(values, step, known)


def to_steps(values: Float[Tensor, "rows width"], step: Float[Tensor, "rows 1"]) -> Int8[Tensor, "rows width"]:
    """Return the multiples of `step` that are nearest to `values`; halves round to even."""
    return _nearest(values, step).to(torch.int8)


def _nearest(values: Tensor, step: Tensor) -> Tensor:
    return torch.div(values.detach().float(), step).round_().clamp_(-LARGEST, LARGEST)


def _rows(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    steps = torch.tensor([[0.01], [0.5], [3.0], [2.0**-20], [1e-30]])
    yield numbers(dtype).view(5, 200), steps
    yield numbers(dtype, 1.0).repeat(5).view(1, 5000), steps[1:2]
    yield numbers(dtype, 1.0).view(2, 5, 100), steps.repeat(2, 1).view(2, 5, 1)


def _gradients(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for values, step in _rows(dtype):
        yield values.flatten().flip(0).view(values.shape), values, step
    # Exactly on the limit.
    limits = torch.tensor([[127.5, -127.5, 127.25, -127.25, 128.0, 1.0]])
    yield limits.to(dtype), limits.to(dtype), torch.ones(1, 1)


@fused(_rows)
def round_to_steps(values: Tensor, step: Tensor) -> Tensor:
    """Return the values rounded to multiples of the step of their row, at most 127 of them."""
    return _nearest(values, step).mul_(step).to(values.dtype)


@fused(_gradients)
def mask_by_steps(gradient: Tensor, values: Tensor, step: Tensor) -> Tensor:
    """Return the gradient, and zero where the values are clipped."""
    return torch.where(values.abs() < (LARGEST + 0.5) * step, gradient, 0.0)


class _RoundToSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, step)
        if known is not None:
            return known.detach()
        return round_to_steps(values, step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return mask_by_steps(gradients[0], *ctx.saved_tensors), None, None
