"""The convolutions of an ONNX graph: as products of integers where that is faster, or else in floating point."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_compress.export.onnx_layers import GraphLayer, as_integers, dequantized, fake_quantized
from hf_compress.layers.grids import Grid

# The most places of a kernel that are gathered one by one for a product.
MOST_TAPS = 16


class GraphConvolution(GraphLayer):
    """Base of convolutions.

    ONNX Runtime's `ConvInteger` takes longer than a convolution of floats, and its `QLinearConv` rounds the result, as
    no training has seen it. Its product of integers is faster (benchmarks/onnx_convolutions.py). So a convolution
    without groups whose input is rounded becomes a product, if it slides over positions or if its patches do not
    overlap. The rounded inputs of each place are gathered as bytes. Any other one computes on dequantized inputs and
    weights.
    """

    # (inputs, outputs) for a product; one row per output channel if groups of values share scales; or else in the
    # shape of the weight. Models cast pixels to the dtype of `weight`, which stays floating point, without values.
    integers: Tensor
    whole: torch.Size  # The shape of the weight.
    product: bool  # Whether it becomes one.
    zero_number: int  # The zero point of the input, for padding.

    @property
    def stored(self) -> Tensor:
        return self.integers

    @property
    def multiplies(self) -> bool:
        return self.product

    def forward(self, input: Tensor) -> Tensor:
        layer = cast(Any, self)
        if self.product:
            columns, sizes = self.columns(as_integers(input, self.input_scale, self.input_zero))
            found = dequantized(columns, self.input_scale, self.input_zero) @ self.float_weight(axis=1)
            found = found if layer.bias is None else found + layer.bias
            found = found.transpose(1, 2)
            return found if len(sizes) == 1 else found.unflatten(2, sizes)
        if self.input_grid is not None:
            input = fake_quantized(input, self.input_scale, self.input_zero)
        weight = self.float_weight(axis=1 if self.weight_grid.per == "group" else 0)
        result: Tensor = layer._conv_forward(input, weight.view(self.whole), layer.bias)
        return result

    def columns(self, integers: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return the inputs of every place, of shape (batch, places, inputs), and how many places each dimension has.

        Args:
            integers: the input of the layer, rounded.
        """
        raise NotImplementedError

    @staticmethod
    def arranged(rows: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight in the order of `columns`, (inputs, outputs), from one row per output channel."""
        raise NotImplementedError


class GraphConvolution1d(GraphConvolution, nn.Conv1d):
    """A convolution over positions."""

    def columns(self, integers: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        (taps,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        around = cast(tuple[int, ...], self.padding)[0]
        positions = integers.transpose(1, 2)
        if around:
            positions = F.pad(positions, (0, 0, around, around), value=self.zero_number)
        # Ends are counted from the back: a tracer cannot tell how long a slice up to a computed end is.
        behind = [dilation * (taps - 1 - tap) for tap in range(taps)]
        found = [positions[:, tap * dilation : -after or None : stride] for tap, after in enumerate(behind)]
        gathered = torch.cat(found, dim=2)
        return gathered, (gathered.shape[1],)

    @staticmethod
    def arranged(rows: Tensor, shape: torch.Size) -> Tensor:
        return rows.view(shape).permute(2, 1, 0).flatten(0, 1).contiguous()


class GraphConvolution2d(GraphConvolution, nn.Conv2d):
    """A convolution over an image."""

    def columns(self, integers: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        (high, wide), (height, width) = self.kernel_size, integers.shape[2:]
        down, across = height // high, width // wide
        tiles = integers[:, :, : down * high, : across * wide].unflatten(3, (across, wide)).unflatten(2, (down, high))
        return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), (down, across)

    @staticmethod
    def arranged(rows: Tensor, shape: torch.Size) -> Tensor:
        return rows.t().contiguous()


def becomes_product(layer: nn.Conv1d | nn.Conv2d, weight: Grid, inputs: Grid | None) -> bool:
    """Return whether a convolution becomes a product of integers in a graph.

    Example:
        >>> from torch import nn
        >>> from hf_compress.export.onnx_convolutions import becomes_product
        >>> from hf_compress.layers import Grid
        >>> row, tensor = Grid(8, "row"), Grid(8, "tensor")
        >>> becomes_product(nn.Conv2d(3, 8, kernel_size=4, stride=4), row, tensor)
        True
        >>> becomes_product(nn.Conv2d(8, 8, kernel_size=7, padding=3, groups=8), row, tensor)
        False
    """
    rounds = weight.per == "row" and inputs is not None
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.Conv1d):
        return rounds and plain and math.prod(layer.kernel_size) <= MOST_TAPS
    apart = layer.kernel_size == layer.stride and layer.padding == (0, 0) and layer.dilation == (1, 1)
    return rounds and plain and apart
