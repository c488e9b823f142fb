"""Find the modules of attention of a model by what they do: call Transformers' `AttentionInterface`."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from hf_compress.models.heads import find_head
from hf_compress.models.targets import named_modules

# The attention function that finds its callers, the attribute of a model that keeps their names, and that of a module
# which keeps the names of the terms that it gives.
_PROBE, _FOUND, _GIVEN = "hf_compress_probe", "_hf_compress_attention", "_hf_compress_given"
_callers: list[nn.Module] = []


def attention_modules(model: PreTrainedModel, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Return the modules of `model` by name that leave their products to Transformers' `AttentionInterface`.

    They are found by running the model once on a small example batch, with an attention function that notes who calls
    it; forward hooks run too. No code is read, so decorators and subclasses change nothing.

    Args:
        exclude: regular expressions; a module whose name contains a match is left out.

    Raises:
        ValueError: the model does not run on an example batch.
    """
    found = model.__dict__.get(_FOUND) or _probe(model)
    modules = dict(named_modules(model))
    return {
        name: modules[name]
        for name in found
        if name in modules and not any(re.search(pattern, name) for pattern in exclude)
    }


def remember_attention(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Keep the names with the model, for when it cannot be run: one process alone cannot run sharded weights."""
    setattr(model, _FOUND, list(names))


def given_terms(module: nn.Module) -> frozenset[str] | None:
    """Return the terms that a module of attention gives beside queries, keys, values and mask, without those of None.

    None if it has not been asked.
    """
    found: frozenset[str] | None = vars(module).get(_GIVEN)
    return found


@torch.no_grad()
def _probe(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that call `AttentionInterface` on an example batch."""
    modules = dict(named_modules(model))
    configs: dict[int, Any] = {
        id(module.config): module.config for module in modules.values() if hasattr(module, "config")
    }
    before = [(config, config._attn_implementation) for config in configs.values()]
    training = [module for module in modules.values() if module.training]
    _callers.clear()
    model.eval()
    try:
        for config, _ in before:
            config._attn_implementation_internal = _PROBE  # The property would also set configurations inside.
        model(**_example(model))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"The attention of {type(model).__name__} cannot be found: the model does not run on an example batch "
            f"({error}). Choose a `--quant_scheme` that leaves attention alone, such as `int8`."
        ) from error
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        for module in training:
            module.training = True
    callers = {id(module) for module in _callers}
    _callers.clear()
    return [name for name, module in modules.items() if id(module) in callers]


def _example(model: PreTrainedModel) -> dict[str, Tensor]:
    try:
        batch: dict[str, Tensor] = find_head(model).example_batch(model)
    except ValueError:  # A body without a head, as in sentence-transformers.
        batch = model.dummy_inputs
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _note_caller(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Note the module that asks for attention, and the terms it gives. Only the shape of the result is right."""
    _callers.append(module)
    vars(module)[_GIVEN] = frozenset(name for name, term in kwargs.items() if term is not None)
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2).contiguous(), None


AttentionInterface.register(_PROBE, _note_caller)
AttentionMaskInterface.register(_PROBE, eager_mask)
