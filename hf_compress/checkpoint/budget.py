"""Choose bits and sparsity for a file size, before training, from the weights that training starts with."""

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

from hf_compress.checkpoint.knapsack import Option, worth_making
from hf_compress.layers.attention import range_owners
from hf_compress.layers.bits import items_of, parsed, weight_grids
from hf_compress.layers.grids import Grid, from_integers, symmetric_scale, to_integers
from hf_compress.layers.probe import attention_modules
from hf_compress.models.targets import Target, prunable, quantizable
from hf_compress.packing.coding import entropy_bytes
from hf_compress.packing.packed import pack
from hf_compress.prune.criteria import magnitude_masks
from hf_compress.prune.selection import Scope
from hf_compress.recipe import Recipe

SCHEME = "int8"
# Two bits have three levels, the outer ones at the largest weight of a row, so most weights would become zero.
LEAST_BITS = 3
MOST_SPARSITY, STEP = 0.9, 0.01
# Share of the budget that is left free, because trained weights pack slightly worse than the initial ones.
RESERVE = 0.01
# Bytes of a tensor in the header of a safetensors file, beside its name; and bytes of the ranges of a layer.
ENTRY, RANGES = 64, 190
SAMPLE = 1 << 18  # Entropy and error of a layer are estimated from this many weights, in whole rows.
# The relative error of a layer counts by the number of its weights to this power. With 0 all layers count alike, as if
# errors added up along the network (Lin et al., 2016), and the largest layers lose most bits. With 1 all weights count
# alike. The square root is a heuristic between the two, measured on a fine-tuned MiniLM (`benchmarks/budget.py`).
SIZE_POWER = 0.5


def fit_budget(
    model: PreTrainedModel | PeftModel, recipe: Recipe, *, size_power: float = SIZE_POWER
) -> tuple[Recipe, int]:
    """Return the `recipe` with bits and a sparsity that fit its budget, and the expected bytes of the file.

    Options you set are kept: the scheme (`int8` by default), the sparsity, and the bits of layers that `quant_bits`
    matches. The rest is chosen. All other weights with one scale per row get eight to three bits, such that the sum of
    their relative squared errors, weighted by size, is smallest. If that is not enough and no sparsity was set, they
    are pruned in steps of 1 % until the file fits: per saved byte, a zero costs more error than a bit. The bytes are
    those of the current weights, pruned and rounded in one shot. 1 % of the budget is left free for what training
    changes.

    Args:
        model: before training.
        recipe: with a `compress_budget_mb`.
        size_power: the error of a layer counts by the number of its weights to this power.

    Raises:
        ValueError: nothing fits. The message says how small a file can be.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress import BudgetArguments, Recipe
        >>> from hf_compress.checkpoint import fit_budget
        >>> sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=1000, **sizes))
        >>> recipe, expected = fit_budget(model, Recipe(budget=BudgetArguments(compress_budget_mb=0.09)))
        >>> recipe.quantization.quant_scheme, expected <= 90_000
        ('int8', True)
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
            f"{file.bytes(plans[-1]) / (1 - RESERVE) / 1e6:.3g} MB. Set at least that, remove layers "
            "(`--distill_student_layers`) or unused tokens (`--compress_vocabulary`), or start from a smaller model."
        )
    return file.recipe_of(plans[place]), file.bytes(plans[place])


def expected_bytes(model: PreTrainedModel | PeftModel, recipe: Recipe) -> int:
    """Return the bytes of the packed file of `model` if it were pruned and rounded by `recipe` now, without training.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress import QuantizationArguments, Recipe
        >>> from hf_compress.checkpoint import expected_bytes
        >>> sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=1000, **sizes))
        >>> int8 = Recipe(quantization=QuantizationArguments(quant_scheme="int8"))
        >>> expected_bytes(model, int8) < expected_bytes(model, Recipe()) / 3
        True
    """
    file = _OneShot(model, recipe)
    return file.bytes(_Plan(file.given, recipe.pruning.prune_sparsity))


@dataclass(frozen=True)
class _Plan:
    """The grid of each rounded weight, by its `id`, and the sparsity of the pruned weights."""

    grids: dict[int, Grid]
    sparsity: float


def _first_that_fits(
    count: int, estimate: Callable[[int], float], exact: Callable[[int], int], limit: float
) -> int | None:
    """Return the number of the first file with at most `limit` bytes, or None; each file is smaller than the last.

    The search makes few files: it starts at the place that the estimate gives, and moves to the border between files
    that fit and files that do not. A greater limit therefore never gives a later file.
    """
    at = min(bisect_left(range(count), -limit, key=lambda at: -estimate(at)), count - 1)
    while at > 0 and exact(at - 1) <= limit:
        at -= 1
    while at < count and exact(at) > limit:
        at += 1
    return at if at < count else None


class _OneShot:
    """The packed file of a model that is pruned and rounded in one shot: its bytes, and the plans worth making.

    `given` holds the grids of the rounded weights by the recipe alone. `free` holds the layers whose bits the recipe
    leaves open; layers that share a weight form one entry.
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
        """Return the plans that the recipe allows, each with a smaller file and more error than the one before."""
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
        """Return the recipe with the plan, as its user could have written it."""
        options = self.recipe.quantization
        bits = {target.name: plan.grids[key].bits for key, named in self.free.items() for target in named}
        usual = {target.name: self.given[key].bits for key, named in self.free.items() for target in named}
        chosen = [*items_of(bits, usual), *options.quant_bits]  # The last match wins, so the user's options override.
        return replace(
            self.recipe,
            pruning=replace(self.recipe.pruning, prune_sparsity=plan.sparsity),
            quantization=replace(options, quant_bits=chosen),
        )

    def bytes(self, plan: _Plan) -> int:
        """Return the bytes of the file, packing the tensors that were not packed before."""
        return round(self._total(plan, exact=True))

    def estimate(self, plan: _Plan) -> float:
        """Return an estimate of the bytes of the file from the entropy of a sample of its integers."""
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
        """Return the masks of the pruned weights, by their `id`."""
        if self.masks[0] != sparsity:
            weights = [target.weight for target in self.prunable]
            masks = magnitude_masks(weights, sparsity, cast(Scope, self.recipe.pruning.prune_scope))
            self.masks = sparsity, {id(weight): mask for weight, mask in zip(weights, masks, strict=True)}
        return self.masks[1]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        parameters = dict(self.model.named_parameters())
        state = remove_tied_weights_from_state_dict(self.model.state_dict(), self.model)
        return ((name, parameters.get(name, tensor)) for name, tensor in state.items())


@torch.no_grad()
def _sampled(target: Target, grid: Grid, mask: Tensor | None, size_power: float = SIZE_POWER) -> Option:
    """Return the bytes of a weight on `grid` and its squared error, relative to its own square and weighted by size.

    Both are estimated from some rows. The loss grows in proportion to squared relative errors (Malinovskii et al.,
    2024).
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
    return len(pack(to_integers(rows, scale, grid).to(torch.int8), "", scale, grid.group_size))


def _packed_floats(tensor: Tensor, mask: Tensor | None) -> int:
    values = tensor.detach() if mask is None else torch.where(mask, tensor.detach(), 0.0)
    # A constant, such as an initial bias, packs into nothing, but training changes it.
    constant = tensor.requires_grad and bool((values == values.flatten()[:1]).all())
    return len(pack(values)) + constant * values.nbytes


def _rows(target: Target, tensor: Tensor) -> Tensor:
    """Return a tensor of the shape of the weight of `target` with one row per scale."""
    return tensor.t() if target.kind == "conv1d" else tensor
