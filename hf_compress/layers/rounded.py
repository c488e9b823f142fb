"""The fake-quantized layers: linear layers and embeddings that compute with numbers on their grids."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_compress.layers.bits import weight_grids
from hf_compress.layers.grids import Grid, Grids, affine_parameters, fake_quantize_affine, fake_quantize_symmetric
from hf_compress.layers.shared_inputs import Siblings
from hf_compress.models.targets import LAYER_KINDS, LayerKind, Target, kind, named_modules, quantizable, tied


class CompressedLayer(nn.Module):
    """What the fake-quantized layers share: their grids, the switches and the observed range of their input.

    Layers are never built but turned into (`quantize_layers`), so that parameters, hooks and names stay. The one
    addition to the state dict is the buffer `input_range` (2,) of layers whose input has a static range: the float32
    moving average of its least and largest value, infinite and crossed before the first observation.

    Beside a PEFT adapter (`adapters`) the layer carries its own mask, since the weight that is pruned, merged with the
    adapter, is computed anew in every forward and cannot be set to zero. While the adapter is disabled the layer is
    the plain one that it was made from. A layer that is only masked has no grids.
    """

    weight: Tensor
    weight_grid: Grid | None
    input_grid: Grid | None
    input_range: Tensor
    step_range: Tensor | None  # Extremes since the last optimizer step. No buffer: DDP would overwrite it from rank 0.
    observing: bool
    quantizing: bool
    # The dtype in which the layer's own forward, and no other code, rounded the weight: its own, unless FSDP casts it
    # for computing. None if it never did.
    rounded: torch.dtype | None
    mask: Tensor | None = None  # True where a weight is kept. No buffer: DDP would send it round at every step.
    adapter: tuple[LoraLayer, ...] = ()  # In a tuple, or it would become a submodule: this layer's own, or any other.
    siblings: Siblings  # The same for all layers of a model.

    @property
    def plain(self) -> bool:
        """Whether neither mask nor grids are in force, because the adapter is disabled."""
        return any(adapter.disable_adapters for adapter in self.adapter)

    def masked(self, weight: Tensor) -> Tensor:
        """`weight`, this layer's or what stands for it, with zeros where it is pruned."""
        if self.mask is None or self.plain:
            return weight
        # Unlike a product it leaves no negative zeros, and no NaN.
        return torch.where(self.mask.to(weight.device), weight, 0.0)

    @property
    def has_range(self) -> bool:
        return self.input_grid is not None and self.input_grid.per == "tensor"

    @property
    def ready(self) -> bool:
        """Whether the layer was trained on its grids: rounding was on and the range, if it has one, was observed."""
        return self.quantizing and not (self.has_range and bool(self.input_range.isinf().any()))

    def rounded_weight(self) -> Tensor:
        """The weight as a matrix of rows, on its grid once quantization has begun."""
        weight = self.masked(self.weight)
        if not self.quantizing or self.plain or self.weight_grid is None:
            return weight
        self.rounded = weight.dtype
        return fake_quantize_symmetric(weight, self.weight_grid)

    def rounded_input(self, values: Tensor) -> Tensor:
        """The layer's input, observed while ranges move, on its grid once quantization has begun."""
        if self.input_grid is None or self.plain:
            return values
        if self.has_range and self.training and self.observing:
            self._observe(values)
        if not self.quantizing:
            return values
        return self.siblings.rounded(values, self._grid_of_input, lambda known: self._round_input(values, known))

    def _grid_of_input(self) -> Hashable:
        """What tells the grid of the input from that of another layer's."""
        return self.input_grid, *(self.input_range.tolist() if self.has_range else ())

    def _round_input(self, values: Tensor, known: Tensor | None) -> Tensor:
        grid = cast(Grid, self.input_grid)
        if not self.has_range:
            return fake_quantize_symmetric(values, grid, known)
        scale, zero_point = affine_parameters(self.input_range[0], self.input_range[1], grid)
        return fake_quantize_affine(values, scale, zero_point, grid, known)

    @torch.no_grad()
    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """What PEFT puts in the layer's place when it unloads its adapters: the layer, its mask gone into the weight.

        Args:
            merge: False to get back the plain layer of the model that the adapter was made for.
        """
        if merge and self.mask is not None:
            self.weight.copy_(self.masked(self.weight))
        if not merge or self.weight_grid is None:
            cast(nn.Module, self).__class__ = _plain_class(type(self))
        self.mask, self.adapter = None, ()
        return self

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        seen = self.siblings.extremes(values)
        if self.step_range is not None:
            seen = torch.stack(
                [torch.minimum(self.step_range[0], seen[0]), torch.maximum(self.step_range[1], seen[1])]
            )
        self.step_range = seen


class CompressedLinear(CompressedLayer, nn.Linear):
    """A linear layer that computes with its weight, and its input if the scheme says so, on their grids."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.rounded_input(input), self.rounded_weight(), self.bias)


class CompressedConv1D(CompressedLayer, Conv1D):
    """GPT-2's linear layer, whose weight has shape (inputs, outputs), on its grids."""

    bias: Tensor
    nf: int

    def rounded_weight(self) -> Tensor:
        weight = self.masked(self.weight)
        if not self.quantizing or self.plain or self.weight_grid is None:
            return weight
        self.rounded = weight.dtype
        # Contiguous as the stored weight will be: another layout may make the matrix product differ in the last bit.
        return fake_quantize_symmetric(weight.t(), self.weight_grid).t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rounded_input(x).reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, rows, self.rounded_weight()).view(*x.shape[:-1], self.nf)


class CompressedEmbedding(CompressedLayer, nn.Embedding):
    """An embedding that returns its rows on their grid; only the rows looked up are rounded."""

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        if not self.quantizing or self.plain or self.weight_grid is None:
            return rows
        self.rounded = rows.dtype
        return fake_quantize_symmetric(rows, self.weight_grid)


LAYERS: dict[LayerKind, type[CompressedLayer]] = {
    "linear": CompressedLinear,
    "conv1d": CompressedConv1D,
    "embedding": CompressedEmbedding,
}


def quantize_layers(
    model: PreTrainedModel | PeftModel,
    scheme: Grids,
    exclude: Sequence[str] = (),
    bits: Sequence[str] = (),
) -> list[CompressedLayer]:
    """The layers of `model` that `scheme` rounds, turned in place into fake-quantized ones, still switched off.

    Parameters, hooks, names and ties stay as they are. A head tied to an embedding computes with the embedding's grid.
    Layers turned before keep their ranges.

    Args:
        exclude: patterns of what is left in floating point.
        bits: items `PATTERN=BITS` for weights of other bits than the scheme's (`bits.weight_grids`).

    Raises:
        ValueError: a pattern matches nothing, nothing is left to quantize, or an item means nothing.
    """
    targets, siblings = quantizable(model, exclude), Siblings()
    grids = {id(target.weight): grid for target, grid in weight_grids(targets, scheme, bits)}
    layers = []
    for target in targets + tied(model, targets):
        input_grid = None if target.shares_embedding else scheme.activation
        layers.append(turn(target.module, target.kind, grids[id(target.weight)], input_grid))
        layers[-1].siblings = siblings
    return layers


def maskable_layers(targets: Sequence[Target]) -> list[CompressedLayer]:
    """The layers of `targets`, turned in place into ones that may carry a mask, where they are not yet."""
    return [
        target.module if isinstance(target.module, CompressedLayer) else turn(target.module, target.kind, None, None)
        for target in targets
    ]


def restore_layers(model: PreTrainedModel, names: Sequence[str], input_grid: Grid) -> None:
    """Turn the linear layers `names` into ones that round their inputs; their weights are on their grids already."""
    for name in names:
        module = model.get_submodule(name)
        layer_kind = kind(module)
        assert layer_kind is not None, "checked by `CompressionQuantizer`"
        layer = turn(module, layer_kind, weight_grid=None, input_grid=input_grid)
        layer.quantizing = True


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """The fake-quantized layers of `model` by name."""
    return {name: module for name, module in named_modules(model) if isinstance(module, CompressedLayer)}


def rounded(model: PreTrainedModel, targets: Sequence[Target]) -> list[Target]:
    """Those of `targets` whose weight some layer has computed with on its grid.

    The others are never called: an unused pooler, or DeBERTa's `rel_embeddings`, whose weight the encoder reads past
    their forward. Training has not seen them rounded, so that they must not be stored so.
    """
    used = {id(layer.weight) for layer in compressed_layers(model).values() if layer.rounded}
    return [target for target in targets if id(target.weight) in used]


def turn(
    layer: nn.Module,
    layer_kind: LayerKind,
    weight_grid: Grid | None,
    input_grid: Grid | None,
    classes: Mapping[LayerKind, type[CompressedLayer]] = LAYERS,
) -> CompressedLayer:
    """`layer`, turned in place into its kind's class of `classes`, with these grids and switched off."""
    layer.__class__ = _grafted(cast(Hashable, type(layer)), cast(Hashable, classes[layer_kind]))
    assert isinstance(layer, CompressedLayer)
    return switched_off(layer, weight_grid, input_grid, layer.weight.device)


def switched_off(
    layer: CompressedLayer, weight_grid: Grid | None, input_grid: Grid | None, device: torch.device
) -> CompressedLayer:
    """`layer` with these grids, neither rounding nor observing; a range that it has stays."""
    layer.weight_grid, layer.input_grid = weight_grid, input_grid
    layer.observing = layer.quantizing = False
    layer.rounded = layer.step_range = None
    layer.siblings = Siblings()
    if layer.has_range and "input_range" not in layer._buffers:
        unseen = torch.tensor([math.inf, -math.inf], device=device, dtype=torch.float32)
        layer.register_buffer("input_range", unseen)
    return layer


@cache
def _grafted(layer_class: type[nn.Module], ours: type[CompressedLayer]) -> type[nn.Module]:
    """The class `ours` for layers of `layer_class`; a `forward` of its own, as of Bart's embeddings, stays."""
    if issubclass(layer_class, ours):
        return layer_class
    if issubclass(ours, layer_class):
        return ours
    # Ours comes last, so that it is what their `super().forward` calls.
    return type(f"{ours.__name__}As{layer_class.__name__}", (layer_class, ours), {})


def _plain_class(layer_class: type[CompressedLayer]) -> type[nn.Module]:
    """The class that `_grafted` made the given one from."""
    plain = {LAYERS[layer_kind]: plain_class for plain_class, layer_kind in LAYER_KINDS.items()}
    return plain[layer_class] if layer_class in plain else layer_class.__bases__[0]
