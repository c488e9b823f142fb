"""Number formats: the grids of weights and activations, and rounding to them with a straight-through gradient.

A scheme is an entry of `SCHEMES`; flags, help, report and card read it from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hf_compress.layers.fused import fused, numbers
from hf_compress.models.layer_kinds import CONVOLUTIONS, LayerKind

# The smallest scale. A row with a smaller one is practically zero, and division by this one is finite.
SMALLEST_SCALE = 1e-30
# Legal bits of a weight with one scale per row: one bit has no positive integer, and a byte holds eight bits.
BITS = range(2, 9)


@dataclass(frozen=True)
class Grid:
    """Integers of `bits` bits that share a scale `per` row of a weight, group of values in a row, token or tensor.

    Grids per row, group or token are symmetric: the scale is the largest magnitude over `2**(bits - 1) - 1`, zero is
    exact and nothing is clipped. The grid per tensor is affine: it has a zero point and covers an observed range.

    Example:
        >>> from hf_compress.layers import Grid
        >>> Grid(bits=8, per="row").largest
        127
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
class Grids:
    """The grids of weights, of embeddings and of the inputs of layers; None means floating point.

    A row of a convolution is all weights of one output channel. The inputs of convolutions, which have no tokens, are
    rounded where a tensor has one range. `attention` is the grid of the operands of the products inside attention:
    queries, keys, values and probabilities. `config.json` of a compressed model stores these fields.

    Example:
        >>> from hf_compress.layers import Grid, Grids
        >>> Grids(weight=Grid(4, "row"), embedding=Grid(8, "row")).of(embedding=True).bits
        8
    """

    weight: Grid
    embedding: Grid
    activation: Grid | None = None
    attention: Grid | None = None

    def of(self, embedding: bool) -> Grid:
        """Return the grid of an embedding's weight, or of any other weight."""
        return self.embedding if embedding else self.weight

    def of_input(self, layer: LayerKind) -> Grid | None:
        """Return the grid of the input of a kind of layer, or None if it stays in floating point.

        Example:
            >>> from hf_compress.layers import SCHEMES
            >>> dynamic = SCHEMES["int8-dynamic"]
            >>> dynamic.of_input("linear").per, dynamic.of_input("convolution2d"), dynamic.of_input("embedding")
            ('token', None, None)
        """
        tokens = self.activation is not None and self.activation.per == "token"
        return None if layer == "embedding" or (tokens and layer in CONVOLUTIONS) else self.activation


@dataclass(frozen=True, kw_only=True)
class Scheme(Grids):
    """A named set of grids with its words: for the help text, the model card and the citation.

    Args:
        help: a clause about the scheme for the help text of `--quant_scheme`.
        card: a phrase for the card's sentence "scheme `NAME`: CARD."; `{ranges}` says where the ranges came from.
        citation: BibTeX entries, or "".

    Example:
        >>> from hf_compress.layers import SCHEMES
        >>> SCHEMES["int8"].activation
        Grid(bits=8, per='tensor', group_size=None)
    """

    name: str
    help: str
    card: str
    citation: str = ""

    @property
    def grids(self) -> Grids:
        """The grids without the words."""
        return Grids(self.weight, self.embedding, self.activation, self.attention)


ROW_INT8 = Grid(bits=8, per="row")
TENSOR_INT8 = Grid(bits=8, per="tensor")

_JACOB = """@inproceedings{jacob-etal-2018-quantization,
  title     = {Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference},
  author    = {Jacob, Benoit and Kligys, Skirmantas and Chen, Bo and Zhu, Menglong and Tang, Matthew and others},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018},
  url       = {https://arxiv.org/abs/1712.05877}
}"""
_ROW_WEIGHTS = "8-bit weights and embeddings with one scale per row"

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="int8",
            weight=ROW_INT8,
            embedding=ROW_INT8,
            activation=TENSOR_INT8,
            help="8-bit weights, embeddings and inputs of linear layers, with input ranges learned in training",
            card=f"{_ROW_WEIGHTS}, and 8-bit inputs of linear layers with ranges {{ranges}}",
            citation=_JACOB,
        ),
        Scheme(
            name="int8-dynamic",
            weight=ROW_INT8,
            embedding=ROW_INT8,
            activation=Grid(bits=8, per="token"),
            help="the same, with one input scale per token computed at run time (not for inputs of convolutions)",
            card=f"{_ROW_WEIGHTS}, and 8-bit inputs of linear layers with one scale per token, computed at run time",
        ),
        Scheme(
            name="int8-weight",
            weight=ROW_INT8,
            embedding=ROW_INT8,
            help="8-bit weights and embeddings only",
            card=f"{_ROW_WEIGHTS}; activations stay in floating point",
        ),
        Scheme(
            name="int4-weight",
            weight=Grid(bits=4, per="group", group_size=64),
            embedding=ROW_INT8,
            help="4-bit weights with one scale per 64 values, and 8-bit embeddings",
            card="4-bit weights with one scale per 64 values of a row, and 8-bit embeddings; other values are floats",
        ),
        Scheme(
            name="int8-attention",
            weight=ROW_INT8,
            embedding=ROW_INT8,
            activation=TENSOR_INT8,
            attention=TENSOR_INT8,
            help="`int8`, and the operands of the products inside attention too",
            card=f"{_ROW_WEIGHTS}, and 8-bit inputs of linear layers and attention with ranges {{ranges}}",
            citation=_JACOB,
        ),
    )
}


def symmetric_scale(values: Float[Tensor, "*rows width"], grid: Grid) -> Float[Tensor, "*rows scales"]:
    """Return the float32 scales of `values` along their last dimension: one per row, or one per group of a row.

    The largest magnitude maps to the largest integer (Jacob et al., 2018, sec. 3). Scales have so few significant bits
    that an integer of up to 8 bits times its scale is exact, so rounding is idempotent to the last bit. Scales of
    weights are stored as bfloat16 (8 significant bits, rounded to nearest); the largest magnitude is still at most
    half a step from the largest integer. Scales of tokens are rounded up to 16 significant bits.

    Args:
        values: weights with one row per output feature or vocabulary entry, or activations with one row per token.
            If the width is not a multiple of the group size, the last group is shorter.
    """
    rows = values.detach().float()
    if grid.per == "group":
        width, group = values.shape[-1], _group_size(grid)
        rows = torch.nn.functional.pad(rows, (0, -width % group)).unflatten(-1, (-1, group))
    # Read both ends in place: a tensor of magnitudes would take as much memory as the weights.
    largest = torch.maximum(rows.amax(-1), rows.amin(-1).neg())
    if grid.per != "group":
        largest = largest.unsqueeze(-1)
    scale = divided(largest, grid.largest).clamp_(min=SMALLEST_SCALE)
    return _round_up(scale) if grid.per == "token" else _round_to_bfloat16(scale)


def to_integers(
    values: Float[Tensor, "*rows width"], scale: Float[Tensor, "*rows scales"], grid: Grid
) -> Float[Tensor, "*rows width"]:
    """Return the nearest integers of `values` on a symmetric grid as float32; halves round to even."""
    return torch.div(values.detach().float(), _spread(scale, values.shape[-1], grid)).round_()


def from_integers(
    integers: Shaped[Tensor, "*rows width"], scale: Float[Tensor, "*rows scales"], grid: Grid
) -> Float[Tensor, "*rows width"]:
    """Return the float32 values of `integers` on a symmetric grid."""
    return integers * _spread(scale, integers.shape[-1], grid)


def fake_quantize_symmetric(
    values: Float[Tensor, "*rows width"], grid: Grid, known: Float[Tensor, "*rows width"] | None = None
) -> Float[Tensor, "*rows width"]:
    """Return `values` rounded to their symmetric grid, in their own dtype.

    The scale is computed from the values, so no value is outside the grid and the gradient is straight-through
    everywhere (Bengio et al., 2013). Scales and rounding are float32 under autocast too.

    Args:
        known: the result of an earlier call with the same arguments, returned as is. The gradient still flows to
            `values` of this call.

    Example:
        >>> import torch
        >>> from hf_compress.layers import Grid, fake_quantize_symmetric
        >>> fake_quantize_symmetric(torch.tensor([[0.1, -1.27]]), Grid(bits=2, per="row"))
        tensor([[ 0.0000, -1.2734]])
    """
    return _RoundSymmetric.apply(values, grid, known)


def divided(values: Float[Tensor, "*shape"], number: int) -> Float[Tensor, "*shape"]:
    """Return `values` over `number`, rounded once on every device.

    A GPU computes `values / number` as a product with the inverse of the number, which rounds twice. Its scales would
    then differ from those that a CPU computes from the same weights.

    Example:
        >>> import torch
        >>> from hf_compress.layers.grids import divided
        >>> divided(torch.tensor([254.0]), 127)
        tensor([2.])
    """
    return values / values.new_full((), number)


def _round_up(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return positive float32 numbers rounded up to 16 significant bits."""
    return scale.view(torch.int32).add_(0xFF).bitwise_and_(~0xFF).view(torch.float32)


def _round_to_bfloat16(scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return positive float32 numbers rounded to 8 significant bits, halves up."""
    # Not by casting to bfloat16 and back: compilers remove that.
    return scale.view(torch.int32).add_(0x8000).bitwise_and_(~0xFFFF).view(torch.float32)


def _group_size(grid: Grid) -> int:
    assert grid.group_size is not None, "a grid per group has a group size"
    return grid.group_size


def _spread(scale: Float[Tensor, "*rows scales"], width: int, grid: Grid) -> Float[Tensor, "*rows spread"]:
    """Return the scales in a shape that broadcasts over rows of `width` values."""
    if grid.per != "group":
        return scale
    return scale.repeat_interleave(_group_size(grid), dim=-1)[..., :width]


def _rows(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    usual = numbers(dtype).nan_to_num(0.0, 1.0, -1.0).view(5, 200)
    zeros = torch.tensor([[0.0], [-0.0]], dtype=dtype).expand(2, 200)
    rows = torch.cat([usual, zeros, usual[:3] * 1e-36, usual[:3] * 1e3, numbers(dtype).view(5, 200)])
    # Beside 127 or 7 steps, all others are ties between integers.
    ties = torch.arange(-126.5, 127).repeat(2, 1).to(dtype)
    ties[:, 0] = 127
    for grid in (Grid(8, "row"), Grid(3, "row"), Grid(8, "token"), Grid(4, "group", 50)):
        yield rows, grid
    for grid in (Grid(8, "row"), Grid(8, "token"), Grid(4, "group", 127)):
        yield ties, grid
    yield numbers(dtype).nan_to_num(0.0, 1.0, -1.0).repeat(10).view(2, 5000), Grid(8, "row")


@fused(_rows)
def round_rows(values: Tensor, grid: Grid) -> Tensor:
    """Return the values rounded to their symmetric grid, whose scales are computed from them."""
    scale = symmetric_scale(values, grid)
    return to_integers(values, scale, grid).mul_(_spread(scale, values.shape[-1], grid)).to(values.dtype)


class _RoundSymmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Grid, known: Tensor | None) -> Tensor:
        return known.detach() if known is not None else round_rows(values, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None
