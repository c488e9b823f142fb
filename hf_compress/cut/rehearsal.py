"""Removal tried on an example batch: a model without some groups must compute the same, or is refused."""

import copy
from collections.abc import Collection, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_compress.cut.removal import counts_of, keep_groups
from hf_compress.cut.uniform import say_widths
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import GroupKind
from hf_compress.models.heads import find_head
from hf_compress.models.widths import resize, widths_of

M = TypeVar("M", bound=nn.Module)
# Largest difference of outputs that the order of sums explains, as a share of the largest output: by the bytes of a
# weight.
ROUNDING = {8: 1e-9, 4: 1e-4, 2: 5e-2}


def twin(module: M) -> M:
    """Return modules of their own with the weights of `module` and its hooks, for other weights to be put there.

    `copy.copy` would build a model that FSDP shards again.
    """
    return _twin(module, {})


def check_removal(model: PreTrainedModel, kinds: Collection[GroupKind], exclude: Sequence[str] = ()) -> None:
    """Check on an example batch that `model` can compute without some of its groups, and computes the same.

    It removes one group of each block from a twin of the model. It does nothing if the model does not run on the
    batch, or if weights are sharded, because one process alone cannot run them.

    Raises:
        ValueError: the model computes something else, or does not run.
    """
    if any(isinstance(weight, DTensor) or weight.is_meta for weight in model.parameters()):
        return
    zeroed = twin(model)
    blocks = find_groups(zeroed, kinds, exclude)
    kept = [torch.arange(block.count) < max(1, block.count - 1) for block in blocks]
    for block, stay in zip(blocks, kept, strict=True):
        part, layer = block.consumer, cast(Any, block.consumer.target.module)
        with torch.no_grad():
            masked = torch.where(part.mask(stay.to(layer.weight.device)), layer.weight, 0.0)
        layer.weight = nn.Parameter(masked, requires_grad=layer.weight.requires_grad)
    smaller = twin(zeroed)
    keep_groups(smaller, find_groups(smaller, kinds, exclude), kept)
    check_same(zeroed, smaller)


@torch.no_grad()
def check_same(model: PreTrainedModel, smaller: PreTrainedModel) -> None:
    """Check that `smaller`, a twin of `model` without some groups, computes the same on an example batch.

    It does nothing if `model` itself does not run on the batch.

    Raises:
        ValueError: `smaller` computes something else, or does not run.
    """
    name, failures = type(model).__name__, (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
    batch = example_batch(model)
    try:
        ours = unrounded(model)(**batch)[0].float()
    except failures:
        return
    try:
        theirs = unrounded(smaller)(**batch)[0].float()
    except failures as error:
        raise ValueError(_cannot(name, f"it does not run without some of them ({error})")) from error
    apart, size = float((ours - theirs).abs().max()), float(ours.abs().max())
    if not apart <= ROUNDING[model.dtype.itemsize] * max(size, 1e-3):
        raise ValueError(_cannot(name, f"outputs of up to {size:.3g} differ by {apart:.3g}"))


def example_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return some inputs of `model`, on its device."""
    try:
        batch = find_head(model).example_batch(model)
    except ValueError:  # A body without a head, as in sentence-transformers.
        batch = model.dummy_inputs
    return {key: value.to(model.device) for key, value in batch.items()}


def unrounded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a twin of `model` in evaluation mode that computes in floating point, with its class's own `forward`."""
    plain = twin(model)
    for module in plain.modules():
        module.training = False
        vars(module).pop("forward", None)  # A wrapper for mixed precision, bound to the model itself.
        if isinstance(module, CompressedLayer):
            module.quantizing = module.observing = False
    return plain


def check_uniform(
    model: PreTrainedModel, kinds: Collection[GroupKind], zeros: Sequence[int], exclude: Sequence[str] = ()
) -> None:
    """Check that a configuration can say what `model` is once some groups of every block are gone.

    Args:
        zeros: how many groups of each block go.

    Raises:
        ValueError: it cannot.
    """
    with torch.device("meta"):
        smaller = type(model)(copy.deepcopy(model.config))
    resize(smaller, widths_of(model))
    blocks = find_groups(smaller, kinds, exclude)
    kept = [torch.arange(one.count) < one.count - gone for one, gone in zip(blocks, zeros, strict=True)]
    keep_groups(smaller, blocks, kept)
    say_widths(smaller, counts_of(blocks, kept))


def _twin(module: M, known: dict[int, nn.Module]) -> M:
    if id(module) not in known:
        made = known[id(module)] = object.__new__(type(module))
        vars(made).update(vars(module))
        for name in ("_parameters", "_buffers"):
            vars(made)[name] = dict(vars(module)[name])
        vars(made)["_modules"] = {name: child and _twin(child, known) for name, child in module._modules.items()}
    return cast(M, known[id(module)])


def _cannot(name: str, reason: str) -> str:
    return (
        f"The groups of {name} cannot be removed: {reason}. Choose `--prune_pattern unstructured`, or exclude the "
        "layers in question with `--prune_exclude`."
    )
