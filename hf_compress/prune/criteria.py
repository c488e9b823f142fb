"""Which weights are pruned first: criteria, functions that score the values of a weight.

A criterion is one entry of `CRITERIA`. The choice itself (exact counts, scopes, ties, shards) is the same for all of
them: see `selection`.
"""

from collections.abc import Sequence
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from hf_compress.models.sharding import Shards, local
from hf_compress.prune.adam import ADAM
from hf_compress.prune.criterion import Criterion, Evidence
from hf_compress.prune.platon import PLATON
from hf_compress.prune.selection import Candidate, Scope, select_masks
from hf_compress.prune.sparsegpt import SPARSEGPT


def magnitude(evidence: Evidence) -> Tensor:
    """Return the absolute values of the weight."""
    return evidence.weight.abs()


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            name="magnitude",
            scores=magnitude,
            help="the smallest absolute values",
            card="weights of smallest magnitude",
            citation="""@inproceedings{han-etal-2015-learning,
  title     = {Learning both Weights and Connections for Efficient Neural Network},
  author    = {Han, Song and Pool, Jeff and Tran, John and Dally, William J.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2015},
  url       = {https://arxiv.org/abs/1506.02626}
}""",
        ),
        ADAM,
        PLATON,
        SPARSEGPT,
    )
}


def magnitude_masks(
    weights: Sequence[Float[Tensor, "..."]], sparsity: float, scope: Scope
) -> list[Bool[Tensor, "..."]]:
    """Return one mask per weight, of its shape: False at the smallest magnitudes, True where the weight is kept.

    See `selection.select_masks` for counts, ties and shards. Weights may be sharded by rows (`DTensor`, FSDP2).

    Args:
        weights: floating-point tensors; they are not changed.
        sparsity: share of zeros, in [0, 1].

    Raises:
        ValueError: a weight holds NaN.

    Example:
        >>> import torch
        >>> from hf_compress.prune.criteria import magnitude_masks
        >>> magnitude_masks([torch.tensor([0.5, -0.1, 2.0, 0.3])], 0.5, "layer")
        [tensor([ True, False,  True, False])]
    """
    candidates = [
        Candidate(
            f"Weight {number} of {len(weights)}, of shape {tuple(weight.shape)},",
            weight.numel(),
            partial(_magnitudes, weight),
            weight.dtype,
        )
        for number, weight in enumerate(weights, 1)
    ]
    return select_masks(candidates, sparsity, scope, Shards.of(weights))


def _magnitudes(weight: Tensor) -> Tensor:
    return magnitude(Evidence(local(weight)))
