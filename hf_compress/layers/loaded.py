"""Layers of a model that is loaded from a compressed file: further training keeps their grids and zeros."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from hf_compress.layers.grids import Grid
from hf_compress.layers.rounded import CompressedLayer, version_of
from hf_compress.layers.turning import turn
from hf_compress.models.layer_kinds import kind


def restore_layers(layers: Mapping[str, nn.Module], grids: Mapping[str, tuple[Grid | None, Grid | None]]) -> None:
    """Turn some of `layers` into ones that round to these grids of weight and input, before weights are loaded.

    Args:
        layers: the modules of a model by name.
        grids: of those to turn, by name.
    """
    for name, (weight_grid, input_grid) in grids.items():
        layer_kind = kind(layers[name])
        assert layer_kind is not None, "checked by `CompressionQuantizer`"
        vars(turn(layers[name], layer_kind, weight_grid, input_grid))["quantizing"] = True


def keep_compression(layers: Mapping[str, nn.Module], pruned: Sequence[str], *, steps: bool) -> None:
    """Let further training keep what a file was loaded with: the grids of weights, and the zeros of layers `pruned`.

    Loaded weights are on their grids already, so a layer starts to round when it is trained. Zeros get no gradient,
    and the optimizers of PyTorch do not move a weight that never had one. It costs nothing where the model is not
    trained.

    Args:
        layers: the modules of a model by name.
        pruned: the names of the layers whose zeros stay.
        steps: whether the scales in the file are steps that stay, or follow the largest weights of rows.
    """
    modules = {id(module): module for module in layers.values()}.values()
    rounding = [layer for layer in modules if isinstance(layer, CompressedLayer) and layer.weight_grid is not None]
    # Tied layers share the scale of one packed tensor. There is none where weights came as a `state_dict`.
    scales = {
        id(layer.weight): scale for layer in rounding if (scale := layer.__dict__.get("loaded_scale")) is not None
    }
    for layer in rounding if steps else ():
        layer.keep_step(scales.get(id(layer.weight)))
    owners = {id(layer.weight): layer for layer in reversed(rounding)}
    for module in modules:  # A head tied to an embedding computes with its grid.
        owner = owners.get(id(module._parameters.get("weight")))
        layer_kind = kind(module) if owner is not None and not isinstance(module, CompressedLayer) else None
        if owner is not None and layer_kind is not None:
            head = turn(module, layer_kind, owner.weight_grid, None)
            head.quantizing = True
            head.keep_step(owner.step)
            rounding.append(head)
    for layer in rounding:
        vars(layer)["on_grid"] = version_of(layer.weight)
    weights = [cast(Tensor, layers[name].weight) for name in pruned]
    for weight in {id(weight): weight for weight in weights}.values():
        if weight.requires_grad:
            weight.register_hook(partial(_without_zeros, weight))


def _without_zeros(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(weight.detach() == 0, 0.0)
