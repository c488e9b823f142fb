"""Affine grids: rounding to the levels that cover a range, with a straight-through gradient inside it."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_compress.layers.fused import fused, numbers
from hf_compress.layers.grids import SMALLEST_SCALE, Grid, divided


class Bounds(NamedTuple):
    """What rounding to an affine grid needs, as Python numbers on a CPU and as float32 tensors () elsewhere.

    Reading a tensor costs nothing on a CPU, where clamping by tensors is slow; on a GPU it would stop the queue.

    Args:
        step: the distance of two levels.
        low: the lowest level, to which values below it are clipped.
        high: the highest level.
        least: the lower limit of the values whose gradient passes, half a step below `low`: a value closer to `low`
            is rounded to it, not clipped.
        most: the upper limit.
    """

    step: Any
    low: Any
    high: Any
    least: Any
    most: Any


def affine_parameters(
    low: Float[Tensor, ""], high: Float[Tensor, ""], grid: Grid
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return scale and zero point of the affine grid over the range [`low`, `high`], widened to contain zero.

    The zero point is an integer in [0, 2**bits - 1] as float32 (Jacob et al., 2018, sec. 3).
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = divided(high - low, grid.levels).clamp(min=SMALLEST_SCALE)
    return scale, (-low / scale).round().clamp(0, grid.levels)


def bounds_of(scale: Float[Tensor, ""], zero_point: Float[Tensor, ""], grid: Grid) -> Bounds:
    """Return the bounds of the affine grid with this scale and zero point, as tensors."""
    low, high, half = -zero_point * scale, (grid.levels - zero_point) * scale, scale * 0.5
    return Bounds(scale, low, high, low - half, high + half)


def _ranges(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    ends = [(-0.7, 1.1), (0.0, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-32, 1e-33), (-5e4, 1e30), (torch.inf, -torch.inf)]
    for low, high in [*ends, (torch.nan, 1.0), (-torch.inf, torch.inf), (-0.0, 1 / 3), (-1 / 3, 1 / 7)]:
        yield torch.tensor([low, high], dtype=dtype), Grid(bits=8, per="tensor")


@fused(_ranges)
def bounds_of_ends(ends: Float[Tensor, "2"], grid: Grid) -> Bounds:
    """Return the bounds of the affine grid over the range `ends`, as tensors."""
    return bounds_of(*affine_parameters(ends[0], ends[1], grid), grid)


@lru_cache(maxsize=4096)
def bounds_of_range(low: float, high: float, grid: Grid) -> Bounds:
    """Return the bounds of the affine grid over the range [`low`, `high`], as numbers.

    They are computed in float32 as `affine_parameters` and `bounds_of` do, and kept: a range is read in every forward
    and changes once per optimizer step.

    Example:
        >>> from hf_compress.layers import Grid
        >>> from hf_compress.layers.affine import bounds_of_range
        >>> bounds = bounds_of_range(0.0, 255.0, Grid(bits=8, per="tensor"))
        >>> bounds.step, bounds.high, bounds.most
        (1.0, 255.0, 255.5)
    """
    ends = torch.tensor([low, high], dtype=torch.float32, device="cpu")
    return as_numbers(bounds_of_ends(ends, grid))


def as_numbers(bounds: Bounds) -> Bounds:
    """Return the bounds as Python numbers, which hold every float32 number exactly."""
    return Bounds(*(bound.item() for bound in bounds))


def reads_numbers(values: Tensor) -> bool:
    """Return whether values like these are rounded by bounds that are Python numbers."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def to_affine_integers(
    values: Float[Tensor, "*shape"], scale: Float[Tensor, ""], zero_point: Float[Tensor, ""], grid: Grid
) -> Float[Tensor, "*shape"]:
    """Return the nearest integers of `values` on the affine grid, clipped to its range, minus the zero point."""
    bounds = bounds_of(scale, zero_point, grid)
    return _integers(values, as_numbers(bounds) if reads_numbers(values) else bounds)


def fake_quantize_affine(
    values: Float[Tensor, "*shape"],
    scale: Float[Tensor, ""],
    zero_point: Float[Tensor, ""],
    grid: Grid,
    known: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return `values` rounded to the affine grid and clipped to its range, in their own dtype.

    The gradient is straight-through inside the range and zero outside it. `known` is as in `fake_quantize_symmetric`.
    """
    bounds = bounds_of(scale, zero_point, grid)
    return round_affine(values, as_numbers(bounds) if reads_numbers(values) else bounds, known)


def round_affine(
    values: Float[Tensor, "*shape"],
    bounds: Bounds,
    known: Float[Tensor, "*shape"] | None = None,
    outside: Int[Tensor, "rows"] | None = None,
    *,
    alone: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return `values` rounded to the affine grid with these bounds, as `fake_quantize_affine` does, bit by bit.

    Args:
        outside: the rows of the contiguous `values` that have a value outside [`low`, `high`] or NaN; bounds are
            numbers then. Only these rows are clipped and their gradient is masked, and autograd keeps only them. If
            None, all are.
        alone: whether the caller uses the result as an operand of one product, and nowhere else. The gradient that
            comes back is then a new tensor that nobody else holds, and is masked in place.
    """
    return _RoundAffine.apply(values, *bounds, known, outside, alone)


def _integers(values: Tensor, bounds: Bounds, *, clip: bool = True) -> Tensor:
    # All but the first operation work in place: activations are the largest tensors of training. Division comes
    # first where nothing is clipped.
    numbers = values.detach().float()
    if clip:
        return numbers.clamp(bounds.low, bounds.high).div_(bounds.step).round_()
    if numbers.data_ptr() == values.data_ptr():
        return numbers.div(bounds.step).round_()
    return numbers.div_(bounds.step).round_()


# Of the bounds, and of `known`, `outside` and `alone`.
_NO_GRADIENTS = (None,) * 8


class _RoundAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, *more: Any) -> Tensor:
        # The bounds one by one: compilers find no tensors in a tuple.
        *limits, known, outside, alone = more
        bounds = Bounds(*limits)
        ctx.bounds, ctx.outside, ctx.alone = bounds, outside, alone
        if outside is None:
            ctx.save_for_backward(values)
            return known.detach() if known is not None else round_in_bounds(values, bounds)
        # Not by `save_for_backward`: a checkpointed forward has to save as many tensors each time.
        ctx.clipped = values.detach().view(-1, values.shape[-1])[outside] if len(outside) else None
        if known is not None:
            return known.detach()
        rounded = _integers(values, bounds, clip=False).mul_(bounds.step).to(values.dtype)
        if ctx.clipped is not None:
            rounded.view(-1, values.shape[-1])[outside] = round_in_bounds(ctx.clipped, bounds)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, outside = gradients[0], ctx.outside
        if outside is None:
            return mask_by_bounds(gradient, ctx.saved_tensors[0], ctx.bounds), *_NO_GRADIENTS
        if len(outside):
            rows = gradient.reshape(-1, gradient.shape[-1])
            masked = mask_by_bounds(rows[outside], ctx.clipped, ctx.bounds)
            if ctx.alone and gradient.is_contiguous() and type(gradient) is Tensor and not torch.is_grad_enabled():
                rows.index_copy_(0, outside, masked)
            else:
                gradient = rows.index_copy(0, outside, masked).view(gradient.shape)
        return gradient, *_NO_GRADIENTS


def _values(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for ends, grid in _ranges(torch.float32):
        bounds = bounds_of(*affine_parameters(ends[0], ends[1], grid), grid)
        limits = [limit * (1 + near) for limit in bounds for near in (-1e-6, 0.0, 1e-6)]
        yield torch.cat([numbers(dtype, float(bounds.step)), torch.stack(limits).to(dtype)]), bounds


def _gradients(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for values, bounds in _values(dtype):
        yield numbers(dtype).repeat(2)[: len(values)], values, bounds


@fused(_values)
def round_in_bounds(values: Tensor, bounds: Bounds) -> Tensor:
    """Return the values, clipped to the bounds and rounded to steps."""
    return _integers(values, bounds).mul_(bounds.step).to(values.dtype)


@fused(_gradients)
def mask_by_bounds(gradient: Tensor, values: Tensor, bounds: Bounds) -> Tensor:
    """Return the gradient, and zero where the values are clipped."""
    if isinstance(bounds.least, float):
        return torch.ops.aten.hardtanh_backward(gradient, values, bounds.least, bounds.most)
    # One dimension each: a comparison would round zero-dimensional tensors to the 16 bits of the values.
    inside = (values > bounds.least.view(1)) & (values < bounds.most.view(1))
    return torch.where(inside, gradient, 0.0)
