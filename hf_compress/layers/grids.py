"""Number formats: the grids weights and activations are rounded to, and rounding with a straight-through gradient."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# Smallest scale: below it a row is zero for every purpose, and dividing by it stays finite.
SMALLEST_SCALE = 1e-30
# How many bits a weight with one scale a row may have: one bit has no largest integer, more than eight no byte.
BITS = range(2, 9)


@dataclass(frozen=True)
class Grid:
    """Integers of `bits` bits that share a scale `per` row of a weight, group of it, token or whole tensor.

    A grid per row, group or token is symmetric: its scale is the largest magnitude over `2**(bits - 1) - 1`, zero is
    exact and nothing is clipped. The grid per tensor is affine, with a zero point, over a range that was observed.
    """

    bits: int
    per: Literal["row", "group", "token", "tensor"]
    group_size: int | None = None

    @property
    def largest(self) -> int:
        """The largest integer of a symmetric grid."""
        return 2 ** (self.bits - 1) - 1

    @property
    def levels(self) -> int:
        """The number of steps of an affine grid."""
        return 2**self.bits - 1


@dataclass(frozen=True)
class Scheme:
    """The grids of linear weights, of embeddings and of the inputs of linear layers (`None`: floating point).

    `attention` is that of the products inside attention: of queries, keys, values and probabilities (`attention`).
    """

    weight: Grid
    embedding: Grid
    activation: Grid | None
    attention: Grid | None = None

    def of(self, embedding: bool) -> Grid:
        """The grid of a weight: an embedding's, or another's."""
        return self.embedding if embedding else self.weight


ROW_INT8 = Grid(bits=8, per="row")

SCHEMES: dict[str, Scheme] = {
    # Jacob et al., 2018; Zafrir et al., 2019 (Q8BERT).
    "int8": Scheme(weight=ROW_INT8, embedding=ROW_INT8, activation=Grid(bits=8, per="tensor")),
    "int8-dynamic": Scheme(weight=ROW_INT8, embedding=ROW_INT8, activation=Grid(bits=8, per="token")),
    "int8-weight": Scheme(weight=ROW_INT8, embedding=ROW_INT8, activation=None),
    "int4-weight": Scheme(weight=Grid(bits=4, per="group", group_size=64), embedding=ROW_INT8, activation=None),
    "int8-attention": Scheme(
        weight=ROW_INT8,
        embedding=ROW_INT8,
        activation=Grid(bits=8, per="tensor"),
        attention=Grid(bits=8, per="tensor"),
    ),
}


def symmetric_scale(values: Float[Tensor, "*rows width"], grid: Grid) -> Float[Tensor, "*rows scales"]:
    """The float32 scales of `values` along their last dimension: one a row, or one a group of it.

    Jacob et al., 2018, sec. 3: the largest magnitude maps to the largest integer. Scales have so few significant bits
    that an integer of up to 8 bits times its scale is exact: rounding is then idempotent to the last bit. Those of
    weights, which are stored, are the nearest numbers of 8 bits: bfloat16. The largest magnitude still is nearest to
    the largest integer, at most half a step away, as any other value is from its own. Those of tokens are rounded up
    to 16 bits.

    Args:
        values: weights with one row per output feature or vocabulary entry, or activations with one row per token.
            A width that is no multiple of the group size leaves a shorter last group.
    """
    rows = values.detach().float()
    if grid.per == "group":
        width, group = values.shape[-1], _group_size(grid)
        rows = torch.nn.functional.pad(rows, (0, -width % group)).unflatten(-1, (-1, group))
    # Both ends, read where they are: magnitudes would take the memory of all weights once more.
    largest = torch.maximum(rows.amax(-1), rows.amin(-1).neg())
    if grid.per != "group":
        largest = largest.unsqueeze(-1)
    scale = largest.div_(grid.largest).clamp_(min=SMALLEST_SCALE)
    return _round_up(scale) if grid.per == "token" else _round_to_bfloat16(scale)


def to_integers(
    values: Float[Tensor, "*rows width"], scale: Float[Tensor, "*rows scales"], grid: Grid
) -> Float[Tensor, "*rows width"]:
    """The nearest integers of `values` on a symmetric grid, half to even, still as float32."""
    return torch.div(values.detach().float(), _spread(scale, values.shape[-1], grid)).round_()


def from_integers(
    integers: Shaped[Tensor, "*rows width"], scale: Float[Tensor, "*rows scales"], grid: Grid
) -> Float[Tensor, "*rows width"]:
    """The float32 numbers that `integers` of a symmetric grid stand for."""
    return integers * _spread(scale, integers.shape[-1], grid)


def fake_quantize_symmetric(
    values: Float[Tensor, "*rows width"], grid: Grid, known: Float[Tensor, "*rows width"] | None = None
) -> Float[Tensor, "*rows width"]:
    """`values` rounded to their symmetric grid, in their own dtype.

    The grid follows the values, so that nothing lies outside it and the gradient is straight-through everywhere
    (Bengio et al., 2013). Scales and rounding are float32 under autocast too.

    Args:
        known: what an earlier call returned for the same arguments, to be taken as the result; the gradient goes its
            own way all the same.
    """
    return _RoundSymmetric.apply(values, grid, known)


def affine_parameters(
    low: Float[Tensor, ""], high: Float[Tensor, ""], grid: Grid
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Scale and zero point of the affine grid over the range [`low`, `high`], widened to hold zero exactly.

    Jacob et al., 2018, sec. 3; the zero point is an integer in [0, 2**bits - 1], as float32.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / grid.levels).clamp(min=SMALLEST_SCALE)
    return scale, (-low / scale).round().clamp(0, grid.levels)


def to_affine_integers(
    values: Float[Tensor, "*shape"], scale: Float[Tensor, ""], zero_point: Float[Tensor, ""], grid: Grid
) -> Float[Tensor, "*shape"]:
    """The nearest integers of `values` on the affine grid, clipped to its range and counted from its zero point."""
    return _affine_integers(values, scale, zero_point, grid.levels)


def fake_quantize_affine(
    values: Float[Tensor, "*shape"],
    scale: Float[Tensor, ""],
    zero_point: Float[Tensor, ""],
    grid: Grid,
    known: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """`values` rounded to the affine grid and clipped to its range, in their own dtype.

    The gradient is straight-through inside the range and zero outside it.

    Args:
        known: as in `fake_quantize_symmetric`.
    """
    return _RoundAffine.apply(values, scale, zero_point, grid.levels, known)


def _round_up(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Positive float32 numbers rounded up to 16 significant bits."""
    return scale.view(torch.int32).add_(0xFF).bitwise_and_(~0xFF).view(torch.float32)


def _round_to_bfloat16(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Positive float32 numbers rounded to 8 significant bits, half up; compilers drop a cast there and back."""
    return scale.view(torch.int32).add_(0x8000).bitwise_and_(~0xFFFF).view(torch.float32)


def _group_size(grid: Grid) -> int:
    assert grid.group_size is not None, "a grid per group has a group size"
    return grid.group_size


def _spread(scale: Float[Tensor, "*rows scales"], width: int, grid: Grid) -> Float[Tensor, "*rows spread"]:
    """The scales laid out so that they broadcast over rows of `width` values."""
    if grid.per != "group":
        return scale
    return scale.repeat_interleave(_group_size(grid), dim=-1)[..., :width]


def _affine_integers(values: Tensor, scale: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    bounds: tuple[Any, Any, Any] = scale, -zero_point * scale, (levels - zero_point) * scale
    if _reads_numbers(values):
        bounds = bounds[0].item(), bounds[1].item(), bounds[2].item()
    step, low, high = bounds
    # Clipped first, the rest in place: activations are the largest tensors of training, and this makes only one.
    return values.detach().float().clamp(low, high).div_(step).round_()


class _RoundSymmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Grid, known: Tensor | None) -> Tensor:
        if known is not None:
            return known.detach()
        scale = symmetric_scale(values, grid)
        return to_integers(values, scale, grid).mul_(_spread(scale, values.shape[-1], grid)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _RoundAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, levels: int, known: Tensor | None
    ) -> Tensor:
        low, high, half = -zero_point * scale, (levels - zero_point) * scale, scale / 2
        # What lies less than half a step outside the last level is rounded to it, not clipped.
        ctx.bounds = low - half, high + half
        ctx.save_for_backward(values)
        if known is not None:
            return known.detach()
        return _affine_integers(values, scale, zero_point, levels).mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (values,), (low, high) = ctx.saved_tensors, ctx.bounds
        if _reads_numbers(values):
            passed = torch.ops.aten.hardtanh_backward(gradients[0], values, low.item(), high.item())
        else:
            # With a dimension each, or a comparison would round them to the 16 bits that values may have.
            inside = (values > low.view(1)) & (values < high.view(1))
            passed = torch.where(inside, gradients[0], 0.0)
        return passed, None, None, None, None


def _reads_numbers(values: Tensor) -> bool:
    """Whether to read bounds out of their tensors: on a CPU that costs nothing, and clamping by tensors is slow."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
