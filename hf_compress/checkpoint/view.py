"""The view of a model that is saved: its weights in modules and with a configuration that saving may change."""

import copy
from collections.abc import Sequence

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_compress.cut.depth import check_removal_of_layers, remove_layers
from hf_compress.cut.rehearsal import check_same, twin
from hf_compress.cut.removal import counts_of, keep_groups, kept_groups
from hf_compress.cut.uniform import say_widths
from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import GroupKind
from hf_compress.models.sharding import gathered
from hf_compress.models.targets import PROJECTIONS, named_modules


def view_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of its own with the weights of `model`, without what only training needs.

    Changes of its modules, configuration and attributes do not reach `model`.
    """
    view = twin(model)
    view.config = copy.deepcopy(model.config)
    view._modules.pop(PROJECTIONS, None)
    vars(view).pop("save_pretrained", None)  # That of a loaded model would save the model itself, not this view.
    vars(view.config).pop("distributed_config", None)  # With it, saving would gather again, on this rank alone.
    view.hf_quantizer = None
    return view


def without_layers(view: PreTrainedModel) -> PreTrainedModel:
    """Return another view without the layers of `view` that are passed over.

    Raises:
        ValueError: a model loaded from its configuration computes something else.
    """
    check_removal_of_layers(view)
    smaller = twin(view)
    smaller.config = copy.deepcopy(view.config)
    remove_layers(smaller)
    return smaller


def without_groups(
    view: PreTrainedModel, kinds: Sequence[GroupKind], exclude: Sequence[str] = (), *, uniform: bool = False
) -> PreTrainedModel:
    """Return another view without the groups of `view` that nothing reads. Collective where weights are sharded.

    Args:
        kinds: what to remove.
        exclude: regular expressions of layers that stay.
        uniform: whether all blocks of a kind keep the same number of groups, and the configuration says so.

    Raises:
        ValueError: the smaller model computes something else, or no configuration can say what it is.
    """
    smaller = twin(view)
    smaller.config = copy.deepcopy(view.config)
    blocks = find_groups(smaller, kinds, exclude)
    kept = kept_groups(blocks, uniform=uniform)
    sharded = _gather(smaller, {part.target.name for block in blocks for part in block.parts})
    keep_groups(smaller, find_groups(smaller, kinds, exclude), kept)
    if not sharded:
        check_same(view, smaller)
    if uniform:
        say_widths(smaller, counts_of(blocks, kept))
    return smaller


def _gather(view: PreTrainedModel, names: set[str]) -> bool:
    """Give layers of `view` whole weights on the first process, in place, and return whether any are sharded.

    Other processes get weights without memory. Collective.
    """
    first, sharded = not dist.is_initialized() or dist.get_rank() == 0, False
    for name, layer in named_modules(view):
        for own, parameter in layer.named_parameters(recurse=False):
            sharded = sharded or isinstance(parameter, DTensor)
            if name in names and isinstance(parameter, DTensor):
                whole = gathered(parameter).to("cpu" if first else "meta")
                setattr(layer, own, nn.Parameter(whole, requires_grad=parameter.requires_grad))
    return sharded
