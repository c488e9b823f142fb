"""A file no larger than asked: which bits and sparsity, found before training on the weights that it starts with."""

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_compress.checkpoint.coding import entropy_bytes
from hf_compress.checkpoint.knapsack import Option, worth_making
from hf_compress.checkpoint.packed import pack
from hf_compress.layers.attention import attention_modules, range_owners
from hf_compress.layers.bits import items_of, parsed, weight_grids
from hf_compress.layers.grids import Grid, from_integers, symmetric_scale, to_integers
from hf_compress.models.targets import Target, prunable, quantizable
from hf_compress.prune.criteria import CRITERIA, Scope
from hf_compress.recipe import Recipe

SCHEME = "int8"
# Of two bits there are three levels, the outer ones as far out as a row's largest weight: most weights are lost.
LEAST_BITS = 3
MOST_SPARSITY, STEP = 0.9, 0.01
# Of the budget, left free: trained weights do not pack exactly as well as those that training starts with.
RESERVE = 0.01
# Bytes of a tensor in the head of a safetensors file, beside its name; and those of the ranges of a layer.
ENTRY, RANGES = 64, 190
SAMPLE = 1 << 18  # So many weights of a layer, in whole rows, tell its entropy and its error.
# The relative error of a layer counts by the number of its weights to this power. With 0 all layers count alike, as if
# errors simply added up along the network (Lin et al., 2016), and the largest ones pay for all; with 1 all weights do.
# By the outputs of a fine-tuned MiniLM the truth lies between them (`benchmarks/budget.py`).
SIZE_POWER = 0.5


def fit_budget(
    model: PreTrainedModel | PeftModel, recipe: Recipe, *, size_power: float = SIZE_POWER
) -> tuple[Recipe, int]:
    """The `recipe` with bits and a sparsity that fit its budget, and the bytes that the file is expected to have.

    What the recipe gives stays: its scheme (else `int8`), its sparsity, and the bits of what its `quant_bits` match.
    All other weights that share one scale a row get from eight bits down to three, so that the sum of their relative
    squared errors, counted by their size, is the least. If that is not enough, and no sparsity was given, weights are
    pruned, as few hundredths as will do: a zero costs more error than a bit for the bytes that it saves. The bytes are
    those of the model's weights as they are, pruned and rounded at once; 1 % of the budget is left free for what
    training changes.

    Args:
        size_power: the error of a layer counts by the number of its weights to this power.

    Raises:
        ValueError: nothing fits. The message says how small a file can be.
    """
    if not recipe.quantization.enabled:
        recipe = replace(recipe, quantization=replace(recipe.quantization, quant_scheme=SCHEME))
    limit, file = (1 - RESERVE) * recipe.budget.bytes, _OneShot(model, recipe)
    plans = file.plans(size_power)
    place = _first_that_fits(len(plans), lambda at: file.estimate(plans[at]), lambda at: file.bytes(plans[at]), limit)
    if place is None:
        fewest = f", {LEAST_BITS} bits wherever no others are given" if file.free else ""
        raise ValueError(
            f"`--compress_budget_mb {recipe.budget.compress_budget_mb:g}` is too small: with "
            f"`{recipe.quantization.flags}`{fewest} and `--prune_sparsity {plans[-1].sparsity:g}` the file would have "
            f"{file.bytes(plans[-1]) / (1 - RESERVE) / 1e6:.3g} MB. Give that much, cut layers "
            "(`--distill_student_layers`) or unused words (`--compress_vocabulary`), or start from a smaller model."
        )
    return file.recipe_of(plans[place]), file.bytes(plans[place])


def expected_bytes(model: PreTrainedModel | PeftModel, recipe: Recipe) -> int:
    """The bytes that the packed file of `model` would have, were it pruned and rounded by `recipe` as it is."""
    file = _OneShot(model, recipe)
    return file.bytes(_Plan(file.given, recipe.pruning.prune_sparsity))


@dataclass(frozen=True)
class _Plan:
    """A grid for each weight that is rounded, by its `id`, and the share of zeros of those that are pruned."""

    grids: dict[int, Grid]
    sparsity: float


def _first_that_fits(
    count: int, estimate: Callable[[int], float], exact: Callable[[int], int], limit: float
) -> int | None:
    """The number of the first of ever smaller files that has at most `limit` bytes, or None; only few are made.

    From where the estimate says it goes as far as files fit, or until one does: so that of a greater limit it never is
    a later one.
    """
    at = min(bisect_left(range(count), -limit, key=lambda at: -estimate(at)), count - 1)
    while at > 0 and exact(at - 1) <= limit:
        at -= 1
    while at < count and exact(at) > limit:
        at += 1
    return at if at < count else None


class _OneShot:
    """The packed file of a model, were it pruned and rounded as it is: its bytes, and which ones are worth making.

    `given` are the grids of its rounded weights, by the recipe alone, and `free` the layers whose bits that leaves
    open: those of a weight with several names stand together.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, recipe: Recipe) -> None:
        merged = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
        self.model, self.recipe = cast(PreTrainedModel, merged), recipe
        self.prunable = prunable(self.model, recipe.pruning.prune_exclude)
        options = recipe.quantization
        self.rounded: dict[int, Target] = {}
        self.given: dict[int, Grid] = {}
        self.free: dict[int, list[Target]] = {}
        if options.enabled:
            patterns = [parsed(item)[0] for item in options.quant_bits]
            targets = quantizable(self.model, options.quant_exclude)
            for target, grid in weight_grids(targets, options.scheme, options.quant_bits):
                key = id(target.weight)
                self.rounded[key], self.given[key] = target, grid
                self.free.setdefault(key, []).append(target)
            taken = [id(target.weight) for target in targets if any(found.search(target.name) for found in patterns)]
            self.free = {
                key: named for key, named in self.free.items() if key not in taken and self.given[key].per == "row"
            }
        activation = options.scheme.activation if options.enabled else None
        self.ranged = activation is not None and activation.per == "tensor"
        self.attention: set[str] = set()
        if options.enabled and options.scheme.attention is not None:
            self.attention = range_owners(attention_modules(self.model, options.quant_exclude))
        self.masks: tuple[float, dict[int, Tensor]] = 0.0, {}
        self.known: dict[tuple[str, Grid | None, float, bool], float] = {}

    def plans(self, size_power: float) -> list[_Plan]:
        """The plans worth making within the recipe, each for a smaller file with more error than the one before."""
        given = self.recipe.pruning.prune_sparsity
        kept = self._kept(given)
        grids = {
            key: [replace(self.given[key], bits=bits) for bits in range(self.given[key].bits, LEAST_BITS - 1, -1)]
            for key in self.free
        }
        options = [
            [_sampled(self.rounded[key], grid, kept.get(key), size_power) for grid in grids[key]] for key in grids
        ]
        plans = [
            _Plan(self.given | {key: grids[key][one] for key, one in zip(grids, choice, strict=True)}, given)
            for choice in worth_making(options)
        ]
        shares = [] if given else [round(STEP * step, 2) for step in range(1, round(MOST_SPARSITY / STEP) + 1)]
        return plans + [replace(plans[-1], sparsity=share) for share in shares]

    def recipe_of(self, plan: _Plan) -> Recipe:
        """The recipe with the plan as its user might have given it."""
        options = self.recipe.quantization
        bits = {target.name: plan.grids[key].bits for key, named in self.free.items() for target in named}
        usual = {target.name: self.given[key].bits for key, named in self.free.items() for target in named}
        chosen = [*items_of(bits, usual), *options.quant_bits]  # The last holds: what is given.
        return replace(
            self.recipe,
            pruning=replace(self.recipe.pruning, prune_sparsity=plan.sparsity),
            quantization=replace(options, quant_bits=chosen),
        )

    def bytes(self, plan: _Plan) -> int:
        """The bytes of the file, by packing whatever was not packed before."""
        return round(self._total(plan, exact=True))

    def estimate(self, plan: _Plan) -> float:
        """The bytes of the file by the entropy of a sample of its integers."""
        return self._total(plan, exact=False)

    @torch.no_grad()
    def _total(self, plan: _Plan, *, exact: bool) -> float:
        kept, total = self._kept(plan.sparsity), 0.0
        for name, tensor in self._tensors():
            grid, mask, target = plan.grids.get(id(tensor)), kept.get(id(tensor)), self.rounded.get(id(tensor))
            key = name, grid, plan.sparsity if mask is not None else 0.0, exact or grid is None
            if key not in self.known:
                if target is None or grid is None:
                    self.known[key] = _packed_floats(tensor, mask)
                else:
                    self.known[key] = _packed(target, grid, mask) if exact else _sampled(target, grid, mask).bytes
            total += self.known[key] + len(name) + ENTRY
            total += RANGES if self.ranged and target is not None and target.kind != "embedding" else 0
        return total + RANGES * len(self.attention)

    def _kept(self, sparsity: float) -> dict[int, Tensor]:
        """The masks of the pruned weights, by their `id`."""
        if self.masks[0] != sparsity:
            weights = [target.weight for target in self.prunable]
            masks = CRITERIA["magnitude"](weights, sparsity, cast(Scope, self.recipe.pruning.prune_scope))
            self.masks = sparsity, {id(weight): mask for weight, mask in zip(weights, masks, strict=True)}
        return self.masks[1]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        parameters = dict(self.model.named_parameters())
        state = remove_tied_weights_from_state_dict(self.model.state_dict(), self.model)
        return ((name, parameters.get(name, tensor)) for name, tensor in state.items())


@torch.no_grad()
def _sampled(target: Target, grid: Grid, mask: Tensor | None, size_power: float = SIZE_POWER) -> Option:
    """The bytes of a weight on `grid`, and its error: squared, relative to its own square, counted by its size.

    Both from some of its rows. The loss grows in proportion to squared relative errors (Malinovskii et al., 2024).
    """
    rows = _rows(target, target.weight)
    some = slice(None, None, math.ceil(rows.numel() / SAMPLE))
    dense = rows[some].float()
    values = dense if mask is None else torch.where(_rows(target, mask)[some], dense, 0.0)
    scale = symmetric_scale(values, grid)
    integers = to_integers(values, scale, grid)
    lost = (dense - from_integers(integers, scale, grid)).double().square().sum()
    error = rows.numel() ** size_power * float(lost / dense.double().square().sum().clamp(min=1e-30))
    share = len(rows) / max(len(dense), 1)
    return Option(share * (entropy_bytes(integers.to(torch.int8)) + 2 * scale.numel()), error)


def _packed(target: Target, grid: Grid, mask: Tensor | None) -> int:
    weight = target.weight.detach()
    rows = _rows(target, weight if mask is None else torch.where(mask, weight, 0.0))
    scale = symmetric_scale(rows, grid)
    return len(pack(to_integers(rows, scale, grid).to(torch.int8), "", 0, scale, grid.group_size))


def _packed_floats(tensor: Tensor, mask: Tensor | None) -> int:
    values = tensor.detach() if mask is None else torch.where(mask, tensor.detach(), 0.0)
    # What begins as a constant, as biases do, packs into nothing, and will be none once it is trained.
    constant = tensor.requires_grad and bool((values == values.flatten()[:1]).all())
    return len(pack(values)) + constant * values.nbytes


def _rows(target: Target, tensor: Tensor) -> Tensor:
    """What belongs to the weight of `target`, with one row a scale."""
    return tensor.t() if target.kind == "conv1d" else tensor
