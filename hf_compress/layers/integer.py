"""The layers of a model loaded with `run="int8"`: their weights stay integers in memory.

Convolutions do not: no fast product of integers is there for them, and models cast pixels to the dtype of their
weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_compress.layers.affine import affine_parameters, to_affine_integers
from hf_compress.layers.compressed import (
    CompressedConv1D,
    CompressedEmbedding,
    CompressedLinear,
)
from hf_compress.layers.grids import Grid, from_integers, symmetric_scale, to_integers
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import turn
from hf_compress.models.layer_kinds import LayerKind, as_rows, from_rows, kind

# Rows per multiplication: few enough that their sums stay in the cache.
BLOCK = 512
# The widest input of a layer: beyond it, sums of 8-bit products could overflow int32.
WIDEST = 2**31 // (255 * 127)


@dataclass(frozen=True)
class Loaded:
    """The facts in a file about an integer weight besides the integers. `dtype` is that of the dense weight."""

    scale: Tensor
    grid: Grid
    dtype: torch.dtype


class Integer(CompressedLayer):
    """The base of integer layers: int8 weights with their scales, for inference only.

    `weight` holds the integers in the layer's own shape, one per byte for int4 too. `weight_scale` has the float32
    scale of each row or group; it is not in the state dict, because saving packs both into one tensor. `dtype` is that
    of the dense weight. It follows `model.to(dtype)`; scales and ranges do not.
    """

    weight_scale: Tensor
    integer_grid: Grid
    dtype: torch.dtype

    def rows(self) -> Tensor:
        """Return the integers with one row per output or vocabulary entry."""
        return as_rows(self.weight, self.layer_kind)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that `run="dense"` loads, bit for bit."""
        rows = from_integers(self.rows(), self.weight_scale, self.integer_grid).to(dtype)
        return from_rows(rows, self.layer_kind, self.weight.shape).contiguous()

    def keep(self, loaded: Loaded) -> None:
        """Store what belongs to the integers."""
        vars(self).update(integer_grid=loaded.grid, dtype=loaded.dtype, quantizing=True)
        self.register_buffer("weight_scale", loaded.scale.to(self.weight.device), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Refuse to train."""
        if mode:
            raise ValueError(
                'a model loaded with `run="int8"` holds integers and cannot be trained. Load it with '
                '`quantization_config=CompressionConfig(run="dense")`, which is the default.'
            )
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        super()._apply(fn, recurse)
        return self


class IntegerEmbedding(Integer, CompressedEmbedding):
    """An embedding that dequantizes the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        rows, scales = F.embedding(input, self.weight), F.embedding(input, self.weight_scale)
        return from_integers(rows, scales, self.integer_grid).to(self.dtype)


class _Product(Integer):
    """A linear layer on integers. It multiplies integers if `multiplies`, and the dequantized weight otherwise.

    Inputs are rounded to the same integers as in training, and the sums of products are exact in int32. The result
    differs from that of the dense layer only by floating-point rounding.
    """

    # Sums of the integers, if inputs have a static range: a zero point adds a multiple of them to the products. The
    # first product computes them, because reading all weights takes longer than mapping them.
    # Not a buffer: only a CPU multiplies integers.
    row_sums: Tensor | None = None
    static: tuple[Tensor, Tensor]  # Scale and zero point of the inputs, beside `row_sums`.

    def _sums(self) -> Tensor:
        """Return `row_sums`, computed once. `static` is computed before them, so other threads find both or none."""
        if self.row_sums is None:
            with torch.inference_mode(False):
                low, high = self.input_range.float().cpu()
                self.static = affine_parameters(low, high, cast(Grid, self.input_grid))
                self.row_sums = _row_sums(self.rows())
        return self.row_sums

    def multiplies(self, values: Tensor) -> bool:
        """Return whether to multiply integers: the scheme rounds inputs, it is fast, and no gradient is needed."""
        rounds = self.input_grid is not None and self.integer_grid.per == "row" and values.shape[-1] < WIDEST
        return rounds and multiplies_fast(values.device) and not (torch.is_grad_enabled() and values.requires_grad)

    @torch.no_grad()
    def product(self, values: Tensor) -> Tensor:
        """Return the layer's result for `values`, in their dtype, computed with integers."""
        inputs, weight = values.reshape(-1, values.shape[-1]), self.rows().t()
        scale = self.weight_scale.view(-1)
        bias = scale.new_zeros(()) if self.bias is None else cast(Tensor, self.bias).float()
        result = torch.empty(len(inputs), len(scale), dtype=torch.float32, device=values.device)
        grid = cast(Grid, self.input_grid)
        if self.has_range:
            row_sums = self._sums()
            step, zero_point = self.static
            # Shift unsigned integers to signed ones, which all processors multiply.
            shift = int(zero_point) - 2 ** (grid.bits - 1)
            offset = shift * row_sums
        for block, out in zip(inputs.split(BLOCK), result.split(BLOCK), strict=True):
            if self.has_range:
                integers = to_affine_integers(block, step, zero_point, grid).add_(shift)
                sums = torch._int_mm(integers.to(torch.int8), weight).sub_(offset)
            else:
                step = symmetric_scale(block, grid)
                sums = torch._int_mm(to_integers(block, step, grid).to(torch.int8), weight)
            torch.addcmul(bias, sums.float(), scale * step, out=out)
        return result.to(values.dtype).view(*values.shape[:-1], len(scale))


class IntegerLinear(_Product, CompressedLinear):
    """A linear layer on integers."""

    def forward(self, input: Tensor) -> Tensor:
        if self.multiplies(input):
            return self.product(input)
        return F.linear(self.rounded_input(input), self.dense_weight(input.dtype), self.bias)


class IntegerConv1D(_Product, CompressedConv1D):
    """GPT-2's linear layer on integers."""

    def forward(self, x: Tensor) -> Tensor:
        if self.multiplies(x):
            return self.product(x)
        rows = self.rounded_input(x).reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, rows, self.dense_weight(x.dtype)).view(*x.shape[:-1], self.nf)


LAYERS: dict[LayerKind, type[CompressedLayer]] = {
    "linear": IntegerLinear,
    "conv1d": IntegerConv1D,
    "embedding": IntegerEmbedding,
}


def note(layer: nn.Module, loaded: Loaded) -> None:
    """Attach to `layer`, whose integers are about to be loaded, what `keep_integers` needs."""
    layer.__dict__["loaded"] = loaded  # Transformers copies load operations, so they cannot keep state.


def keep_integers(model: nn.Module) -> None:
    """Turn the noted layers of `model`, and layers tied to them, into integer layers, and switch gradients off."""
    noted = [module for module in model.modules() if "loaded" in module.__dict__]
    owned = {id(module.weight): module.__dict__.pop("loaded") for module in noted}
    for module in model.modules():
        loaded = owned.get(id(module._parameters.get("weight")))
        if loaded is not None and (layer_kind := kind(module)) is not None:
            turned = turn(module, layer_kind, None, getattr(module, "input_grid", None), LAYERS)
            cast(Integer, turned).keep(loaded)
    model.requires_grad_(False)


def _row_sums(rows: Tensor) -> Tensor:
    """Return the sums of the rows of int8 integers in int32, as a product where that is fast: six times as fast."""
    if not multiplies_fast(rows.device) or rows.shape[1] >= WIDEST:
        return rows.sum(1, dtype=torch.int32)
    return torch._int_mm(rows.contiguous(), rows.new_ones(rows.shape[1], 1)).view(-1)


def multiplies_fast(device: torch.device) -> bool:
    """Return whether PyTorch multiplies int8 matrices on `device` faster than float32 ones, with exact sums.

    This holds for a CPU with VNNI. Without VNNI, oneDNN may sum in 16 bits, which saturate, or PyTorch falls back to
    its slowest loop.
    """
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and bool(torch.backends.mkldnn.enabled)
