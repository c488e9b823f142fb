"""What a pattern covers in a model: layers or blocks, how much of them is to be zero, and how much is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_compress.cut.removal import removed_before
from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import Groups, Part
from hf_compress.models.sharding import Shards, local
from hf_compress.models.targets import Target, prunable, unadapted
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.patterns import PATTERNS, Pattern
from hf_compress.prune.selection import Scope, zero_counts

EVERYWHERE = "the whole model"


@dataclass(frozen=True)
class Contest:
    """What competes for being kept: weights of layers, or groups of blocks.

    Args:
        name: of the layer or block, or of all together.
        members: the indices of the layers or blocks.
        total: how many weights, blocks of weights or groups they have, over all shards.
        gone: how many groups were removed from them before.
    """

    name: str
    members: list[int]
    total: int
    gone: int = 0


@dataclass(frozen=True)
class Coverage:
    """What a pattern covers in a model.

    Args:
        targets: the layers that are pruned, with distinct weights.
        pattern: says where zeros are allowed.
        scope: "layer" for the same share of zeros in every layer or block, "global" for a common threshold; groups
            compete with groups of their kind only.
        blocks: the blocks whose groups are pruned, if the pattern prunes groups. All their layers are in `targets`.
        kept: by name of the block, how many groups stay at the sparsity `final`; None for the same share everywhere.
        final: the sparsity at which `kept` is reached.
        gone: how many groups were removed from each block before. They count as zero.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress import PruningArguments
        >>> from hf_compress.prune.coverage import Coverage
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=15)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> coverage = Coverage.of(model, PruningArguments(prune_sparsity=0.5, prune_pattern="neurons+heads"))
        >>> [(contest.name, contest.total) for contest in coverage.contests]
        [('bert.encoder.layer.0.attention', 2), ('bert.encoder.layer.0', 15)]
        >>> coverage.wanted(0.5), coverage.found()
        ([1, 7], [0, 0])
    """

    targets: Sequence[Target]
    pattern: Pattern
    scope: Scope
    blocks: Sequence[Groups] = ()
    kept: Mapping[str, int] | None = None
    final: float = 1.0
    gone: Sequence[int] = ()
    contests: list[Contest] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contests", self._contests())

    @classmethod
    def of(
        cls, model: PreTrainedModel | PeftModel, arguments: PruningArguments, kept: Mapping[str, int] | None = None
    ) -> "Coverage":
        """Return what `arguments` prune in `model`.

        Raises:
            ValueError: an exclude pattern matches nothing, nothing is left to prune, the model's groups cannot be
                taken out one by one, or `kept` is not for its blocks.
        """
        pattern, scope = PATTERNS[arguments.prune_pattern], cast(Scope, arguments.prune_scope)
        blocks = find_groups(model, pattern.kinds, arguments.prune_exclude) if pattern.kinds else []
        selected = _targets(blocks) if blocks else covered(model, arguments)
        targets = list({id(target.weight): target for target in selected}.values())  # Layers may share a weight.
        gone = removed_before(unadapted(model), blocks)
        if kept is None and (given := arguments.keeps) is not None:
            kept = {block.name: block.count for block in blocks} | given
        coverage = cls(targets, pattern, scope, blocks, kept, arguments.goal, gone)
        if kept is not None:
            coverage._check_kept(kept)
        return coverage

    @property
    def size(self) -> int:
        """The number of weights that the pattern covers, over all shards."""
        return sum(target.weight.numel() for target in self.targets)

    @property
    def shards(self) -> Shards:
        """The processes that hold the rows of the weights."""
        return Shards.of([target.weight for target in self.targets])

    def wanted(self, sparsity: float) -> list[int]:
        """Return how many weights, blocks of weights or groups of each contest are zero at `sparsity`.

        Numbers of weights are rounded; numbers of groups are rounded down, and one group of each block stays.
        """
        if not self.blocks:
            return zero_counts([contest.total for contest in self.contests], sparsity, "layer")
        if self.kept is not None:
            share = min(sparsity / self.final, 1.0)
            each = zip(self.blocks, self._gone(), strict=True)
            return [max(0, _floor(share * (one.count + gone - self.kept[one.name])) - gone) for one, gone in each]
        return [
            max(0, min(_floor(sparsity * (one.total + one.gone)) - one.gone, one.total - len(one.members)))
            for one in self.contests
        ]

    def found(self, weights: Sequence[Tensor] | None = None) -> list[int]:
        """Return how many weights, blocks of weights or groups of each contest are zero now. Collective.

        Args:
            weights: of the layers, as they are used; None for those of the modules.
        """
        weights = [target.weight for target in self.targets] if weights is None else weights
        if self.blocks:
            kept = self.group_sums([local(weight) != 0 for weight in weights])
            zeros = [int((one == 0).sum()) for one in kept]
        else:
            each = zip(self.targets, weights, strict=True)
            here = [self.pattern.zeros(local(weight), 1 - target.row_dim) for target, weight in each]
            zeros = self.shards.total(np.array(here, dtype=np.int64)).tolist()
        return [sum(zeros[member] for member in contest.members) for contest in self.contests]

    def short(self, sparsity: float, zeros: Sequence[int]) -> list[str]:
        """Return the names of the contests in which fewer are zero than `sparsity` means.

        Args:
            zeros: from `found`.
        """
        each = zip(self.contests, zeros, self.wanted(sparsity), strict=True)
        return [contest.name for contest, found, wanted in each if found < wanted]

    def sparsity(self) -> float:
        """Return the share that is zero or removed now, in the contest where it is least. Collective."""
        each = zip(self.found(), self.contests, strict=True)
        return min((zeros + contest.gone) / (contest.total + contest.gone) for zeros, contest in each)

    def zeros(self, sparsity: float) -> int:
        """Return how many weights are zero at least if the pattern has `sparsity`, over all shards."""
        wanted = self.wanted(sparsity)
        if not self.blocks:
            return sum(wanted) * self.pattern.outputs
        least = [min(self.group_size(member) for member in contest.members) for contest in self.contests]
        return sum(number * size for number, size in zip(wanted, least, strict=True))

    def group_size(self, member: int) -> int:
        """Return the number of weights in each group of a block."""
        parts = self.blocks[member].parts
        return sum(part.indices().shape[1] * part.target.weight.shape[1 - part.dim] for part in parts)

    def group_sums(self, values: Sequence[Tensor]) -> list[np.ndarray]:
        """Return, block by block, the sum of `values` over each group, in float64. Collective.

        Args:
            values: of the weights of `targets`, this process's part of them.
        """
        places = {target.name: place for place, target in enumerate(self.targets)}
        sums = [np.zeros(block.count) for block in self.blocks]
        for block, total in zip(self.blocks, sums, strict=True):
            for part in block.parts:
                total += self._part_sums(part, values[places[part.target.name]])
        found = self.shards.ordered_total(np.concatenate(sums))
        return np.split(found, np.cumsum([block.count for block in self.blocks])[:-1])

    def masks(self, kept: Sequence[np.ndarray]) -> list[Tensor]:
        """Return this process's part of the masks of the weights, from the groups of each block that are kept."""
        masks: dict[str, Tensor] = {}
        for block, choice in zip(self.blocks, kept, strict=True):
            for part in block.parts:
                weight = part.target.weight
                mask = part.mask(torch.from_numpy(choice))[self.shards.rows(weight.shape[0])].to(local(weight).device)
                masks[part.target.name] = masks[part.target.name] & mask if part.target.name in masks else mask
        return [masks[target.name].contiguous() for target in self.targets]

    def _part_sums(self, part: Part, values: Tensor) -> np.ndarray:
        along = values.sum(1 - part.dim, dtype=torch.float64).cpu()
        owners = part.owners()
        if part.dim == 0:
            owners = owners[self.shards.rows(part.width)]
        # The last place is that of values in no group.
        sums = torch.zeros(part.count + 1, dtype=torch.float64)
        return sums.index_add_(0, owners % (part.count + 1), along)[:-1].numpy()

    def _contests(self) -> list[Contest]:
        if not self.blocks:
            sizes = [target.weight.numel() // self.pattern.outputs for target in self.targets]
            if self.scope == "global":
                return [Contest(EVERYWHERE, list(range(len(sizes))), sum(sizes))]
            return [Contest(one.name, [place], sizes[place]) for place, one in enumerate(self.targets)]
        if self.scope == "global" and self.kept is None:
            kinds = dict.fromkeys(block.kind for block in self.blocks)
            members = {kind: [place for place, one in enumerate(self.blocks) if one.kind == kind] for kind in kinds}
            return [
                Contest(
                    f"the {kind} of {EVERYWHERE}",
                    ours,
                    sum(self.blocks[place].count for place in ours),
                    sum(self._gone()[place] for place in ours),
                )
                for kind, ours in members.items()
            ]
        return [
            Contest(block.name, [place], block.count, self._gone()[place]) for place, block in enumerate(self.blocks)
        ]

    def _gone(self) -> Sequence[int]:
        return self.gone or [0] * len(self.blocks)

    def _check_kept(self, kept: Mapping[str, int]) -> None:
        wrong = set(kept) ^ {block.name for block in self.blocks}
        wrong |= {block.name for block in self.blocks if not 1 <= kept.get(block.name, 1) <= block.count}
        if wrong:
            known = ", ".join(f"{block.name}={block.count}" for block in self.blocks[:2])
            raise ValueError(
                f"`--prune_keep` must name blocks of the model, with 1 to all of their groups ({known}, ...); it does "
                f"not for {', '.join(sorted(wrong)[:3])}. Correct these items."
            )


def pruned_layers(model: PreTrainedModel | PeftModel, arguments: PruningArguments) -> list[Target]:
    """Return the layers in which `arguments` may set weights to zero, also those that share a weight.

    If nothing is pruned, return all that could be.

    Raises:
        ValueError: as `Coverage.of`.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress import PruningArguments
        >>> from hf_compress.prune.coverage import pruned_layers
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
        >>> [layer.name for layer in pruned_layers(model, PruningArguments(0.5, prune_pattern="neurons"))]
        ['encoder.layer.0.intermediate.dense', 'encoder.layer.0.output.dense']
    """
    kinds = PATTERNS[arguments.prune_pattern].kinds if arguments.enabled else ()
    if kinds:
        return _targets(find_groups(model, kinds, arguments.prune_exclude))
    return covered(model, arguments) if arguments.enabled else prunable(model)


def covered(model: PreTrainedModel | PeftModel, arguments: PruningArguments) -> list[Target]:
    """Return the layers whose single weights the pattern of `arguments` allows to be zero.

    Raises:
        ValueError: there is none, or an exclude pattern matches nothing.
    """
    pattern = PATTERNS[arguments.prune_pattern]
    found = [target for target in prunable(model, arguments.prune_exclude) if pattern.covers(target.kind)]
    if not found:
        raise ValueError(
            f"`--prune_pattern {pattern.name}` prunes linear layers only, and this model has none to prune beside its "
            "convolutions. Choose `--prune_pattern unstructured`."
        )
    return found


def _targets(blocks: Sequence[Groups]) -> list[Target]:
    return list({part.target.name: part.target for block in blocks for part in block.parts}.values())


def _floor(number: float) -> int:
    return math.floor(number + 1e-9)  # 0.29 x 100 is a little less than 29.
