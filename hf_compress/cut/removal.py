"""Remove neurons and attention heads that nothing reads: smaller matrices that compute the same."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_compress.cut.uniform import FIELDS, WHOLE, say_widths
from hf_compress.layers.rounded import CompressedLayer, version_of
from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import GroupKind, Groups
from hf_compress.models.sharding import gathered
from hf_compress.models.targets import named_modules
from hf_compress.models.widths import declared_widths, keep, width_of


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
    so call it after training. `save_compressed` does the same while it writes, without changing the model. Save the
    smaller model with `save_compressed(model, folder, Recipe())`. Transformers' `save_pretrained` says its widths only
    if they are `uniform`.

    Args:
        kinds: what to remove.
        exclude: regular expressions; a block with a layer whose name contains a match stays as it is.
        uniform: whether all blocks of a kind keep the same number of groups, and `model.config` says so.

    Raises:
        ValueError: the model has no such groups, has a PEFT adapter or sharded or integer weights, its weights share
            scales by groups of inputs, or its configuration cannot say the widths. The message names the reason.

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
        raise ValueError(
            "Groups can only be removed from a model without an adapter. Call `merge_and_unload()` first."
        )
    blocks = find_groups(model, kinds, exclude)
    kept = kept_groups(blocks, uniform=uniform)
    keep_groups(model, blocks, kept)
    if uniform:
        say_widths(model, counts_of(blocks, kept))
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


def removed_before(model: PreTrainedModel, blocks: Sequence[Groups]) -> list[int]:
    """Return how many groups of each block were removed from `model` before, here or before it was loaded."""
    declared, whole, found = declared_widths(model), getattr(model.config, WHOLE, None) or {}, []
    for block in blocks:
        part = block.consumer
        inputs = declared[part.target.name][1] if part.target.name in declared else part.width
        field = next((field for field in FIELDS[block.kind] if field in whole), None)
        once = (
            inputs // part.size if field is None else inputs // part.size * whole[field] // vars(model.config)[field]
        )
        found.append(once - block.count)
    return found


def counts_of(blocks: Sequence[Groups], kept: Sequence[Bool[Tensor, " groups"]]) -> dict[GroupKind, tuple[int, int]]:
    """Return the number of groups of a block before and after, by kind, where all blocks of a kind are alike."""
    return {one.kind: (one.count, int(stay.sum())) for one, stay in zip(blocks, kept, strict=True)}


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
