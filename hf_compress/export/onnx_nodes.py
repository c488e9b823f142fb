"""The quantized layers of an ONNX graph: integers, scales, and the operators between them."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export.onnx_convolutions import (
    GraphConvolution,
    GraphConvolution1d,
    GraphConvolution2d,
    becomes_product,
)
from hf_compress.export.onnx_layers import (
    MIDDLE,
    NIBBLE,
    GraphEmbedding,
    GraphLayer,
    GraphLinear,
    GraphOperand,
    GraphTiedEmbedding,
    GraphTiedLinear,
)
from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.attention import OPERANDS, Operand, Probabilities
from hf_compress.layers.grids import Grid
from hf_compress.layers.rounded import CompressedLayer, integers_of, plain_class, step_of
from hf_compress.models.layer_kinds import CONVOLUTIONS, LAYER_KINDS, LayerKind, kind
from hf_compress.models.targets import Target, tied

_GRAPH_CONVOLUTIONS: dict[LayerKind, type[GraphConvolution]] = {
    "convolution1d": GraphConvolution1d,
    "convolution2d": GraphConvolution2d,
}


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
        if grid.per == "group":
            return integers, scale
        if _is_product(target, grid):
            integers = _GRAPH_CONVOLUTIONS[target.kind].arranged(integers, target.weight.shape)
        else:
            integers = target.from_rows(integers)
        return integers, scale.reshape(-1).clone()
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
        product = _is_product(target, stored.grid)
        ours = cast(Hashable, _GRAPH_CONVOLUTIONS[target.kind])
        layer.__class__ = _with_own_forward(plain, ours)
        vars(layer).update(whole=target.weight.shape, product=product)
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
        vars(layer)["zero_number"] = int(zero)
    elif input_grid is not None:
        layer.register_buffer("input_zero", torch.tensor(MIDDLE, dtype=torch.uint8))


def _is_product(target: Target, grid: Grid) -> bool:
    """Return whether a convolution becomes a product of integers."""
    layer = cast(nn.Conv1d | nn.Conv2d, target.module)
    return becomes_product(layer, grid, layer.input_grid if isinstance(layer, CompressedLayer) else None)


@cache
def _with_own_forward(plain: type[nn.Module], ours: type[GraphLayer]) -> type[nn.Module]:
    if plain in LAYER_KINDS:
        return ours
    # Our class comes last, so that `super().forward` of Bart's embeddings calls it.
    return type(f"Graph{plain.__name__}", (plain, ours), {})
