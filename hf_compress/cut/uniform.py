"""Models with the same number of neurons and heads in every layer: an ordinary configuration says their widths."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from hf_compress.models.groups import GroupKind
from hf_compress.models.widths import forget_widths

# The entry of `config.json` that says the widths that were there before removal.
WHOLE = "uncut_widths"
# The fields of configurations that count neurons and heads. Of several in a model, all are changed.
FIELDS: dict[GroupKind, tuple[str, ...]] = {
    "neurons": (
        "intermediate_size",
        "hidden_dim",
        "d_ff",
        "n_inner",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "ffn_dim",
    ),
    "heads": ("num_attention_heads", "num_key_value_heads", "encoder_attention_heads", "decoder_attention_heads"),
}


def uniform_config(model: PreTrainedModel, counts: Mapping[GroupKind, tuple[int, int]]) -> PreTrainedConfig:
    """Return the configuration of `model` with fewer neurons or heads in every layer.

    The former values are in its entry `uncut_widths`.

    Args:
        counts: the number of groups of a block before and after, by kind.

    Raises:
        ValueError: the configuration cannot say it.

    Example:
        >>> from hf_compress.cut.uniform import uniform_config
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = uniform_config(BertModel(BertConfig(vocab_size=9, **sizes)), {"neurons": (16, 6)})
        >>> config.intermediate_size, config.uncut_widths
        (6, {'intermediate_size': 16})
    """
    config = copy.deepcopy(model.config)
    whole: dict[str, int] = dict(getattr(config, WHOLE, None) or {})
    for kind, (before, after) in counts.items():
        known = {config.attribute_map.get(field, field): None for field in FIELDS[kind]}
        for field in known:
            value = vars(config).get(field)
            if field == "n_inner" and value is None and "n_inner" in vars(config):  # Of GPT-2: four times the width.
                value = before
            if isinstance(value, int) and (kind == "heads" or value == before):
                whole.setdefault(field, value)
                setattr(config, field, value * after // before)
    setattr(config, WHOLE, whole)
    return config


def say_widths(model: PreTrainedModel, counts: Mapping[GroupKind, tuple[int, int]]) -> None:
    """Let the configuration of `model` say the widths that its layers have, in place.

    Args:
        counts: the number of groups of a block before and after removal, by kind.

    Raises:
        ValueError: the configuration cannot say it.
    """
    config = uniform_config(model, counts)
    ordinary = {name: tuple(weight.shape) for name, weight in _built(model, config, counts).named_parameters()}
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    different = [name for name in shapes if name in ordinary and shapes[name] != ordinary[name]]
    if different:
        raise _cannot(model, counts, f"{different[0]} then has another shape")
    vars(model.config).update(vars(config))  # Its modules have the same configuration.
    forget_widths(model)


def whole_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the model before groups were removed from every layer."""
    whole = copy.deepcopy(config)
    for field, value in (getattr(config, WHOLE, None) or {}).items():
        setattr(whole, field, value)
    vars(whole).pop(WHOLE, None)
    return whole


def _built(
    model: PreTrainedModel, config: PreTrainedConfig, counts: Mapping[GroupKind, tuple[int, int]]
) -> PreTrainedModel:
    """Return the model that `config` describes, without memory for its weights."""
    try:
        read = type(config).from_dict(config.to_dict())  # As from a file, so that it is validated.
        with torch.device("meta"):
            return type(model)(read)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError) as error:
        raise _cannot(model, counts, str(error)) from error


def _cannot(model: PreTrainedModel, counts: Mapping[GroupKind, tuple[int, int]], reason: str) -> ValueError:
    wanted: list[Any] = [f"{after} of {before} {kind}" for kind, (before, after) in counts.items()]
    remedy = "; or choose `--prune_pattern neurons`" if "heads" in counts else ""
    return ValueError(
        f"`--prune_uniform` needs a configuration that says {' and '.join(wanted)} in every layer, but that of "
        f"{type(model).__name__} cannot: {reason}. Leave the flag out: the packed file then says the widths of each "
        f"layer{remedy}."
    )
