"""Pruning with correction: zeros are chosen block by block of inputs, and the weights behind make up for them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hf_compress.models.sharding import Shards
from hf_compress.prune.criterion import Criterion, Evidence
from hf_compress.prune.patterns import Pattern
from hf_compress.prune.selection import Candidate, select_masks
from hf_compress.rate import prune_with_feedback


class Blocks:
    """The choice of the zeros of one weight, block after block of its inputs, with an exact number in all.

    A block gets its share of the zeros, and at least those that it has. Processes that hold rows of the weight agree
    on the zeros of every block, as in `select_masks`.

    Args:
        name: used in errors.
        criterion: scores the values of a block.
        pattern: says where zeros are allowed in a block.
        outputs: the number of rows, over all shards.
        zeros: how many values of the weight are zero at the end, or blocks of values that the pattern joins.
        kept: where this process's rows may differ from zero so far.
        shards: the processes that hold the rows.
    """

    def __init__(
        self,
        name: str,
        criterion: Criterion,
        pattern: Pattern,
        outputs: int,
        zeros: int,
        kept: Bool[Tensor, "rows inputs"],
        shards: Shards,
    ) -> None:
        self.name, self.criterion, self.pattern, self.shards = name, criterion, pattern, shards
        self.outputs, self.kept = outputs // pattern.outputs, kept
        self._zeros, self._values = zeros, self.outputs * kept.shape[1]  # What is still to be chosen.
        pruned = (~kept).sum(0).cpu().numpy() // pattern.outputs
        self._before = torch.from_numpy(shards.total(pruned))  # By column, over all shards.

    def __call__(
        self, weight: Float[Tensor, "rows columns"], curvature: Float[Tensor, " columns"], begin: int
    ) -> Bool[Tensor, "rows columns"]:
        """Return where values of the next block may differ from zero. Collective.

        Args:
            weight: this process's rows of the block, corrected for the blocks before it.
            curvature: of the squared error of the outputs, by column.
            begin: the first column of the block.
        """
        width = weight.shape[1]
        size, end = self.outputs * width, begin + width
        least, later = int(self._before[begin:end].sum()), int(self._before[end:].sum())
        share = round(self._zeros * size / self._values)
        count = min(max(share, least), self._zeros - later)
        self._zeros, self._values = self._zeros - count, self._values - size

        def scores() -> Tensor:
            found = self.criterion.scores(Evidence(weight, curvature=curvature))
            found = found.masked_fill(~self.kept[:, begin:end], -torch.inf)  # A pruned weight stays pruned.
            return self.pattern.joined(found, 1)

        candidate = Candidate(self.name, size, scores, weight.dtype)
        (mask,) = select_masks([candidate], count / size, "layer", self.shards)
        return self.pattern.spread(mask, 1)


@torch.no_grad()
def prune_and_correct(
    rows: Float[Tensor, "rows inputs"], moments: Float[Tensor, "inputs inputs"] | None, blocks: Blocks
) -> Bool[Tensor, "rows inputs"]:
    """Set the values of a weight that `blocks` chooses to zero, in place, correct the others, and return the mask.

    Args:
        rows: this process's rows of the weight, one per output.
        moments: the sum X'X of the inputs of the layer; None if it is never called. It then is not corrected.

    Raises:
        ValueError: the moments are not finite, or a score is NaN.
    """
    moments = finite_moments(moments, rows, blocks.name)
    # A pattern that joins inputs may join some of two blocks.
    found, kept = prune_with_feedback(rows, moments, blocks, at_once=blocks.pattern.joins_inputs)
    rows.copy_(found)
    return kept


def finite_moments(
    moments: Float[Tensor, "inputs inputs"] | None, rows: Float[Tensor, "rows inputs"], name: str
) -> Float[Tensor, "inputs inputs"]:
    """Return the moments, or those of independent inputs for a layer that is never called, which has none.

    Args:
        rows: of the weight of the layer.
        name: used in errors.

    Raises:
        ValueError: the moments are not finite.
    """
    if moments is None:
        return torch.eye(rows.shape[1], device=rows.device)
    if not bool(moments.isfinite().all()):
        raise ValueError(
            f"the inputs of {name} are not finite, so its weights cannot be corrected for pruned ones: "
            "training has diverged. Lower `--learning_rate`, or clip gradients with `--max_grad_norm`."
        )
    return moments
