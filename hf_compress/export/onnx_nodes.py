"""The quantized layers of an ONNX graph: integers, scales, and the operators between them."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.attention import OPERANDS, Operand, Probabilities
from hf_compress.layers.grids import SMALLEST_SCALE, Grid
from hf_compress.layers.rounded import CompressedLayer, integers_of, plain_class, step_of
from hf_compress.models.layer_kinds import CONVOLUTIONS, LAYER_KINDS, LayerKind, kind
from hf_compress.models.targets import Target, tied

# Marks an operator whose integers are stored in four bits, a type that torch lacks.
NARROW = {"hf_compress.bits": "4"}
NIBBLE = 8  # Added to a value in [-8, 7] so that it fits four bits.
# Zero point of a symmetric grid on kernels for unsigned inputs, which all CPUs have.
MIDDLE = 128


class GraphLayer(nn.Module):
    """Base of the layers in this module: an integer weight in place of the parameter, and its scales.

    They live only while a graph is traced. `weight` is an int8 buffer: code of Transformers that asks a weight for its
    dtype finds a quantized one.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_grid: Grid
    input_grid: Grid | None
    input_scale: Tensor
    input_zero: Tensor
    fits_nibble: bool

    @property
    def stored(self) -> Tensor:
        """The integers."""
        return self.weight

    @property
    def narrow(self) -> bool:
        """Whether the integers are stored in four bits. Kernels that multiply integers read eight."""
        multiplied = isinstance(self, GraphLinear) and self.weight_grid.per == "row"
        return self.fits_nibble and not multiplied

    def extra_repr(self) -> str:  # nn.Linear would look for sizes that Conv1D layers lack.
        return f"integers={tuple(self.weight.shape)}"

    def float_weight(self, axis: int) -> Tensor:
        """Return the weight in floating point.

        Args:
            axis: the axis along which each entry, or each group of entries, has a scale.
        """
        attributes: dict[str, Any] = {"axis": axis}
        if self.weight_grid.per == "group":
            attributes["block_size"] = self.weight_grid.group_size
        scale = self.weight_scale
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.stored, scale),
            attributes,
            dtype=torch.float32,
            shape=self.stored.shape,
            metadata_props=NARROW if self.narrow else None,
        )


class GraphLinear(GraphLayer, nn.Linear):
    """A linear layer of either orientation. Its integers are stored as kernels read them: (inputs, outputs)."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 2:
            # ONNX Runtime fuses the product of two matrices and a bias, and then uses no integer kernel.
            return self.forward(input.unsqueeze(1)).squeeze(1)
        product = self._product(input)
        return product if self.bias is None else product + self.bias

    def _product(self, input: Tensor) -> Tensor:
        grid = self.input_grid
        if grid is not None and grid.per == "token":
            return self._dynamic_product(input, grid)
        if grid is not None:
            input = _fake_quantized(input, self.input_scale, self.input_zero)
        return input @ self.float_weight(axis=0 if self.weight_grid.per == "group" else 1)

    def _dynamic_product(self, input: Tensor, grid: Grid) -> Tensor:
        scale = (input.abs().amax(-1, keepdim=True) / grid.largest).clamp(min=SMALLEST_SCALE)
        scale = _rounded_up(scale)
        integers = ((input / scale).round() + MIDDLE).to(torch.uint8)
        shape = (*input.shape[:-1], self.weight.shape[1])
        zeros = (self.input_zero, torch.zeros((), dtype=torch.int8))
        sums = torch.onnx.ops.symbolic(
            "MatMulInteger", (integers, self.weight, *zeros), dtype=torch.int32, shape=shape
        )
        return sums.float() * scale * self.weight_scale


class _GraphConvolution(GraphLayer):
    """Base of convolutions. Their weight has its own shape, or one row per output channel if groups share scales."""

    # Models cast pixels to the dtype of `weight`, which therefore stays floating point, without values.
    integers: Tensor
    whole: torch.Size  # Of the weight.

    @property
    def stored(self) -> Tensor:
        return self.integers

    def forward(self, input: Tensor) -> Tensor:
        if self.input_grid is not None:
            input = _fake_quantized(input, self.input_scale, self.input_zero)
        weight = self.float_weight(axis=1 if self.weight_grid.per == "group" else 0)
        return cast(Any, self)._conv_forward(input, weight.view(self.whole), self.bias)


class GraphConvolution1d(_GraphConvolution, nn.Conv1d):
    """A convolution over positions, in floating point on dequantized inputs and weights."""


class GraphConvolution2d(_GraphConvolution, nn.Conv2d):
    """A convolution over an image, as `GraphConvolution1d`."""


class GraphTiedLinear(GraphLayer, nn.Linear):
    """An output projection that shares the integers of the embeddings, one row per token."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.float_weight(axis=0), self.bias)


class GraphEmbedding(GraphLayer, nn.Embedding):
    """An embedding that looks up integers and scales, and multiplies only the rows that were looked up.

    No runtime looks up integers of four bits or less, so `weight` holds two of them in each byte (`_pairs`).
    """

    def forward(self, input: Tensor) -> Tensor:
        found = F.embedding(input, self.weight).float()
        if self.weight.dtype == torch.uint8:
            high = (found / 16).floor()
            found = torch.cat([found - 16 * high, high], -1)[..., : self.embedding_dim] - NIBBLE
        return found * F.embedding(input, self.weight_scale[:, None])


class GraphTiedEmbedding(GraphEmbedding):
    """An embedding of up to four bits that an output projection shares, so the whole weight is expanded anyway."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.float_weight(axis=0))


class GraphOperand(Operand):
    """An operand of attention for integer kernels: queries, keys or values as int8, probabilities as uint8."""

    known: tuple[Tensor, Tensor]

    def forward(self, values: Tensor) -> Tensor:
        return _fake_quantized(values, *self.known)


@dataclass(frozen=True)
class Stored:
    """A weight as a graph stores it, for all layers that share it.

    Args:
        grid: of the weight.
        integers: as a layer multiplies or looks them up: int8, or uint8 with two of four bits in each.
        scale: of the entries or groups of entries of an axis.
        fits_nibble: whether the integers fit in four bits.
    """

    grid: Grid
    integers: Tensor
    scale: Tensor
    fits_nibble: bool


def to_graph_layers(model: PreTrainedModel, config: CompressionConfig) -> None:
    """Turn the quantized layers of a reloaded `model` into layers of this module, in place."""
    for name in config.attention:
        _turn_operands(model.get_submodule(name))
    layers = [(name, model.get_submodule(name)) for name in config.quantized]
    targets = [Target(name, module, cast(LayerKind, kind(module))) for name, module in layers]
    turned: dict[int, Stored] = {}
    heads = tied(model, targets)
    shared = {id(target.weight) for target in heads if target.kind != "embedding"}
    for target in [*targets, *heads]:
        as_rows = target.kind == "embedding" or target.shares_embedding
        weight = target.weight
        if id(weight) not in turned:  # Tied layers share one tensor.
            grid = config.grid(target.name, target.kind)
            if target.kind in CONVOLUTIONS and target.as_rows(weight).shape[1] <= (grid.group_size or 0):
                grid = replace(grid, per="row", group_size=None)  # One group is the whole row.
            integers, scale = _integers(target, grid, as_rows)
            # By the values: with fixed steps, the integers of a tensor may be far smaller than its grid allows.
            fits = bool((integers >= -NIBBLE).all() and (integers < NIBBLE).all())
            if as_rows and fits and id(weight) not in shared:
                integers = _pairs(integers)
            turned[id(weight)] = Stored(grid, integers, scale, fits)
        _turn(target, turned[id(weight)])


def _turn_operands(attention: nn.Module) -> None:
    """Turn the operands of an attention module into operands of this module, in place."""
    # Signed and symmetric, because OpenVINO multiplies no others as integers. Where heads share a key, ONNX Runtime
    # 1.32 moves the rounding through the sharing and assumes an unsigned zero point.
    signed = getattr(attention, "num_key_value_groups", 1) == 1
    for operand in cast(nn.ModuleDict, attention._modules[OPERANDS]).values():
        assert isinstance(operand, Operand)
        scale, zero = operand.affine(torch.device("cpu"))
        if signed and not isinstance(operand, Probabilities):
            known = scale.clone(), torch.zeros((), dtype=torch.int8)
        else:
            known = scale.clone(), zero.to(torch.uint8)
        operand.__class__ = GraphOperand
        cast(GraphOperand, operand).known = known


def _integers(target: Target, grid: Grid, as_rows: bool) -> tuple[Tensor, Tensor]:
    integers, scale = integers_of(target.as_rows(target.weight.detach()), grid, step_of(target.module))
    if target.kind in CONVOLUTIONS:
        return (integers, scale) if grid.per == "group" else (target.from_rows(integers), scale.reshape(-1).clone())
    if grid.per == "group":
        return integers.t().contiguous(), scale.t().contiguous()
    return (integers if as_rows else integers.t().contiguous()), scale.reshape(-1).clone()


def _pairs(integers: Int8[Tensor, "rows width"]) -> UInt8[Tensor, "rows half"]:
    """Return two 4-bit integers per byte: the first half of a row in the low bits, the second in the high bits."""
    low, high = F.pad(integers + NIBBLE, (0, integers.shape[1] % 2)).to(torch.uint8).chunk(2, dim=1)
    return low + 16 * high


def _turn(target: Target, stored: Stored) -> None:
    layer = target.module
    input_grid = layer.input_grid if isinstance(layer, CompressedLayer) else None
    plain = cast(Hashable, plain_class(type(layer)) if isinstance(layer, CompressedLayer) else type(layer))
    if target.kind == "embedding":
        expanded = stored.fits_nibble and stored.integers.dtype == torch.int8
        layer.__class__ = _with_own_forward(plain, GraphTiedEmbedding if expanded else GraphEmbedding)
    elif target.kind in CONVOLUTIONS:
        cast(_GraphConvolution, layer).whole = target.weight.shape
        two = target.kind == "convolution2d"
        layer.__class__ = _with_own_forward(plain, GraphConvolution2d if two else GraphConvolution1d)
    else:
        layer.__class__ = GraphTiedLinear if target.shares_embedding else GraphLinear
    if target.kind in CONVOLUTIONS:
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        layer.register_buffer("integers", stored.integers)
    else:
        del layer._parameters["weight"]
        layer.register_buffer("weight", stored.integers)
    layer.register_buffer("weight_scale", stored.scale)
    assert isinstance(layer, GraphLayer)
    layer.weight_grid, layer.input_grid, layer.fits_nibble = stored.grid, input_grid, stored.fits_nibble
    if input_grid is not None and input_grid.per == "tensor":
        low, high = cast(Tensor, layer._buffers.pop("input_range"))
        step, zero = affine_parameters(low, high, input_grid)
        layer.register_buffer("input_scale", step.clone())
        layer.register_buffer("input_zero", zero.to(torch.uint8))
    elif input_grid is not None:
        layer.register_buffer("input_zero", torch.tensor(MIDDLE, dtype=torch.uint8))


@cache
def _with_own_forward(plain: type[nn.Module], ours: type[GraphLayer]) -> type[nn.Module]:
    if plain in LAYER_KINDS:
        return ours
    # Our class comes last, so that `super().forward` of Bart's embeddings calls it.
    return type(f"Graph{plain.__name__}", (plain, ours), {})


def _fake_quantized(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    shape = values.shape
    integers = torch.onnx.ops.symbolic("QuantizeLinear", (values, scale, zero), dtype=zero.dtype, shape=shape)
    return torch.onnx.ops.symbolic("DequantizeLinear", (integers, scale, zero), dtype=torch.float32, shape=shape)


def _rounded_up(scale: Tensor) -> Tensor:
    """Round up to 16 significant bits as `grids.symmetric_scale` does, in arithmetic that ONNX has."""
    nearest = _nearest(scale)
    above = _nearest(nearest * (1 + 1.02 * 2.0**-16))
    return torch.where(nearest < scale, above, nearest)


def _nearest(values: Tensor) -> Tensor:
    """Round `values` to 16 significant bits, half to even (Dekker, 1971, eq. 5.6)."""
    spread = values * (2.0**8 + 1)
    return spread - (spread - values)
