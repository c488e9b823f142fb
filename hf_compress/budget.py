"""A file no larger than asked: which scheme and sparsity, found before training on the weights that it starts with."""

import copy
import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_compress.attention import attention_modules, range_owners
from hf_compress.packed import pack
from hf_compress.recipe import Recipe
from hf_compress.schemes import SCHEMES, Grid, symmetric_scale, to_integers
from hf_compress.sparsity import CRITERIA, Scope
from hf_compress.targets import Target, prunable, quantizable

# In the order of what they cost in accuracy, each up to a sparsity.
LADDER: tuple[tuple[str, float], ...] = (("int8", 0.5), ("int8-embedding4", 0.9))
STEP = 0.01
# Of the budget, left free: trained weights do not pack exactly as well as those that training starts with.
RESERVE = 0.01
# Bytes of a tensor in the head of a safetensors file, beside its name; and those of the ranges of a layer.
ENTRY, RANGES = 64, 190


def fit(model: PreTrainedModel | PeftModel, recipe: Recipe) -> tuple[Recipe, int]:
    """The `recipe` with a scheme and a sparsity that fit its budget, and the bytes that the file is expected to have.

    What the recipe gives stays: with a scheme only the sparsity is chosen, with a sparsity only the scheme. Otherwise
    the first of `LADDER` that fits is taken, at the lowest sparsity by hundredths. The bytes are those of the model's
    weights as they are, pruned and rounded at once; 1 % of the budget is left free for what training changes.

    Raises:
        ValueError: nothing fits. The message says how small a file can be.
    """
    given, sparsity = recipe.quantization.quant_scheme, recipe.pruning.prune_sparsity
    limit, sizes = (1 - RESERVE) * recipe.budget.bytes, _OneShot(model, recipe)
    smallest = math.inf
    for scheme, most in [(given, LADDER[-1][1])] if given else LADDER:
        shares = [sparsity] if sparsity else [round(STEP * step, 2) for step in range(round(most / STEP) + 1)]
        place = bisect_left(shares, -limit, key=lambda share: -sizes.bytes(scheme, share))
        if place < len(shares):
            chosen = replace(
                recipe,
                pruning=replace(recipe.pruning, prune_sparsity=shares[place]),
                quantization=replace(recipe.quantization, quant_scheme=scheme),
            )
            return chosen, sizes.bytes(scheme, shares[place])
        smallest = min(smallest, sizes.bytes(scheme, shares[-1]))
    raise ValueError(
        f"`--compress_budget_mb {recipe.budget.compress_budget_mb:g}` is too small: with `--quant_scheme "
        f"{given or LADDER[-1][0]}` and `--prune_sparsity {sparsity or LADDER[-1][1]:g}` the file would have "
        f"{smallest / (1 - RESERVE) / 1e6:.3g} MB. Give that much, cut layers (`--distill_student_layers`) or unused "
        "words (`--compress_vocabulary`), or start from a smaller model."
    )


def expected_bytes(model: PreTrainedModel | PeftModel, recipe: Recipe) -> int:
    """The bytes that the packed file of `model` would have, were it pruned and rounded by `recipe` as it is."""
    return _OneShot(model, recipe).bytes(recipe.quantization.quant_scheme, recipe.pruning.prune_sparsity)


class _OneShot:
    """The bytes of a model's packed file, were it pruned and rounded as it is."""

    def __init__(self, model: PreTrainedModel | PeftModel, recipe: Recipe) -> None:
        merged = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
        self.model = cast(PreTrainedModel, merged)
        self.scope = cast(Scope, recipe.pruning.prune_scope)
        self.prunable = prunable(self.model, recipe.pruning.prune_exclude)
        self.quantizable = quantizable(self.model, recipe.quantization.quant_exclude)
        self.attention = range_owners(attention_modules(self.model, recipe.quantization.quant_exclude))
        self.known: dict[tuple[str, Grid | None, float], int] = {}

    @torch.no_grad()
    def bytes(self, scheme_name: str | None, sparsity: float) -> int:
        scheme = None if scheme_name is None else SCHEMES[scheme_name]
        weights = [target.weight for target in self.prunable]
        masks = CRITERIA["magnitude"](weights, sparsity, self.scope) if sparsity else []
        kept = {id(weight): mask for weight, mask in zip(weights, masks, strict=False)}
        rounded = {id(target.weight): target for target in self.quantizable if scheme is not None}
        ranged = scheme is not None and scheme.activation is not None and scheme.activation.per == "tensor"
        total = 0
        for name, tensor in self._tensors():
            target, mask = rounded.get(id(tensor)), kept.get(id(tensor))
            embedding = target is not None and target.kind == "embedding"
            grid = None if scheme is None or target is None else scheme.embedding if embedding else scheme.weight
            key = name, grid, sparsity if mask is not None else 0.0
            if key not in self.known:
                self.known[key] = _packed(tensor, target, grid, mask)
            total += self.known[key] + len(name) + ENTRY
            total += RANGES if ranged and target is not None and not embedding else 0
        return total + (RANGES * len(self.attention) if scheme is not None and scheme.attention is not None else 0)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        parameters = dict(self.model.named_parameters())
        state = remove_tied_weights_from_state_dict(self.model.state_dict(), self.model)
        return ((name, parameters.get(name, tensor)) for name, tensor in state.items())


def _packed(tensor: Tensor, target: Target | None, grid: Grid | None, mask: Tensor | None) -> int:
    """The bytes of one tensor, rounded to `grid` where `mask` keeps it."""
    values = tensor.detach() if mask is None else torch.where(mask, tensor.detach(), 0.0)
    if target is None or grid is None:
        # What begins as a constant, as biases do, packs into nothing, and will be none once it is trained.
        constant = tensor.requires_grad and bool((values == values.flatten()[:1]).all())
        return len(pack(values)) + constant * values.nbytes
    rows = values.t() if target.kind == "conv1d" else values
    scale = symmetric_scale(rows, grid)
    return len(pack(to_integers(rows, scale, grid).to(torch.int8), "", 0, scale, grid.group_size))
