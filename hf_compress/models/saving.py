"""Models that cannot be saved as they are, found before they are trained."""

import copy
import re

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from transformers import PreTrainedModel

from hf_compress.models.heads import bare
from hf_compress.models.sentences import sentence_kind
from hf_compress.models.targets import named_modules, whole


def refuse_unsavable(model: object) -> None:
    """Refuse a model that cannot be saved whole after training.

    Args:
        model: what a Trainer trains.

    Raises:
        ValueError: it has an adapter that no `PeftModel` is around, or shares a weight that it does not declare as
            tied.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.saving import refuse_unsavable
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> refuse_unsavable(BertModel(BertConfig(vocab_size=9, **sizes)))
    """
    inner, modules = bare(whole(model)), list(whole(model).modules())
    name, adapted = type(inner).__name__, any(isinstance(module, BaseTunerLayer) for module in modules)
    if adapted and sentence_kind(inner) is not None:
        raise ValueError(
            f"A {name} with an adapter (`add_adapter`) cannot be compressed. Train all its weights, or merge the "
            "adapter first."
        )
    if adapted and not any(isinstance(module, PeftModel) for module in modules):
        raise ValueError(
            f"A {name} with an adapter of its own (`add_adapter`) cannot be compressed: Transformers saves the "
            "adapter alone. Use `peft.get_peft_model(model, LoraConfig(...))` instead, or train all its weights."
        )
    if groups := _undeclared_ties(inner):
        raise ValueError(
            f"{name} shares one weight between {' and '.join(groups[0])}, but does not declare that in "
            "`_tied_weights_keys`, so it cannot be saved. Declare it there, or give each module its own weight."
        )


def refuse_changed(model: PreTrainedModel) -> None:
    """Refuse a model with other modules than its configuration says: `from_pretrained` would build those.

    Models with adapters pass, and classes that cannot be built from a configuration alone.

    Args:
        model: what a Trainer trains.

    Raises:
        ValueError: somebody replaced a head or took out layers, and left the configuration as it was.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.saving import refuse_changed
        >>> sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> model.encoder.layer = model.encoder.layer[:1]
        >>> model.config.num_hidden_layers = 1
        >>> refuse_changed(model)
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built = type(model)(copy.deepcopy(model.config))
    except (RuntimeError, TypeError, ValueError):
        return
    ours, theirs = _names(model), _names(built)
    if ours == theirs:
        return
    name, more, fewer = type(model).__name__, sorted(ours - theirs), sorted(theirs - ours)
    said = [f"has {more[0]}, which its configuration does not say"] if more else []
    said += [f"lacks {fewer[0]}, which its configuration says"] if fewer else []
    raise ValueError(
        f"This {name} {' and '.join(said)} ({len(more) + len(fewer)} parameters in all), so the saved model could not "
        "be loaded again. Change the configuration with the model (`config.num_hidden_layers`, `config.num_labels`), "
        "or put the changed model into a class of its own."
    )


def _names(model: nn.Module) -> set[str]:
    """Return the names of all parameters, those of tied ones too."""
    return {name.replace(_CHECKPOINT_PREFIX, "") for name, _ in model.named_parameters(remove_duplicate=False)}


def _undeclared_ties(model: nn.Module) -> list[list[str]]:
    """Return the names of parameters that are one object under several names which the model does not declare as tied.

    Transformers refuses to save such a model, because a reloaded one would not share the weight.
    """
    declared = [
        f"{name}.{pattern}" if name else pattern
        for name, module in named_modules(model)
        for pattern in (getattr(module, "_tied_weights_keys", None) or {})
    ]
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(_CHECKPOINT_PREFIX, ""))
    undeclared = [
        [name for name in group if not any(re.search(pattern, name) for pattern in declared)]
        for group in names.values()
        if len(group) > 1
    ]
    return [group for group in undeclared if len(group) > 1]
