"""The layers of an ONNX graph on integers: what the exporter traces in place of linear layers and embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_compress.layers.attention import Operand
from hf_compress.layers.grids import SMALLEST_SCALE, Grid

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
        return self.fits_nibble and not self.multiplies

    @property
    def multiplies(self) -> bool:
        """Whether a kernel multiplies the integers."""
        return False

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

    @property
    def multiplies(self) -> bool:
        return self.weight_grid.per == "row"

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
            input = fake_quantized(input, self.input_scale, self.input_zero)
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
        return fake_quantized(values, *self.known)


def fake_quantized(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return `values` rounded, as a pair of operators."""
    return dequantized(as_integers(values, scale, zero), scale, zero)


def as_integers(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return the integers of `values`, of the type of the zero point."""
    shape = values.shape
    return torch.onnx.ops.symbolic("QuantizeLinear", (values, scale, zero), dtype=zero.dtype, shape=shape)


def dequantized(integers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return the values of `integers`."""
    shape = integers.shape
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
