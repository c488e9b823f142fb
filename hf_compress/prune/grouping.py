"""Whole groups are pruned: which ones, and how the weights that read the others make up for them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hf_compress.models.groups import Groups
from hf_compress.models.sharding import local
from hf_compress.prune.correction import finite_moments
from hf_compress.prune.coverage import Coverage
from hf_compress.rate import damped

Scores = Float[np.ndarray, " groups"]
Kept = Bool[np.ndarray, " groups"]


def choose_groups(
    coverage: Coverage, scores: Sequence[Scores], sparsity: float, alive: Sequence[Kept] | None, step: int = 0
) -> list[Kept]:
    """Return which groups of each block are kept: all but those of the lowest scores, as many as `sparsity` means.

    One group of each block stays, whatever its score. Of equal scores, the first ones are pruned. Therefore groups
    pruned at one sparsity are pruned at every higher one.

    Args:
        scores: of the groups of each block.
        alive: the groups that are not pruned yet; the others stay pruned. None if the scores show it.
        step: used in errors.

    Raises:
        ValueError: a score is NaN.

    Example:
        >>> import numpy as np
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress import PruningArguments
        >>> from hf_compress.prune import Coverage
        >>> from hf_compress.prune.grouping import choose_groups
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> coverage = Coverage.of(model, PruningArguments(prune_sparsity=0.5, prune_pattern="neurons"))
        >>> choose_groups(coverage, [np.array([3.0, 1.0, 2.0, 4.0])], 0.5, None)[0].tolist()
        [True, False, False, True]
    """
    for block, ours in zip(coverage.blocks, scores, strict=True):
        if found := int(np.isnan(ours).sum()):
            raise ValueError(
                f"{block.name} at step {step} holds NaN in {found} of {block.count} {block.kind}, so they cannot be "
                "ranked for pruning: training has diverged. Lower `--learning_rate`, or clip gradients with "
                "`--max_grad_norm`."
            )
    if alive is not None:
        scores = [np.where(still, ours, -np.inf) for ours, still in zip(scores, alive, strict=True)]
    kept = [np.ones(block.count, dtype=bool) for block in coverage.blocks]
    for contest, wanted in zip(coverage.contests, coverage.wanted(sparsity), strict=True):
        places = [(member, place) for member in contest.members for place in range(len(scores[member]))]
        left = {member: len(scores[member]) for member in contest.members}
        for best in np.argsort(np.concatenate([scores[member] for member in contest.members]), kind="stable"):
            member, place = places[best]
            if wanted == 0:
                break
            if left[member] > 1:
                kept[member][place] = False
                left[member] -= 1
                wanted -= 1
    return kept


def removal_losses(
    coverage: Coverage, alive: Sequence[Kept] | None, moments: Mapping[str, Tensor], step: int = 0
) -> list[Scores]:
    """Return what each group costs if the others make up for it. Collective.

    Args:
        alive: the groups that are not pruned yet; None for all.
        moments: the sums X'X of the inputs of the layers that read the groups, by name.
        step: used in errors.
    """
    losses = []
    for index, block in enumerate(coverage.blocks):
        rows, known = _reader(block, moments, step)
        indices = block.consumer.indices().to(rows.device)
        still = np.ones(block.count, dtype=bool) if alive is None else alive[index]
        losses.append(group_losses(rows, known, indices, torch.from_numpy(still).to(rows.device)))
    found = coverage.shards.ordered_total(np.concatenate(losses))
    return np.split(found, np.cumsum([len(one) for one in losses])[:-1])


def make_up(coverage: Coverage, kept: Sequence[Kept], moments: Mapping[str, Tensor], step: int = 0) -> None:
    """Correct the weights that read the groups, in place, for those that are not kept: by least squares.

    Args:
        moments: the sums X'X of the inputs of the layers that read the groups, by name.
        step: used in errors.
    """
    for block, ours in zip(coverage.blocks, kept, strict=True):
        rows, known = _reader(block, moments, step)
        correct(rows, known, torch.from_numpy(ours)[block.consumer.owners()].to(rows.device))


@torch.no_grad()
def group_losses(
    rows: Float[Tensor, "rows inputs"],
    moments: Float[Tensor, "inputs inputs"],
    indices: Int[Tensor, "groups values"],
    kept: Bool[Tensor, " groups"],
) -> Scores:
    """Return the growth of the squared error of a layer's outputs if one group of its inputs goes, in float64.

    All other groups make up for it (Hassibi & Stork, 1993, for several weights at once: Kurtic et al., 2022).

    Args:
        rows: this process's rows of the weight that reads the groups. Losses of all rows add up.
        moments: the sum X'X of its inputs.
        indices: the inputs of each group.
        kept: the groups that are not pruned yet. The losses of the others are 0.

    Example:
        >>> import torch
        >>> from hf_compress.prune.grouping import group_losses
        >>> equal_inputs, each = torch.ones(2, 2) + 1e-6 * torch.eye(2), torch.tensor([[0], [1]])
        >>> losses = group_losses(torch.ones(1, 2), equal_inputs, each, torch.tensor([True, True]))
        >>> bool((losses < 0.05).all())
        True
    """
    ours = indices[kept]
    alive = ours.flatten()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moments)[alive][:, alive]))
    count, width = ours.shape
    blocks = inverse.reshape(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    weights = rows.double()[:, alive].reshape(len(rows), count, width).permute(1, 2, 0)
    losses = np.zeros(len(indices))
    found = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
    losses[kept.cpu().numpy()] = found.cpu().numpy()
    return losses


@torch.no_grad()
def correct(
    rows: Float[Tensor, "rows inputs"], moments: Float[Tensor, "inputs inputs"], kept: Bool[Tensor, " inputs"]
) -> None:
    """Set the inputs of a weight that are not kept to zero, in place, and correct the others by least squares.

    Args:
        rows: this process's rows of the weight.
        moments: the sum X'X of its inputs.

    Example:
        >>> import torch
        >>> from hf_compress.prune.grouping import correct
        >>> rows = torch.tensor([[0.5, 0.5]])
        >>> correct(rows, torch.ones(2, 2) + 1e-6 * torch.eye(2), torch.tensor([True, False]))
        >>> rows.round(decimals=1)
        tensor([[1., 0.]])
    """
    wide = damped(moments)
    factor = torch.linalg.cholesky(wide[kept][:, kept])
    missing = rows[:, ~kept].double() @ wide[~kept][:, kept]
    rows[:, kept] += torch.cholesky_solve(missing.T, factor).T.to(rows.dtype)
    rows[:, ~kept] = 0


def _reader(block: Groups, moments: Mapping[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Return this process's rows of the weight that reads the groups of a block, and the moments of its inputs."""
    target = block.consumer.target
    rows = target.as_rows(local(target.weight))
    return rows, finite_moments(moments.get(target.name), rows, f"{target.name} at step {step}")
