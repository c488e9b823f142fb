"""Spend a number of bytes on the weights of a model: choose the steps of all layers, and round the weights to them."""

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_compress.layers.lora import current_weight
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.heads import bare
from hf_compress.models.layer_kinds import as_rows
from hf_compress.models.sharding import gathered, local
from hf_compress.models.targets import PROJECTIONS, Target, quantizable, token_embedding
from hf_compress.packing.packed import pack
from hf_compress.rate import Pooling, Rounded, Rounding, Statistics, fit, gather, token_factors
from hf_compress.rate.steps import steps

# Share of the budget that is left free for what training changes.
RESERVE = 0.01
# Fewer bits per weight leave nothing of a model.
LEAST_BITS = 0.25
# The least share of their bytes that trained floating-point numbers take: signs and mantissas do not compress.
TRAINED = 0.88

Masks = Mapping[str, Bool[Tensor, "..."]]


@dataclass(frozen=True)
class Spent:
    """The constant of all steps, and the expected bytes of the file.

    Example:
        >>> from hf_compress.quantize import Spent
        >>> Spent(constant=0.02, bytes=6_900_000).bytes
        6900000
    """

    constant: float
    bytes: int


def spend(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[Mapping[str, Any]],
    limit: float | None,
    *,
    constant: float | None = None,
    counts: Int[Tensor, " tokens"] | None = None,
    exclude: Sequence[str] = (),
    zeros: Masks | None = None,
    pooling: Pooling = "mean",
) -> Spent:
    """Choose the steps of all layers of `model` for a file of `limit` bytes, and round its weights to them, in place.

    A step is one constant over the root of the sensitivity of its weight (`hf_compress.rate`). Rows of embeddings that
    are rarely looked up get coarser steps. Linear layers are rounded with error feedback, except beside an adapter,
    whose merged weights are rounded to the nearest multiples in every forward. Weights that are zero stay zero. The
    layers must have been turned by `quantize_layers(..., steps=True)`. Collective: every process must call it with the
    same batches.

    Args:
        model: on any device, also sharded by FSDP2.
        batches: inputs of the model, about 512 rows.
        limit: the bytes of the file. 1 % of them is left free.
        constant: the constant of all steps; it is then not chosen, and `limit` does not count.
        counts: how often each token occurs in the training set; by default in `batches`.
        exclude: regular expressions of layers that stay in floating point.
        zeros: by the names of targets, where weights will be kept when pruning ends, in the layout of the weight. The
            constant is chosen for these zeros. By default those that are there.
        pooling: of the hidden states of a model without a head.

    Raises:
        ValueError: the limit is too small, there are no batches, or gradients of the outputs are not finite.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.layers import SCHEMES, quantize_layers
        >>> from hf_compress.quantize import spend
        >>> sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=500, **sizes))
        >>> layers = quantize_layers(model, SCHEMES["int8"], steps=True)
        >>> spent = spend(model, [{"input_ids": torch.tensor([[1, 2, 3]])}], limit=60_000)
        >>> 57_000 < spent.bytes <= 60_000
        True
    """
    base = cast(PreTrainedModel, bare(model))
    targets = quantizable(model, exclude)
    with _in_floating_point(model):
        statistics = _from_first(gather(base, targets, batches, pooling=pooling))
    _refuse_broken(model, statistics)
    used = _used(targets, statistics)
    rounding = _rounding(base, used, statistics, counts, feedback=not isinstance(model, PeftModel))
    others = other_bytes(model, used, zeros)
    if constant is None:
        assert limit is not None
        planned = rounding if zeros is None else _with_zeros(rounding, used, zeros)
        found = fit(planned, (1 - RESERVE) * limit - others)
        constant, size = found.constant, found.bytes
        rounded = found.weights if planned is rounding else rounding.at(constant)
    else:
        rounded = rounding.at(constant)
        size = sum(one.bytes for one in rounded.values())
    _apply(model, targets, used, rounded)
    return Spent(constant, others + size)


def least_bytes(model: PreTrainedModel | PeftModel, exclude: Sequence[str], sparsity: Mapping[str, float]) -> int:
    """Return the bytes of the smallest file that is worth making of `model`, with `LEAST_BITS` bits per weight.

    Args:
        exclude: regular expressions of layers that stay in floating point.
        sparsity: the share of zeros by the names of layers that will be pruned.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.quantize import least_bytes
        >>> sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=500, **sizes))
        >>> least_bytes(model, [], {}) < 4 * model.num_parameters() / 10
        True
    """
    targets = {id(target.weight): target for target in quantizable(model, exclude)}.values()
    weights = sum((1 - sparsity.get(target.name, 0)) * target.weight.numel() for target in targets)
    rest = other_bytes(model, {target.name: target for target in targets}, None)
    return round((rest + LEAST_BITS / 8 * weights) / (1 - RESERVE))


@torch.no_grad()
def other_bytes(
    model: PreTrainedModel | PeftModel, rounded: Mapping[str, Target], zeros: Masks | None, *, trained: bool = False
) -> int:
    """Return the bytes of the packed file without the integers of the weights `rounded`. Collective if sharded.

    Args:
        rounded: the targets by name.
        zeros: by the names of layers, where weights will be kept.
        trained: whether training has ended. Before, initial values such as biases of zero pack into less than what
            training makes of them.
    """
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    base = cast(PreTrainedModel, bare(model))
    known = dict(base.named_modules())
    integers = {id(known[name].weight) for name in rounded if name in known}
    parameters = dict(base.named_parameters(remove_duplicate=False))
    kept = {id(known[name].weight): mask for name, mask in (zeros or {}).items() if name in known}
    ignored = base._keys_to_ignore_on_save or ()
    sizes, counted = dict[str, int](), 0
    for name, tensor in remove_tied_weights_from_state_dict(base.state_dict(), base).items():
        if name in ignored or name.endswith("weight_step") or name.startswith(f"{PROJECTIONS}."):
            continue
        parameter = parameters.get(name, tensor)
        if id(parameter) in integers:
            # At most one byte for each, which only counts digits of the header, and the sides of a convolution's rows.
            sizes[name] = tensor.numel() + 4 * (tensor.dim() - 2)
            counted += tensor.numel()
        elif (mask := kept.get(id(parameter))) is not None:
            sizes[name] = len(pack(torch.where(mask.cpu(), gathered(tensor).detach().cpu(), 0.0)))
        else:
            least = 0 if trained or not parameter.requires_grad else round(TRAINED * tensor.nbytes)
            sizes[name] = max(len(pack(gathered(tensor).detach().cpu())), least)
    return _file_bytes(sizes) - counted


def _file_bytes(sizes: Mapping[str, int]) -> int:
    """Return the bytes of a safetensors file of byte arrays of these sizes, as Transformers writes it."""
    header, end = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name, size in sorted(sizes.items()):
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    described = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-described // 8) * 8 + end


def _used(targets: Sequence[Target], statistics: Statistics) -> dict[str, Target]:
    """Return one target for each weight that a layer has computed with, by name."""
    seen: dict[int, Target] = {}
    for target in targets:
        if target.name in statistics.called:
            seen.setdefault(id(target.weight), target)
    return {target.name: target for target in seen.values()}


def _rounding(
    model: PreTrainedModel,
    used: Mapping[str, Target],
    statistics: Statistics,
    counts: Int[Tensor, " tokens"] | None,
    *,
    feedback: bool,
) -> Rounding:
    weights = {name: rows_of(target) for name, target in used.items()}
    words = token_embedding(model)
    factors = {}
    for name, uses in statistics.uses.items():
        if name in used:
            own = counts if counts is not None and words is not None and used[name].weight is words.weight else uses
            factors[name] = token_factors(own).to(weights[name].device)
    # Training leaves no weight at exactly zero; pruning does.
    kept = {name: rows != 0 for name, rows in weights.items() if name in statistics.moments and not bool(rows.all())}
    return Rounding(weights, statistics, factors, kept, feedback)


def _with_zeros(rounding: Rounding, used: Mapping[str, Target], zeros: Masks) -> Rounding:
    kept = {name: target.as_rows(zeros[name]).contiguous() for name, target in used.items() if name in zeros}
    return replace(rounding, kept={**rounding.kept, **kept})


@torch.no_grad()
def _apply(
    model: nn.Module, targets: Sequence[Target], used: Mapping[str, Target], rounded: Mapping[str, Rounded]
) -> None:
    """Write the steps into all layers, and the rounded weights into those that no adapter changes."""
    found = {id(target.weight): rounded[name] for name, target in used.items()}
    for layer in compressed_layers(model).values():
        if layer.step is not None:
            known = found.get(id(layer.weight))
            layer.step.copy_(_fallback(layer) if known is None else known.step)
            _same_everywhere(layer.step)
    for target in {id(target.weight): target for target in targets}.values():
        known = found.get(id(target.weight))
        if known is None or isinstance(model, PeftModel):
            continue
        write_rows(target, known.rows)


def rows_of(target: Target) -> Float[Tensor, "rows width"]:
    """Return the weight that `target` computes with before rounding, whole, one row per output or token."""
    return target.as_rows(gathered(current_weight(target.module)).detach()).contiguous()


@torch.no_grad()
def write_rows(target: Target, rows: Float[Tensor, "rows width"]) -> None:
    """Write one row per output feature or token into the weight of `target`, in place. Collective."""
    weight = target.weight
    values = target.from_rows(rows).to(weight.dtype)
    if isinstance(weight, DTensor):
        weight.copy_(distribute_tensor(values, weight.device_mesh, weight.placements))
    else:
        weight.copy_(values)
        _same_everywhere(weight.data)


def _fallback(layer: CompressedLayer) -> Float[Tensor, "rows 1"]:
    """Return 8-bit steps for a layer that the sample did not call."""
    rows = as_rows(gathered(layer.weight), layer.layer_kind)
    return steps(rows, 1.0, 0.0).clamp_(min=2.0**-100)


@contextmanager
def _in_floating_point(model: nn.Module) -> Iterator[None]:
    """A context in which no layer of `model` rounds: a resumed run may be past the step at which rounding begins."""
    layers = list(compressed_layers(model).values())
    quantizing = [layer.quantizing for layer in layers]
    for layer in layers:
        layer.quantizing = False
    try:
        yield
    finally:
        for layer, before in zip(layers, quantizing, strict=True):
            layer.quantizing = before


def _refuse_broken(model: nn.Module, statistics: Statistics) -> None:
    """Refuse sensitivities that are not finite: the weights are not, or half precision made them infinite."""
    broken = [name for name, value in statistics.sensitivity.items() if not math.isfinite(value)]
    broken += [name for name, value in statistics.moments.items() if not bool(value.isfinite().all())]
    if not broken:
        return
    weights = [name for name, one in model.named_parameters() if not bool(local(one.detach()).isfinite().all())]
    if weights:
        raise ValueError(
            f"The weights of the model are not finite, for example `{weights[0]}` ({len(weights)} tensors in all), so "
            "no steps can be chosen. Use another checkpoint of it."
        )
    raise ValueError(
        f"The sample of the training set gives inputs or gradients that are not finite in {len(broken)} layers, "
        f"for example {broken[0]}, so no steps can be chosen. Load the model in float32 or bfloat16, or look for "
        "broken rows."
    )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _same_everywhere(tensor: Tensor) -> None:
    """Give all processes the values of the first: processors may round sums differently."""
    if _several():
        dist.broadcast(tensor, 0)


def _from_first(statistics: Statistics) -> Statistics:
    """Return the statistics of the first process."""
    if _several():
        facts: list[Any] = [statistics.sensitivity, statistics.uses, statistics.called]
        dist.broadcast_object_list(facts, 0)
        for name in sorted(statistics.moments):
            dist.broadcast(statistics.moments[name], 0)
        return Statistics(facts[0], statistics.moments, *facts[1:])
    return statistics
