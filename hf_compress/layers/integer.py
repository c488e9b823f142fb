"""The layers of a model that is loaded with `run="int8"`: their weights stay integers in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_compress.layers.grids import (
    Grid,
    affine_parameters,
    from_integers,
    symmetric_scale,
    to_affine_integers,
    to_integers,
)
from hf_compress.layers.rounded import (
    CompressedConv1D,
    CompressedEmbedding,
    CompressedLayer,
    CompressedLinear,
    turn,
)
from hf_compress.models.targets import LayerKind, kind

# Rows that are multiplied at once: so few that their sums stay in the cache.
BLOCK = 512
# Of the input of one layer: beyond it the sums of 8-bit products could leave int32.
WIDEST = 2**31 // (255 * 127)


@dataclass(frozen=True)
class Loaded:
    """What a file says of an int8 weight beside its integers; `dtype` is the one its dense weight would have."""

    scale: Tensor
    grid: Grid
    dtype: torch.dtype


class Integer(CompressedLayer):
    """What the integer layers share: int8 weights, their scales, and no training.

    `weight` holds the integers in the layer's own shape, of int4 too one in a byte; `weight_scale` has the float32
    scale of each row or group. No scale is in the state dict: saving packs both into one. `dtype` is that of the
    dense weight and follows `model.to(dtype)`; scales and ranges do not.
    """

    weight_scale: Tensor
    integer_grid: Grid
    dtype: torch.dtype

    def rows(self) -> Tensor:
        """The integers with one row per output or entry of the vocabulary."""
        return self.weight

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight that `run="dense"` loads, bit for bit."""
        return from_integers(self.rows(), self.weight_scale, self.integer_grid).to(dtype)

    def keep(self, loaded: Loaded) -> None:
        """Take over what belongs to the integers."""
        self.integer_grid, self.dtype, self.quantizing = loaded.grid, loaded.dtype, True
        self.register_buffer("weight_scale", loaded.scale.to(self.weight.device), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Refuses to train."""
        if mode:
            raise ValueError(
                'a model loaded with `run="int8"` holds integers and cannot be trained. Load it with '
                '`quantization_config=CompressionConfig(run="dense")`, which is the default.'
            )
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # In half precision scales and ranges would be others: they go to the device, and stay in float32.
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device))
        exact = {name: self._buffers[name] for name in ("weight_scale", "input_range") if name in self._buffers}
        super()._apply(fn, recurse)
        self._buffers.update({name: cast(Tensor, buffer).to(probe.device) for name, buffer in exact.items()})
        self.dtype = probe.dtype
        return self


class IntegerEmbedding(Integer, CompressedEmbedding):
    """An embedding that dequantizes the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        rows, scales = F.embedding(input, self.weight), F.embedding(input, self.weight_scale)
        return from_integers(rows, scales, self.integer_grid).to(self.dtype)


class _Product(Integer):
    """A linear layer on integers: multiplied as such if `multiplies`, or else with the dequantized weight.

    Inputs are rounded to the integers that training rounded them to, and the sums of products are exact in int32: from
    the dense layer's result differs only how that is rounded.
    """

    row_sums: Tensor | None  # Of the integers: what a zero point adds to the sums of products is a multiple of them.
    static: tuple[Tensor, Tensor]  # Scale and zero point of the inputs, if they have a range.

    def keep(self, loaded: Loaded) -> None:
        super().keep(loaded)
        sums = self.rows().sum(1, dtype=torch.int32) if self.has_range else None
        self.register_buffer("row_sums", sums, persistent=False)
        if self.has_range:
            low, high = self.input_range.float().cpu()
            self.static = affine_parameters(low, high, cast(Grid, self.input_grid))

    def multiplies(self, values: Tensor) -> bool:
        """Whether to multiply `values` as integers: the scheme rounds them, it is fast, and no gradient passes."""
        rounds = self.input_grid is not None and self.integer_grid.per == "row" and values.shape[-1] < WIDEST
        return rounds and multiplies_fast(values.device) and not (torch.is_grad_enabled() and values.requires_grad)

    @torch.no_grad()
    def product(self, values: Tensor) -> Tensor:
        """The layer's result for `values`, in their dtype, multiplied as integers."""
        inputs, weight = values.reshape(-1, values.shape[-1]), self.rows().t()
        scale = self.weight_scale.view(-1)
        bias = scale.new_zeros(()) if self.bias is None else cast(Tensor, self.bias).float()
        result = torch.empty(len(inputs), len(scale), dtype=torch.float32, device=values.device)
        grid = cast(Grid, self.input_grid)
        if self.row_sums is not None:
            step, zero_point = self.static
            # From unsigned integers to signed ones, which all processors multiply.
            shift = int(zero_point) - 2 ** (grid.bits - 1)
            offset = shift * self.row_sums
        for block, out in zip(inputs.split(BLOCK), result.split(BLOCK), strict=True):
            if self.row_sums is not None:
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

    def rows(self) -> Tensor:
        return self.weight.t()

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        return super().dense_weight(dtype).t().contiguous()

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
    """Leaves with `layer`, whose integers are about to be set, what `keep_integers` will want of them."""
    layer.__dict__["loaded"] = loaded  # Transformers copies the operations of a loading: they cannot keep anything.


def keep_integers(model: nn.Module) -> None:
    """Turns the noted layers of `model`, and those tied to them, into integer layers, and all gradients off."""
    noted = [module for module in model.modules() if "loaded" in module.__dict__]
    owned = {id(module.weight): module.__dict__.pop("loaded") for module in noted}
    for module in model.modules():
        layer_kind = kind(module)
        if layer_kind is not None and (loaded := owned.get(id(module.weight))) is not None:
            turned = turn(module, layer_kind, None, getattr(module, "input_grid", None), LAYERS)
            cast(Integer, turned).keep(loaded)
    model.requires_grad_(False)


def multiplies_fast(device: torch.device) -> bool:
    """Whether PyTorch multiplies int8 matrices on `device` faster than float32 ones, with exact sums.

    True of a CPU with VNNI. Without it oneDNN may sum in 16 bits, which saturate, or PyTorch takes its slowest loop.
    """
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and bool(torch.backends.mkldnn.enabled)
