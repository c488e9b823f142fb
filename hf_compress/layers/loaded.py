"""Layers of a model that is loaded from a compressed file: further training keeps their grids and zeros."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel

from hf_compress.layers.grids import Grid
from hf_compress.layers.rounded import CompressedLayer, version_of
from hf_compress.layers.turning import compressed_layers, turn
from hf_compress.models.targets import kind


def restore_layers(model: PreTrainedModel, grids: Mapping[str, tuple[Grid | None, Grid | None]]) -> None:
    """Turn layers, by name, into ones that round to these grids of weight and input, before weights are loaded."""
    for name, (weight_grid, input_grid) in grids.items():
        module = model.get_submodule(name)
        layer_kind = kind(module)
        assert layer_kind is not None, "checked by `CompressionQuantizer`"
        turn(module, layer_kind, weight_grid, input_grid).quantizing = True


def keep_compression(model: PreTrainedModel, pruned: Sequence[str], *, steps: bool) -> None:
    """Let further training keep what a file was loaded with: the grids of weights, and the zeros of layers `pruned`.

    Loaded weights are on their grids already, so a layer starts to round when it is trained. Zeros get no gradient,
    and the optimizers of PyTorch do not move a weight that never had one. It costs nothing where the model is not
    trained.

    Args:
        pruned: the names of the layers whose zeros stay.
        steps: whether the scales in the file are steps that stay, or follow the largest weights of rows.
    """
    rounding = [layer for layer in compressed_layers(model).values() if layer.weight_grid is not None]
    # Tied layers share the scale of one packed tensor. There is none where weights came as a `state_dict`.
    scales = {
        id(layer.weight): scale for layer in rounding if (scale := layer.__dict__.get("loaded_scale")) is not None
    }
    for layer in rounding if steps else ():
        layer.keep_step(scales.get(id(layer.weight)))
    owners = {id(layer.weight): layer for layer in reversed(rounding)}
    for module in model.modules():  # A head tied to an embedding computes with its grid.
        owner = owners.get(id(getattr(module, "weight", None)))
        layer_kind = kind(module)
        if owner is not None and layer_kind is not None and not isinstance(module, CompressedLayer):
            head = turn(module, layer_kind, owner.weight_grid, None)
            head.quantizing = True
            head.keep_step(owner.step)
    for layer in compressed_layers(model).values():
        if layer.weight_grid is not None:
            layer.on_grid = version_of(layer.weight)
    for weight in {id(weight): weight for weight in (model.get_submodule(name).weight for name in pruned)}.values():
        if cast(Tensor, weight).requires_grad:
            cast(Tensor, weight).register_hook(partial(_without_zeros, weight))


def _without_zeros(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(weight.detach() == 0, 0.0)
