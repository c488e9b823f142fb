"""Remove neurons and attention heads that nothing reads: smaller matrices that compute the same."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_compress.layers.rounded import CompressedLayer, version_of
from hf_compress.models.groups import GroupKind, Groups, groups
from hf_compress.models.heads import find_head
from hf_compress.models.sharding import gathered
from hf_compress.models.targets import named_modules
from hf_compress.models.widths import keep, width_of

M = TypeVar("M", bound=nn.Module)
# Largest difference of outputs that the order of sums explains, as a share of the largest output: by the bytes of a
# weight.
ROUNDING = {8: 1e-9, 4: 1e-4, 2: 5e-2}


@dataclass(frozen=True)
class Removal:
    """What was removed from one block.

    Args:
        name: of the block in the model.
        kind: "neurons" or "heads".
        before: the number of groups of the block.
        after: how many are left.

    Example:
        >>> from hf_compress.cut import Removal
        >>> Removal("encoder.layer.0", "neurons", before=1536, after=768).after
        768
    """

    name: str
    kind: GroupKind
    before: int
    after: int


def remove_groups(
    model: PreTrainedModel,
    kinds: Collection[GroupKind] = ("neurons", "heads"),
    exclude: Sequence[str] = (),
    *,
    uniform: bool = False,
) -> list[Removal]:
    """Remove the neurons and heads of `model` that nothing reads, in place, and return what was removed.

    A group can go if all weights that read it are zero, as pruning with `--prune_pattern neurons` or `heads` leaves
    them. The model computes the same up to floating-point rounding, quantized or not: ranges of inputs and steps of
    weights stay as they were trained. One group of each block stays in any case. Weights are new `Parameter` objects,
    so call it after training. `save_compressed` does the same while it writes, without changing the model.

    Args:
        kinds: what to remove.
        exclude: regular expressions; a block with a layer whose name contains a match stays as it is.
        uniform: whether all blocks of a kind keep the same number of groups.

    Raises:
        ValueError: the model has no such groups, has a PEFT adapter or sharded or integer weights, or its weights share
            scales by groups of inputs.

    Example:
        >>> import torch
        >>> from hf_compress.cut import remove_groups
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> with torch.no_grad():
        ...     _ = model.encoder.layer[0].output.dense.weight[:, :10].zero_()
        >>> remove_groups(model, ["neurons"])
        [Removal(name='encoder.layer.0', kind='neurons', before=16, after=6)]
        >>> model.encoder.layer[0].output.dense
        Linear(in_features=6, out_features=8, bias=True)
    """
    if isinstance(model, PeftModel):
        raise ValueError("Groups can only be removed from a model without an adapter. Call `merge_and_unload()` first.")
    blocks = groups(model, kinds, exclude)
    kept = kept_groups(blocks, uniform=uniform)
    keep_groups(model, blocks, kept)
    return [Removal(one.name, one.kind, one.count, int(stay.sum())) for one, stay in zip(blocks, kept, strict=True)]


@torch.no_grad()
def kept_groups(blocks: Sequence[Groups], *, uniform: bool = False) -> list[Bool[Tensor, " groups"]]:
    """Return for each block which groups stay: those with a weight that reads them, and at least one.

    Collective where weights are sharded.

    Args:
        uniform: whether all blocks of a kind keep the same number of groups. Those with fewer that are read keep some
            that are not.
    """
    kept = [one.consumer.nonzero(gathered(one.consumer.target.weight)).cpu() > 0 for one in blocks]
    least = {one.kind: 1 for one in blocks}
    if uniform:
        for one, stay in zip(blocks, kept, strict=True):
            least[one.kind] = max(least[one.kind], int(stay.sum()))
    for one, stay in zip(blocks, kept, strict=True):
        idle = (~stay).nonzero().flatten()
        stay[idle[: max(0, least[one.kind] - int(stay.sum()))]] = True
    return kept


def keep_groups(model: PreTrainedModel, blocks: Sequence[Groups], kept: Sequence[Bool[Tensor, " groups"]]) -> None:
    """Remove the other groups of `blocks` from the layers of `model`, in place, whether anything reads them or not.

    Raises:
        ValueError: weights are sharded or integers, or share scales by groups of inputs.
    """
    modules, plan = dict(named_modules(model)), dict[str, dict[str, Tensor]]()
    for block, stay in zip(blocks, kept, strict=True):
        if bool(stay.all()):
            continue
        for part in block.parts:
            sides = plan.setdefault(part.target.name, {})
            along = torch.cat([stay, stay.new_ones(1)])[part.owners()]
            sides[part.side] = sides.get(part.side, along.new_ones(len(along))) & along
    chosen = {}
    for name, sides in plan.items():
        layer = modules[name]
        _refuse(name, layer, inputs="inputs" in sides)
        every = {side: torch.ones(number, dtype=torch.bool) for side, number in _sides(layer).items()}
        outputs, inputs = ((every | sides)[side].nonzero().flatten() for side in ("outputs", "inputs"))
        chosen[name] = outputs, inputs
    loaded = {name: isinstance(layer := modules[name], CompressedLayer) and layer.is_on_grid() for name in chosen}
    keep(model, chosen)
    for name, (outputs, _) in chosen.items():
        _follow(modules[name], outputs, on_grid=loaded[name])


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
    blocks = groups(zeroed, kinds, exclude)
    kept = [torch.arange(block.count) < max(1, block.count - 1) for block in blocks]
    for block, stay in zip(blocks, kept, strict=True):
        part, layer = block.consumer, cast(Any, block.consumer.target.module)
        with torch.no_grad():
            masked = torch.where(part.mask(stay.to(layer.weight.device)), layer.weight, 0.0)
        layer.weight = nn.Parameter(masked, requires_grad=layer.weight.requires_grad)
    smaller = twin(zeroed)
    keep_groups(smaller, groups(smaller, kinds, exclude), kept)
    check_same(zeroed, smaller)


@torch.no_grad()
def check_same(model: PreTrainedModel, smaller: PreTrainedModel) -> None:
    """Check that `smaller`, a twin of `model` without some groups, computes the same on an example batch.

    It does nothing if `model` itself does not run on the batch.

    Raises:
        ValueError: `smaller` computes something else, or does not run.
    """
    name, failures = type(model).__name__, (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
    try:
        batch = find_head(model).example_batch(model)
    except ValueError:  # A body without a head, as in sentence-transformers.
        batch = model.dummy_inputs
    batch = {key: value.to(model.device) for key, value in batch.items()}
    try:
        ours = _unrounded(model)(**batch)[0].float()
    except failures:
        return
    try:
        theirs = _unrounded(smaller)(**batch)[0].float()
    except failures as error:
        raise ValueError(_cannot(name, f"it does not run without some of them ({error})")) from error
    apart, size = float((ours - theirs).abs().max()), float(ours.abs().max())
    if not apart <= ROUNDING[model.dtype.itemsize] * max(size, 1e-3):
        raise ValueError(_cannot(name, f"outputs of up to {size:.3g} differ by {apart:.3g}"))


def _twin(module: M, known: dict[int, nn.Module]) -> M:
    if id(module) not in known:
        made = known[id(module)] = object.__new__(type(module))
        vars(made).update(vars(module))
        for name in ("_parameters", "_buffers"):
            vars(made)[name] = dict(vars(module)[name])
        vars(made)["_modules"] = {name: child and _twin(child, known) for name, child in module._modules.items()}
    return cast(M, known[id(module)])


def _unrounded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a twin of `model` in evaluation mode that computes in floating point, with its class's own `forward`."""
    plain = twin(model)
    for module in plain.modules():
        module.training = False
        vars(module).pop("forward", None)  # A wrapper for mixed precision, bound to the model itself.
        if isinstance(module, CompressedLayer):
            module.quantizing = module.observing = False
    return plain


def _sides(layer: nn.Module) -> dict[str, int]:
    return dict(zip(("outputs", "inputs"), width_of(layer), strict=True))


def _refuse(name: str, layer: nn.Module, *, inputs: bool) -> None:
    """Refuse a layer whose rows or columns cannot be removed."""
    weight = layer.weight
    if isinstance(weight, DTensor):
        raise ValueError(f"Groups cannot be removed while {name} is sharded. `save_compressed` gathers the weights.")
    if not cast(Tensor, weight).is_floating_point():
        raise ValueError(
            f'Groups cannot be removed from {name}, which holds integers. Load the model with `run="dense"`.'
        )
    if inputs and isinstance(layer, CompressedLayer) and layer.weight_grid and layer.weight_grid.per == "group":
        raise ValueError(
            f"Groups cannot be removed from {name}: {layer.weight_grid.group_size} consecutive inputs share a scale. "
            "Choose a `--quant_scheme` with one scale per row, such as int8-weight."
        )


def _follow(layer: nn.Module, outputs: Tensor, *, on_grid: bool) -> None:
    """Let what belongs to the outputs of a compressed layer follow its weight."""
    if not isinstance(layer, CompressedLayer):
        return
    if layer.step is not None:
        layer.keep_step(layer.step[outputs.to(layer.step.device)])
    scale = layer.__dict__.get("loaded_scale")
    if scale is not None:
        layer.__dict__["loaded_scale"] = scale[outputs.to(scale.device)]
    layer.on_grid = version_of(layer.weight) if on_grid else None


def _cannot(name: str, reason: str) -> str:
    return (
        f"The groups of {name} cannot be removed: {reason}. Choose `--prune_pattern unstructured`, or exclude the "
        "layers in question with `--prune_exclude`."
    )
