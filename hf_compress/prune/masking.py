"""The masks of a model's weights: chosen by a criterion, applied to the weights, saved and restored."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_compress.layers.lora import current_weight, packed_mask, unpacked_mask
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.models.heads import bare
from hf_compress.models.layer_kinds import CONVOLUTIONS
from hf_compress.models.sharding import Shards, gathered, local
from hf_compress.models.targets import transformer, whole
from hf_compress.prune.correction import Blocks, prune_and_correct
from hf_compress.prune.coverage import Coverage
from hf_compress.prune.criterion import Criterion, Evidence
from hf_compress.prune.grouping import choose_groups, make_up, removal_losses
from hf_compress.prune.selection import Candidate, disagreements, select_masks
from hf_compress.rate import input_moments, sample_batches

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # The signed integers as wide as a weight, by bytes.
MASK, MEMORY = ".mask", ".memory."


class Masking:
    """The masks of the weights of `targets`, and the memory of the criterion that chooses them.

    Masks take one byte per weight, on each process for the weights it holds. Beside a LoRA adapter the layers carry
    the masks, because every forward computes the merged weight again.

    Args:
        coverage: what is pruned.
        criterion: scores the weights.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress import PruningArguments
        >>> from hf_compress.prune import CRITERIA, Coverage, Masking
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> coverage = Coverage.of(model, PruningArguments(prune_sparsity=0.5))
        >>> masking = Masking(coverage, CRITERIA["magnitude"])
        >>> masking.choose(0.5, step=1)
        0.5
        >>> masking.apply()
        >>> int((coverage.targets[0].weight == 0).sum())
        32
    """

    def __init__(self, coverage: Coverage, criterion: Criterion) -> None:
        self.coverage, self.criterion = coverage, criterion
        self.targets, self.pattern = coverage.targets, coverage.pattern
        self.masks: list[Tensor] | None = None  # int8: all bits set where a weight is kept, none where it is pruned.
        self.memory: list[dict[str, Tensor]] = [{} for _ in self.targets]
        self.moments: dict[str, Tensor] = {}  # The sums X'X of the inputs of layers, while weights are corrected.

    @property
    def shards(self) -> Shards:
        """The processes that hold the rows of the weights."""
        return self.coverage.shards

    def apply(self) -> None:
        """Set the pruned weights to zero. Beside an adapter this does nothing: every forward masks."""
        if self.masks is None:
            return
        for target, mask in zip(self.targets, self.masks, strict=True):
            # On the bits: unlike a product this leaves no negative zeros and no NaN, and it is as fast as any.
            weight = local(target.weight)
            weight.view(INTEGERS[weight.element_size()]).bitwise_and_(mask)

    @torch.no_grad()
    def choose(self, sparsity: float, step: int, optimizer: Any = None) -> float:
        """Choose the masks for `sparsity`, and return the share of pruned weights. Collective.

        Args:
            step: used in errors.
            optimizer: needed if the criterion looks at its state.

        Raises:
            ValueError: a score is NaN.
            RuntimeError: processes have chosen different masks.
        """
        before = self.kept() if self.criterion.has_state else None
        self.masks = None  # Free the old masks before the new ones come.
        if not any(self.coverage.wanted(sparsity)):
            return 0.0
        if self.coverage.blocks:
            masks = self._grouped(sparsity, step, optimizer, before)
        elif self.criterion.corrects:
            masks = self._corrected(sparsity, step, before)
        else:
            masks = self._selected(sparsity, step, optimizer, before)
        different = disagreements(masks, self.shards)
        if different:
            raise RuntimeError(
                f"processes have chosen different weights to prune in {len(different)} of {len(masks)} layers, the "
                f"first being {self.targets[different[0]].name}: their weights differ. Start every process from the "
                "same weights and train under DDP, and change weights on all processes alike."
            )
        zeros = self._pruned(masks) if self.coverage.blocks else self.coverage.zeros(sparsity)
        self._install(masks)
        return zeros / self.coverage.size

    def look(self, model: nn.Module, loader: Any) -> None:
        """See the inputs of the layers on some rows of the training set, before a choice that corrects. Collective."""
        bared = bare(transformer(model))
        readers = [block.consumer.target for block in self.coverage.blocks] or self.targets
        self.moments = input_moments(bared, readers, sample_batches(loader, whole(model)))

    def preview(self, sparsity: float) -> list[int]:
        """Return how many weights of each layer would be kept if all were pruned now. Collective."""
        masks = self._planned(sparsity)
        return self.shards.total(torch.stack([mask.count_nonzero() for mask in masks]).cpu().numpy()).tolist()

    def planned(self, sparsity: float) -> dict[str, Tensor]:
        """Return where weights would be kept if all were pruned now, whole, by the names of layers. Collective."""
        masks = self._planned(sparsity)
        return {
            target.name: _whole(mask, target.weight).bool() for target, mask in zip(self.targets, masks, strict=True)
        }

    def observe(self, step: int, optimizer: Any) -> None:
        """Let the criterion update its memory in optimizer step `step`."""
        if self.criterion.observe is not None:
            for index in range(len(self.targets)):
                self.criterion.observe(self.evidence(index, optimizer, step))

    def evidence(self, index: int, optimizer: Any, step: int = 0) -> Evidence:
        """Return what the criterion is told about the weight of target `index`."""
        target, criterion = self.targets[index], self.criterion
        weight = local(current_weight(target.module))
        gradient, state, settings = None, dict[str, Any](), dict[str, Any]()
        if criterion.needs_gradients:
            found = target.weight.grad
            gradient = torch.zeros_like(weight) if found is None else local(found)
        if criterion.needs_optimizer:
            known = optimizer.state.get(target.weight, {})
            state = {name: local(one) if isinstance(one, Tensor) else one for name, one in known.items()}
            for group in optimizer.param_groups:
                if any(one is target.weight for one in group["params"]):
                    settings = {name: value for name, value in group.items() if name != "params"}
        return Evidence(weight, gradient, state, settings, step, self.memory[index])

    def kept(self) -> list[Tensor] | None:
        """Return the masks in force as booleans, True where a weight is kept; None before the first choice."""
        if self.masks is not None:
            return [mask != 0 for mask in self.masks]
        carried = [carrier.mask for carrier in self._carriers() if carrier.mask is not None]
        return carried if len(carried) == len(self.targets) else None

    def state(self) -> dict[str, Tensor]:
        """Return masks, one bit per weight, and memory, all whole, by the names of the layers. Collective."""
        tensors: dict[str, Tensor] = {}
        kept = self.kept()
        for index, target in enumerate(self.targets):
            if kept is not None:
                tensors[target.name + MASK] = packed_mask(_whole(kept[index], target.weight))
            for name, value in self.memory[index].items():
                tensors[target.name + MEMORY + name] = _whole(value, target.weight).cpu()
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> float:
        """Take over what `state` returned, and return the share of pruned weights. Collective.

        Raises:
            ValueError: the masks are not those of the weights: a pruned one is not zero.
        """
        masks, zeros = [], 0
        for index, target in enumerate(self.targets):
            if (bits := tensors.get(target.name + MASK)) is not None:
                whole = unpacked_mask(bits, target.weight.shape)
                zeros += whole.numel() - int(whole.count_nonzero())
                masks.append(_part(whole, target.weight))
            prefix = target.name + MEMORY
            self.memory[index] = {
                name.removeprefix(prefix): _part(value, target.weight)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        if masks:
            self._refuse_foreign(masks)
            self._install(masks)
        return zeros / self.coverage.size

    def _refuse_foreign(self, masks: list[Tensor]) -> None:
        fits = len(masks) == len(self.targets) and all(
            not local(current_weight(target.module))[~mask].any()
            for target, mask in zip(self.targets, masks, strict=True)
        )
        if not fits:
            raise ValueError(
                "the pruning masks in the checkpoint do not belong to its weights: weights that they prune are not "
                "zero. The files of two runs were mixed. Resume from another checkpoint, or start again."
            )

    def _planned(self, sparsity: float) -> list[Tensor]:
        choose = self._grouped if self.coverage.blocks else self._selected
        return choose(sparsity, 0, None, None)

    def _selected(self, sparsity: float, step: int, optimizer: Any, before: list[Tensor] | None) -> list[Tensor]:
        candidates = [
            Candidate(
                f"{target.name} at step {step}",
                target.weight.numel() // self.pattern.outputs,
                partial(self._joined, index, step, optimizer, None if before is None else before[index]),
                target.weight.dtype,
            )
            for index, target in enumerate(self.targets)
        ]
        masks = select_masks(candidates, sparsity, self.coverage.scope, self.shards)
        return [
            self.pattern.spread(mask, 1 - target.row_dim) for mask, target in zip(masks, self.targets, strict=True)
        ]

    def _grouped(self, sparsity: float, step: int, optimizer: Any, before: list[Tensor] | None) -> list[Tensor]:
        """Choose groups, and correct the weights that read the others if asked. Collective."""
        coverage = self.coverage
        alive = None if before is None else [kept > 0 for kept in coverage.group_sums(before)]
        if self.criterion.corrects:
            kept = choose_groups(coverage, removal_losses(coverage, alive, self.moments, step), sparsity, alive, step)
            make_up(coverage, kept, self.moments, step)
        else:
            scores = coverage.group_sums([self._scores(index, step, optimizer) for index in range(len(self.targets))])
            kept = choose_groups(coverage, scores, sparsity, alive, step)
        return coverage.masks(kept)

    def _corrected(self, sparsity: float, step: int, before: list[Tensor] | None) -> list[Tensor]:
        """Choose masks layer by layer, and correct the weights that stay. Collective."""
        masks = []
        for index, (target, count) in enumerate(zip(self.targets, self.coverage.wanted(sparsity), strict=True)):
            weight, kept = local(target.weight), before[index] if before is not None else None
            rows = target.as_rows(weight)
            kept = torch.ones_like(rows, dtype=torch.bool) if kept is None else target.as_rows(kept)
            name, outputs = f"{target.name} at step {step}", target.weight.shape[target.row_dim]
            blocks = Blocks(name, self.criterion, self.pattern, outputs, count, kept, self.shards)
            mask = prune_and_correct(rows, self.moments.get(target.name), blocks)
            if target.kind in CONVOLUTIONS:
                weight.copy_(target.from_rows(rows))  # Where channels come last in memory, rows are a copy.
            masks.append(target.from_rows(mask).contiguous())
        return masks

    def _joined(self, index: int, step: int, optimizer: Any, before: Tensor | None) -> Tensor:
        """Return what competes in one layer: scores of its weights, restricted by the pattern."""
        scores = self._scores(index, step, optimizer)
        if before is not None:
            scores = scores.masked_fill(~before, -torch.inf)  # A pruned weight stays pruned.
        return self.pattern.joined(scores, 1 - self.targets[index].row_dim)

    def _scores(self, index: int, step: int, optimizer: Any) -> Tensor:
        target, evidence = self.targets[index], self.evidence(index, optimizer, step)
        scores = self.criterion.scores(evidence)
        if scores.shape != evidence.weight.shape or not scores.is_floating_point():
            raise ValueError(
                f"the criterion `{self.criterion.name}` must return one floating-point score per value of "
                f"{target.name}, of shape {tuple(evidence.weight.shape)}; got {scores.dtype} of shape "
                f"{tuple(scores.shape)}. Correct its `scores`."
            )
        return scores

    def _pruned(self, masks: list[Tensor]) -> int:
        """Return the number of pruned weights, over all shards. Collective."""
        here = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)
        return int(self.shards.total(np.array([here], dtype=np.int64))[0])

    def _install(self, masks: list[Tensor]) -> None:
        carriers = self._carriers()
        if any(carrier.adapter for carrier in carriers):
            for carrier, mask in zip(carriers, masks, strict=True):
                carrier.mask = mask
        else:
            self.masks = [mask.view(torch.int8).neg_() for mask in masks]

    def _carriers(self) -> list[CompressedLayer]:
        return [target.module for target in self.targets if isinstance(target.module, CompressedLayer)]


def _whole(part: Tensor, weight: Tensor) -> Tensor:
    """Return the whole tensor, sharded like `weight`; `part` is this process's part of it."""
    if not isinstance(weight, DTensor):
        return part
    part = part.to(torch.uint8) if part.dtype == torch.bool else part
    sharded = DTensor.from_local(
        part, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
    )
    return gathered(sharded)


def _part(whole: Tensor, weight: Tensor) -> Tensor:
    """Return this process's part of a tensor that is sharded as `weight` is, on its device."""
    if not isinstance(weight, DTensor):
        return whole.to(weight.device)
    mesh = weight.device_mesh
    return distribute_tensor(whole.to(mesh.device_type), mesh, weight.placements).to_local()
