"""Which blocks give up how many neurons and heads, so that a model becomes as fast as asked and loses least."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hf_compress.models.groups import Groups
from hf_compress.prune.knapsack import Option, least_loss
from hf_compress.prune.latency import LatencyTable

STEPS = 32  # A block of many groups may keep any number of its 32nd parts.


@dataclass(frozen=True)
class SpeedGoal:
    """How many times faster a model has to be, and what its blocks cost on this machine.

    Args:
        speedup: above 1.
        table: measured for the model.

    Example:
        >>> from hf_compress.prune import Course, LatencyTable, SpeedGoal
        >>> neurons = Course("neurons", count=8, blocks=2, kept=[2, 8], shares=[0.4, 1.0])
        >>> table = LatencyTable("1 x 128 tokens", 0.01, 0.4, (neurons,), "int8", "ONNX Runtime", "a CPU")
        >>> SpeedGoal(2.0, table).possible, SpeedGoal(3.0, table).possible
        (True, False)
    """

    speedup: float
    table: LatencyTable

    @property
    def possible(self) -> bool:
        """Whether the model can be as fast as that."""
        return self.speedup <= self.table.most

    def allot(
        self, blocks: Sequence[Groups], errors: Sequence[Float[np.ndarray, " groups"]], *, uniform: bool = False
    ) -> dict[str, int]:
        """Return how many groups of each block stay, by its name, so that the model is as fast as asked.

        Of all such numbers, those with the least sum of the errors of what goes, up to the steps of `least_loss`.

        Args:
            blocks: of the model.
            errors: what the outputs lose if one group goes, by group, for each block (`rate.removal_errors`).
            uniform: whether all blocks of a kind keep the same number.

        Raises:
            ValueError: no numbers are fast enough.
        """
        numbers = [counts(block.count, self._fewest(block)) for block in blocks]
        options = []
        for block, ours, kept in zip(blocks, errors, numbers, strict=True):
            lost = np.concatenate([[0.0], np.cumsum(np.sort(ours))])
            most = self.table.saved(block, kept[-1])
            costs = [max(0.0, most - self.table.saved(block, number)) for number in kept]
            options.append(
                [Option(cost, lost[block.count - number]) for cost, number in zip(costs, kept, strict=True)]
            )
        things = _joined(blocks, options) if uniform else options
        everything = sum(self.table.saved(block, kept[-1]) for block, kept in zip(blocks, numbers, strict=True))
        chosen = least_loss(things, 1 / self.speedup - (1 - everything))
        if chosen is None:
            raise ValueError(
                f"`--compress_speedup {self.speedup:g}` is more than the groups that may go allow: "
                f"{1 / (1 - everything):.2f}. Lower it, or exclude less (`--prune_exclude`)."
            )
        if uniform:
            kinds = list(dict.fromkeys((block.kind, block.count) for block in blocks))
            chosen = [chosen[kinds.index((block.kind, block.count))] for block in blocks]
        return {block.name: kept[place] for block, kept, place in zip(blocks, numbers, chosen, strict=True)}

    def _fewest(self, block: Groups) -> int:
        fitting = [one.kept[0] for one in self.table.courses if (one.kind, one.count) == (block.kind, block.count)]
        return fitting[0] if fitting else block.count


def counts(count: int, fewest: int) -> list[int]:
    """Return how many of `count` groups a block may keep, falling from all to `fewest`.

    Example:
        >>> from hf_compress.prune.allotment import counts
        >>> counts(4, 1), counts(128, 110)
        ([4, 3, 2, 1], [128, 124, 120, 116, 112, 110])
    """
    if count <= STEPS:
        return list(range(count, fewest - 1, -1))
    steps = [round(count * place / STEPS) for place in range(STEPS, 0, -1)]
    return [number for number in steps if number > fewest] + [fewest]


def _joined(blocks: Sequence[Groups], options: Sequence[Sequence[Option]]) -> list[list[Option]]:
    """Return the options of all blocks of one kind and size together."""
    found: dict[tuple[str, int], list[Option]] = {}
    for block, ours in zip(blocks, options, strict=True):
        known = found.get((block.kind, block.count), [Option(0.0, 0.0)] * len(ours))
        found[block.kind, block.count] = [
            Option(one.cost + other.cost, one.loss + other.loss) for one, other in zip(known, ours, strict=True)
        ]
    return list(found.values())
