"""The layers of a model, and inside a layer its attention: queries, keys, values, and which tokens are padding."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

_DECODER_DEPTHS = ("num_decoder_layers", "decoder_layers")
# What families call the layers that compute queries, keys and values: three layers, or one for all three.
_SEPARATE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
_ATTENTION_DROPOUT = ("dropout", "attn_dropout", "attention_dropout", "dropout_prob")
_DROPOUT = (*_ATTENTION_DROPOUT, "activation_dropout", "hidden_dropout")
_FUSED = ("Wqkv", "qkv", "c_attn", "qkv_proj")
_MIXED = ("in_proj", "query_key_value")  # Queries, keys and values of one head side by side.


class NoLayers(ValueError):
    """A model has no layers, or no attention in them, that this package knows how to find."""


def decoder_depth(config: PreTrainedConfig) -> str | None:
    """Return the field of `config` with the number of decoder layers of an encoder-decoder."""
    return next((name for name in _DECODER_DEPTHS if config.is_encoder_decoder and hasattr(config, name)), None)


def layers_config(model: PreTrainedModel, config: PreTrainedConfig | None = None) -> PreTrainedConfig:
    """Return the part of a configuration that says how deep the model is: for the image tower of CLIP, its own.

    Args:
        config: another one of the same class as the model's, such as a copy.
    """
    config = model.config if config is None else config
    tower = getattr(config, "vision_config", None)
    return config if tower is None or model.main_input_name != "pixel_values" else tower


def stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Return the lists of layers in the model by name: as long as `config` says that the model is deep.

    Swin, ConvNeXt and their relatives have none: their lists hold stages (`config.depths`), each of another width.
    """
    config, found = layers_config(model), dict[str, nn.ModuleList]()
    if hasattr(config, "depths"):
        return found
    decoder = decoder_depth(config)
    for name, module in model.named_modules():
        depth = getattr(config, decoder if decoder and "decoder" in name.split(".") else "num_hidden_layers", None)
        inner = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inner:
            found[name] = module
    return found


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of an encoder or decoder in the order of their calls; shared layers appear more than once.

    Raises:
        NoLayers: the model has two stacks, or none that is known.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.stacks import layers_of
        >>> sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
        >>> [type(layer).__name__ for layer in layers_of(BertModel(BertConfig(vocab_size=9, **sizes)))]
        ['BertLayer', 'BertLayer']
    """
    config = layers_config(model)
    _refuse_two(model)
    shared, depth = getattr(config, "num_hidden_groups", None), getattr(config, "num_hidden_layers", 0)
    if shared is not None:  # ALBERT calls each group of layers several times.
        groups = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == shared)
        return [groups[index * shared // depth] for index in range(depth)]
    return list(stack_of(model)[1])


def stack_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the list of layers of an encoder or decoder, behind its name in the model.

    Raises:
        NoLayers: the model has two stacks, its layers share their weights, or none of its lists is known.
    """
    config, name = layers_config(model), type(model).__name__
    _refuse_two(model)
    if hasattr(config, "depths"):
        raise NoLayers(f"{name} has stages of different widths (`config.depths`) in place of equal layers")
    if getattr(config, "num_hidden_groups", None) is not None:
        raise NoLayers(f"the layers of {name} share their weights")
    found = list(stacks(model).items())
    if len(found) > 1:  # Another list may be as long by chance.
        found = [(where, layers) for where, layers in found if attention_of(layers[0]) is not None]
    if len(found) != 1:
        raise NoLayers(f"{name} has {len(found) or 'no'} lists of `config.num_hidden_layers` layers")
    return found[0]


def _refuse_two(model: PreTrainedModel) -> None:
    """Refuse an encoder-decoder. Whisper's classifier is none, although its configuration has both."""
    names = {part for name in stacks(model) for part in name.split(".")}
    if model.config.is_encoder_decoder and (not names or "decoder" in names):
        raise NoLayers(f"{type(model).__name__} has two stacks of layers, an encoder and a decoder")


def tells_layers_apart(model: PreTrainedModel, pattern: str) -> bool:
    """Return whether a regular expression is found in the names of modules of one layer, and not of another.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.stacks import tells_layers_apart
        >>> sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> tells_layers_apart(model, "attention"), tells_layers_apart(model, "layer.1")
        (False, True)
    """
    stack, layers = stack_of(model)
    found = [
        {name for name, _ in layer.named_modules() if re.search(pattern, f"{stack}.{number}.{name}")}
        for number, layer in enumerate(layers)
    ]
    return any(one != found[0] for one in found)


@dataclass(frozen=True)
class QueryKeyValue:
    """Where the queries, keys and values of one layer come from, before positions are rotated in.

    Args:
        modules: three layers, or one that computes all three.
        widths: the widths of queries, keys and values.
    """

    modules: tuple[nn.Module, ...]
    widths: tuple[int, int, int]


def attention_of(layer: nn.Module) -> nn.Module | None:
    """Return the module of self-attention in a layer, or None if its queries have no known name."""
    mixed = set(_MIXED)
    return next(
        (part for part in layer.modules() if _names(part) or mixed & {name for name, _ in part.named_children()}), None
    )


def query_key_value(layer: nn.Module, config: PreTrainedConfig) -> QueryKeyValue | None:
    """Return where queries, keys and values of a layer come from, or None if their names are unknown."""
    attention = attention_of(layer)
    if attention is None or not _names(attention):
        return None
    modules = tuple(attention.get_submodule(name) for name in _names(attention))
    widths = [_width(module) for module in modules]
    if len(widths) == 1:
        heads = getattr(config, "num_attention_heads", 1)
        shared = getattr(config, "num_key_value_heads", None) or heads
        key = widths[0] * shared // (heads + 2 * shared)
        widths = [widths[0] - 2 * key, key, key]
    return QueryKeyValue(modules, (widths[0], widths[1], widths[2]))


def attention_dropout(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where a layer keeps the probability of dropout in its attention maps: modules and attributes."""
    attention = attention_of(layer)
    if attention is None:
        return []
    modules = [getattr(attention, name, None) for name in _ATTENTION_DROPOUT]
    found = [(module, "p") for module in modules if isinstance(module, nn.Dropout)]
    numbers = (name for name in _ATTENTION_DROPOUT if isinstance(getattr(attention, name, None), float))
    return found + [(attention, name) for name in numbers]


def dropouts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where a model keeps the probabilities of dropout that are above 0: modules and attributes.

    Whole layers that are left out at random (LayerDrop, stochastic depth) are not among them.
    """
    found = [
        (module, name)
        for module in model.modules()
        for name in (("p",) if isinstance(module, nn.Dropout) else _DROPOUT)
        if isinstance(getattr(module, name, None), float | int)
    ]
    return [(module, name) for module, name in found if getattr(module, name) > 0]


def token_mask(model: PreTrainedModel, inputs: Mapping[str, Any], rows: int, places: int) -> Tensor | None:
    """Return which places of hidden states are not padding, of shape (rows, places), or None if that is unknown.

    Without an `attention_mask`, all count. Speech models shorten the waveform, and its mask with it.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor):
        return torch.ones(rows, places, dtype=torch.bool)
    if mask.shape[-1] != places and hasattr(model, "_get_feature_vector_attention_mask"):
        mask = model._get_feature_vector_attention_mask(places, mask)
    if mask.ndim > 3 or mask.shape[-1] != places:
        return None
    return mask.reshape(rows, places).bool()  # Inside the model, each choice of a row is a row.


def _names(module: nn.Module) -> tuple[str, ...]:
    children = {name for name, _ in module.named_children()}
    separate = next((names for names in _SEPARATE if children.issuperset(names)), ())
    return separate or next(((name,) for name in _FUSED if name in children), ())


def _width(module: nn.Module) -> int:
    layer: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return int(layer.nf if isinstance(layer, Conv1D) else layer.out_features)
