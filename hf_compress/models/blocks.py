"""The blocks of a model whose groups can be taken out: feed-forwards and attentions, found by names of layers."""

import inspect
from collections.abc import Collection, Sequence
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_compress.models.groups import GroupKind, Groups, NoGroups, Part, Side
from hf_compress.models.layer_kinds import CONVOLUTIONS
from hf_compress.models.targets import Target, named_modules, prunable, unadapted

# What families call the layers of a feed-forward block: those that compute the neurons, and the one that reads them.
_FEED_FORWARD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("ffn",), "ffn_output"),
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("wi",), "wo"),
    (("wi_0", "wi_1"), "wo"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("intermediate_dense",), "output_dense"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("fc_in",), "fc_out"),
    (("Wi",), "Wo"),
    (("gate_up_proj",), "down_proj"),
)
# One layer that computes the neurons and, behind them, as many gates.
_GATED = {"Wi", "gate_up_proj"}
# What families call the layers of an attention: queries, keys and values, and the one that reads the heads.
_ATTENTION: tuple[tuple[tuple[str, ...], str], ...] = (
    (("self.query", "self.key", "self.value"), "output.dense"),
    (("attention.query", "attention.key", "attention.value"), "output.dense"),
    (("self.query_proj", "self.key_proj", "self.value_proj"), "output.dense"),
    (("query", "key", "value"), "dense"),
    (("q_lin", "k_lin", "v_lin"), "out_lin"),
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("q_proj", "k_proj", "v_proj"), "Wo"),
    (("q", "k", "v"), "o"),
    (("Wqkv",), "Wo"),
    (("c_attn",), "c_proj"),
    (("qkv_proj",), "o_proj"),
    (("query_key_value",), "dense"),
    (("self.in_proj",), "output.dense"),
)
# Attentions whose one layer computes all queries, then all keys, then all values. Others mix them head by head.
_IN_ORDER = {"ModernBertAttention", "GPT2Attention", "Phi3Attention"}
# Projections of relative positions, which have rows for every head as well (DeBERTa-v2 without `share_att_key`).
_POSITIONS = ("pos_key_proj", "pos_query_proj")
# Arguments of an attention's forward that hold something for every head, so that a head cannot go alone.
_PER_HEAD = {"position_bias", "alibi", "rel_pos", "relative_position_bias", "relative_position_index", "band_mask"}
_HEAD_WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim")
# ALBERT keeps the norm of its residual stream, which no head changes, inside the attention.
_RESIDUAL_NORM = "LayerNorm"


def find_groups(
    model: PreTrainedModel | PeftModel, kinds: Collection[GroupKind], exclude: Sequence[str] = ()
) -> list[Groups]:
    """Return the groups of the body of `model`, block by block in the order of its layers.

    A block that the model calls several times, as ALBERT does, appears once. A layer belongs to one block at most.

    Args:
        kinds: what to look for.
        exclude: regular expressions, as in `prunable`. A block with a layer that matches is left out.

    Raises:
        NoGroups: the model has no block of one of the kinds, or one whose groups cannot be taken out alone.
        ValueError: a pattern is not a regular expression or matches nothing.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.blocks import find_groups
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> (heads,) = find_groups(BertModel(BertConfig(vocab_size=9, **sizes)), ["heads"])
        >>> [part.target.name.split(".")[-2:] for part in heads.parts]
        [['self', 'query'], ['self', 'key'], ['self', 'value'], ['output', 'dense']]
    """
    base = unadapted(model)
    targets = {one.name: one for one in prunable(model, exclude) if one.kind not in CONVOLUTIONS}
    modules = dict(named_modules(base))
    found: list[Groups] = []
    for kind, names in (("heads", _ATTENTION), ("neurons", _FEED_FORWARD)):
        if kind not in kinds:
            continue
        blocks = [_block(cast(GroupKind, kind), *block, targets, modules) for block in _matches(targets, names)]
        if not blocks:
            remedy = "Exclude less (`--prune_exclude`), or" if exclude else "Its layers have no names known here:"
            raise NoGroups(
                f"{type(base).__name__} has no {kind} that can be pruned. {remedy} choose another `--prune_pattern`."
            )
        found += blocks
    order = {name: place for place, name in enumerate(targets)}
    found.sort(key=lambda block: min(order[part.target.name] for part in block.parts))
    _refuse_shared(found)
    return found


def _matches(
    targets: dict[str, Target], table: tuple[tuple[tuple[str, ...], str], ...]
) -> list[tuple[str, tuple[str, ...], str]]:
    """Return the name of each block that has all layers of a line of the table, with that line."""
    found: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for producers, consumer in table:
        for name in targets:
            if name != producers[0] and not name.endswith(f".{producers[0]}"):
                continue
            block = name.removesuffix(producers[0])
            if all(block + other in targets for other in (*producers, consumer)) and block not in found:
                found[block] = (block, producers, consumer)
    return list(found.values())


def _block(
    kind: GroupKind,
    prefix: str,
    producers: tuple[str, ...],
    consumer: str,
    targets: dict[str, Target],
    modules: dict[str, nn.Module],
) -> Groups:
    outputs, reader = [targets[prefix + name] for name in producers], targets[prefix + consumer]
    name = prefix.removesuffix(".")
    make = _heads if kind == "heads" else _neurons
    owner = (prefix + producers[0]).rpartition(".")[0]
    parts = make(name, owner, outputs, reader, targets, modules)
    return Groups(name, kind, parts[0].count, tuple(parts))


def _neurons(
    name: str,
    owner: str,
    outputs: list[Target],
    reader: Target,
    targets: dict[str, Target],
    modules: dict[str, nn.Module],
) -> list[Part]:
    count = _width(reader, "inputs")
    runs = 2 if outputs[0].name.rpartition(".")[2] in _GATED else 1
    if any(_width(target, "outputs") != runs * count for target in outputs):
        raise _unknown(name, "neurons", f"{outputs[0].name} does not compute what {reader.name} reads")
    for other, parameter in _others(owner, [*outputs, reader], modules):
        # Where the block is the whole layer, its norms are as wide as the residual stream.
        if tuple(parameter.shape) == (count,) and count != _width(reader, "outputs"):
            raise _unknown(name, "neurons", f"{other} looks at all neurons together")
    starts = tuple(count * run for run in range(runs))
    return [*(Part(one, "outputs", starts, 1, count) for one in outputs), Part(reader, "inputs", (0,), 1, count)]


def _heads(
    name: str,
    owner: str,
    outputs: list[Target],
    reader: Target,
    targets: dict[str, Target],
    modules: dict[str, nn.Module],
) -> list[Part]:
    attention = modules[owner]
    class_name = type(attention).__name__.removeprefix("FSDP")
    per_head = _PER_HEAD & set(inspect.signature(type(attention).forward).parameters)
    if per_head:
        raise _unknown(name, "heads", f"{class_name} takes a `{min(per_head)}` that has a part for every head")
    if len(outputs) == 1 and class_name not in _IN_ORDER:
        raise _unknown(name, "heads", f"it is not known in which order {outputs[0].name} computes their values")
    size = next((getattr(attention, one) for one in _HEAD_WIDTHS if hasattr(attention, one)), None)
    if size is None:
        raise _unknown(name, "heads", f"{class_name} does not say how wide a head is")
    positions = [targets[f"{owner}.{one}"] for one in _POSITIONS if f"{owner}.{one}" in targets]
    for other, parameter in _others(owner, [*outputs, *positions, reader], modules):
        if parameter.numel() != size and other.rpartition(".")[0] != f"{owner}.{_RESIDUAL_NORM}":
            raise _unknown(name, "heads", f"it is not known which part of {other} belongs to which head")
    query = _width(reader, "inputs")
    widths = [_width(target, "outputs") for target in outputs]
    if len(outputs) == 1:
        key = (widths[0] - query) // 2
        widths, starts = [query, key, widths[0] - query - key], [0, query, query + key]
        outputs = outputs * 3
    else:
        starts = [0, 0, 0]
    if widths[0] != query or widths[1] != widths[2] or not widths[1] or widths[1] % size or query % widths[1]:
        raise _unknown(name, "heads", f"queries, keys, values and {reader.name} do not fit together")
    count = widths[1] // size
    runs: dict[tuple[str, int], tuple[Target, tuple[int, ...]]] = {}
    for target, width, start in zip(outputs, widths, starts, strict=True):
        known = runs.get((target.name, width), (target, ()))[1]
        runs[target.name, width] = (target, (*known, start))
    for target in positions:
        runs[target.name, query] = (target, (0,))
    parts = [Part(target, "outputs", begin, width // count, count) for (_, width), (target, begin) in runs.items()]
    return [*parts, Part(reader, "inputs", (0,), query // count, count)]


def _others(owner: str, known: list[Target], modules: dict[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the module `owner` that belong to none of the `known` layers, by name."""
    prefixes = tuple(f"{target.name}." for target in known)
    found = [
        (f"{name}.{own}".removeprefix("."), parameter)
        for name, module in modules.items()
        if name == owner or name.startswith(f"{owner}.") or not owner
        for own, parameter in module.named_parameters(recurse=False)
    ]
    return [(name, parameter) for name, parameter in found if not name.startswith(prefixes)]


def _width(target: Target, side: Side) -> int:
    return int(target.weight.shape[target.row_dim if side == "outputs" else 1 - target.row_dim])


def _refuse_shared(found: list[Groups]) -> None:
    owners: dict[int, str] = {}
    for block in found:
        for part in block.parts:
            known = owners.setdefault(id(part.target.weight), block.name)
            if known != block.name:
                raise _unknown(block.name, block.kind, f"{part.target.name} shares its weight with a layer of {known}")


def _unknown(name: str, kind: GroupKind, reason: str) -> NoGroups:
    return NoGroups(
        f"The {kind} of {name} cannot be taken out one by one: {reason}. Choose a `--prune_pattern` without {kind}, "
        f"or leave the block out by `--prune_exclude {name}`."
    )
