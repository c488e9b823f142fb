"""The compressed layer of each kind: linear layers, convolutions and embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from hf_compress.layers.grids import fake_quantize_symmetric
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.steps import fake_quantize_steps
from hf_compress.models.layer_kinds import LayerKind


class CompressedLinear(CompressedLayer, nn.Linear):
    """A linear layer with its weight, and its input if the scheme says so, on grids."""

    layer_kind = "linear"

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.rounded_input(input), self.rounded_weight(), self.bias)


class CompressedConv1D(CompressedLayer, Conv1D):
    """GPT-2's linear layer, whose weight has shape (inputs, outputs), on grids."""

    layer_kind = "conv1d"
    bias: Tensor
    nf: int

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rounded_input(x).reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, rows, self.rounded_weight()).view(*x.shape[:-1], self.nf)


class CompressedConvolution1d(CompressedLayer, nn.Conv1d):
    """A convolution over positions, such as those of Wav2Vec2's feature extractor, on grids."""

    layer_kind = "convolution1d"

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.rounded_input(input), self.rounded_weight(), self.bias)


class CompressedConvolution2d(CompressedLayer, nn.Conv2d):
    """A convolution over an image, such as ViT's of patches, on grids."""

    layer_kind = "convolution2d"

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.rounded_input(input), self.rounded_weight(), self.bias)


class CompressedEmbedding(CompressedLayer, nn.Embedding):
    """An embedding that returns its rows on their grid. Only the rows looked up are rounded."""

    layer_kind = "embedding"

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        if not self.quantizing or self.plain or self.weight_grid is None or self.is_on_grid():
            return rows
        self.rounded = rows.dtype
        if self.step is not None:
            return fake_quantize_steps(rows, F.embedding(input, self.step.to(rows.device)))
        return fake_quantize_symmetric(rows, self.weight_grid)


LAYERS: dict[LayerKind, type[CompressedLayer]] = {
    "linear": CompressedLinear,
    "conv1d": CompressedConv1D,
    "embedding": CompressedEmbedding,
    "convolution1d": CompressedConvolution1d,
    "convolution2d": CompressedConvolution2d,
}
