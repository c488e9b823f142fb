"""Models that cannot be saved as they are, found before they are trained."""

import re

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX

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
