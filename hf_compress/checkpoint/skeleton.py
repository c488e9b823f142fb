"""A model with the layers of a packed checkpoint, whose weights are about to be loaded."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.layout import Layout
from hf_compress.layers.attention import restore_attention
from hf_compress.layers.integer import Loaded, keep_integers, note
from hf_compress.layers.loaded import keep_compression, restore_layers
from hf_compress.layers.rounded import RANGE
from hf_compress.models.layer_kinds import LayerKind, kind
from hf_compress.models.widths import resize


class Skeleton:
    """Gives a model the layers of a checkpoint, in place, and attaches to them what belongs to their weights.

    Layers are looked up in one dictionary, because `get_submodule` for each of them takes a tenth of the time to map a
    dense file.

    Args:
        model: with weights of any values, or on the meta device.
        config: of the checkpoint.

    Raises:
        ValueError: configuration and model do not fit together.
    """

    layers: dict[str, nn.Module]  # All modules of the model, by all their names.
    expected: Layout  # Dtypes and shapes of the tensors of the model, whose weights may become integers.

    def __init__(self, model: PreTrainedModel, config: CompressionConfig) -> None:
        self.model, self.config = model, config
        if config.run == "int8" and not config.quantized:
            raise ValueError(
                '`run="int8"` needs a quantized checkpoint; the weights of this one are floating point. Load it with '
                '`run="dense"`, the default.'
            )
        resize(model, config.widths)
        if config.attention:
            assert config.grids is not None and config.grids.attention is not None, "checked on construction"
            for operand in restore_attention(model, config.attention, config.grids.attention):
                operand.quantizing = True
        self.layers = dict(model.named_modules(remove_duplicate=False))
        kinds: dict[str, LayerKind] = {}
        for name in dict.fromkeys((*config.quantized, *config.pruned)):
            found = kind(self.layers[name] if name in self.layers else layer_of(model, name))
            if found is None:
                raise ValueError(f"`quantization_config` names {name}, a layer that hf_compress cannot pack.")
            kinds[name] = found
        restore_layers(self.layers, config.layer_grids({name: kinds[name] for name in config.quantized}))
        tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self.expected = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def note(self, name: str, scale: Tensor) -> None:
        """Attach to the layer of the weight `name` what is known of its integers."""
        owner = name.removesuffix(".weight")
        layer = self.layers[owner]
        layer_kind = kind(layer) or "linear"
        if self.config.keeps_integers(layer_kind):
            note(layer, Loaded(scale, self.config.grid(owner, layer_kind), self.expected[name][0]))
        else:
            layer.__dict__["loaded_scale"] = scale

    def drop_ranges(self) -> None:
        """Remove the ranges of inputs, which `take` will bring: two numbers cost as much to load as a weight."""
        for layer in self.layers.values():
            layer._buffers.pop(RANGE, None)

    def take(self, beside: Mapping[str, Tensor]) -> None:
        """Give the loaded model what a decoded copy has beside the weights: ranges, and scales by name of weight."""
        for name, tensor in beside.items():
            owner, _, leaf = name.rpartition(".")
            if leaf == RANGE:
                self.layers[owner]._buffers[leaf] = tensor.to(self._device_of(owner))
            else:
                self.note(name, tensor)

    def finish(self) -> None:
        """Make the loaded model compute with its integers, or keep its grids and zeros in further training."""
        if self.config.run == "int8":
            _check_one_device(self.model)
            keep_integers(self.model)
        pruned = self.config.pruned if self.config.run == "dense" else ()
        keep_compression(self.layers, pruned, steps=self.config.steps)

    def _device_of(self, name: str) -> torch.device:
        """Return the device of the module `name`: that of a weight in it, or else in the module around it."""
        while (weight := next(self.layers[name].parameters(), None)) is None:
            name = name.rpartition(".")[0]
        return weight.device


def layer_of(model: PreTrainedModel, name: str) -> nn.Module:
    """Return the layer `name`, which the configuration of a checkpoint names.

    Raises:
        ValueError: the model has no such layer.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"`quantization_config` names the layer {name}, which {type(model).__name__} does not have. Load the "
            "checkpoint with the class it was saved from."
        ) from error


def _check_one_device(model: PreTrainedModel) -> None:
    """Refuse a model in several places: its layers move what they need there, but not the scales of integers."""
    places = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()})
    if len(places) > 1 or "disk" in places:
        raise ValueError(
            f'`run="int8"` needs the whole model on one device; `device_map` puts it on {", ".join(places)}. '
            'Give one device, such as `device_map={"": "cpu"}`: integers take a quarter of the memory. Or load with '
            '`run="dense"`.'
        )
