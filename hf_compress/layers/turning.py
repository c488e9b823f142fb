"""Turn the layers of a model into compressed layers, in place, and find them again."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_compress.layers.bits import weight_grids
from hf_compress.layers.compressed import LAYERS
from hf_compress.layers.grids import Grid, Grids
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.shared_inputs import Siblings
from hf_compress.layers.steps import has_steps
from hf_compress.models.layer_kinds import LayerKind
from hf_compress.models.targets import Target, named_modules, quantizable, tied


def quantize_layers(
    model: PreTrainedModel | PeftModel,
    scheme: Grids,
    exclude: Sequence[str] = (),
    bits: Sequence[str] = (),
    *,
    steps: bool = False,
) -> list[CompressedLayer]:
    """Turn the layers that `scheme` rounds into compressed layers in place, still switched off, and return them.

    Parameters, hooks, names and ties stay. A head tied to an embedding computes with the embedding's grid. Layers that
    were turned before keep their ranges. Layers that a loaded file rounds and `scheme` does not become plain again.

    Args:
        exclude: regular expressions of the layers to leave in floating point.
        bits: items `PATTERN=BITS` for weights with other bits than the scheme's (see `bits.weight_grids`).
        steps: whether new steps will be chosen for the weights. The layers get a buffer for them: zeros, or what a
            loaded file gave. Otherwise layers keep the steps of a loaded file, if `scheme` can have steps.

    Raises:
        ValueError: a pattern matches nothing, nothing is left to quantize, or an item is malformed.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.layers import SCHEMES, quantize_layers
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> type(quantize_layers(model, SCHEMES["int8"])[0]).__name__
        'CompressedEmbedding'
    """
    targets, siblings = quantizable(model, exclude), Siblings()
    grids = {id(target.weight): grid for target, grid in weight_grids(targets, scheme, bits)}
    layers = []
    for target in targets + tied(model, targets):
        input_grid = None if target.shares_embedding else scheme.of_input(target.kind)
        layers.append(turn(target.module, target.kind, grids[id(target.weight)], input_grid))
        layers[-1].siblings = siblings
        known = layers[-1].step
        if not steps and known is not None and not (has_steps(scheme) and not bits and bool(known.all())):
            layers[-1].keep_step(None)
        elif steps and known is None:
            layers[-1].keep_step(torch.zeros(target.weight.shape[target.row_dim], 1))
    turned = {id(layer) for layer in layers}
    for layer in compressed_layers(model).values():
        if id(layer) not in turned and layer.weight_grid is not None:
            switched_off(layer, None, None, layer.weight.device)
    return layers


def maskable_layers(targets: Sequence[Target]) -> list[CompressedLayer]:
    """Turn the layers of `targets` in place into ones that can carry a mask, if they are not yet, and return them."""
    return [
        target.module if isinstance(target.module, CompressedLayer) else turn(target.module, target.kind, None, None)
        for target in targets
    ]


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the compressed layers of `model` by name."""
    return {name: module for name, module in named_modules(model) if isinstance(module, CompressedLayer)}


def rounded(model: PreTrainedModel, targets: Sequence[Target]) -> list[Target]:
    """Return those of `targets` whose weight some layer has computed with on its grid.

    The others are never called: an unused pooler, or DeBERTa's `rel_embeddings`, whose weight the encoder reads
    directly. Training has not seen them rounded, so they must not be stored rounded.
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
    """Turn `layer` in place into its kind's class of `classes`, with these grids, switched off, and return it."""
    grafted = _grafted(cast(Hashable, type(layer)), cast(Hashable, classes[layer_kind]))
    object.__setattr__(layer, "__class__", grafted)
    assert isinstance(layer, CompressedLayer)
    return switched_off(layer, weight_grid, input_grid, layer.weight.device)


def switched_off(
    layer: CompressedLayer, weight_grid: Grid | None, input_grid: Grid | None, device: torch.device
) -> CompressedLayer:
    """Give `layer` these grids, without rounding and observing, and return it. A range that it has is kept."""
    # Not one by one: each would pass through `nn.Module.__setattr__`, which takes longer than all else here.
    vars(layer).update(
        weight_grid=weight_grid,
        input_grid=input_grid,
        observing=False,
        quantizing=False,
        rounded=None,
        step_range=None,
        on_grid=None,
        siblings=Siblings(),
    )
    if not layer.has_range:
        layer._buffers.pop("input_range", None)
    if layer.has_range and "input_range" not in layer._buffers:
        unseen = torch.tensor([math.inf, -math.inf], device=device, dtype=torch.float32)
        layer.register_buffer("input_range", unseen)
    return layer


@cache
def _grafted(layer_class: type[nn.Module], ours: type[CompressedLayer]) -> type[nn.Module]:
    """Return the class `ours` for layers of `layer_class`, whose own `forward` stays, for example Bart's."""
    if issubclass(layer_class, ours):
        return layer_class
    if issubclass(ours, layer_class):
        return ours
    # Ours comes last, so that their `super().forward` calls it.
    return type(f"{ours.__name__}As{layer_class.__name__}", (layer_class, ours), {})
