"""Which weights are pruned first: criteria, functions that score the values of a weight.

A criterion is one entry of `CRITERIA`. The choice itself (exact counts, scopes, ties, shards) is the same for all of
them: see `selection`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from hf_compress.models.sharding import Shards, local
from hf_compress.prune.selection import Candidate, Scope, select_masks


@dataclass(frozen=True)
class Evidence:
    """Data for the scores of one weight. All tensors are this process's part, in the weight's shape.

    Args:
        weight: the values; pruned ones are zero.
        gradient: the gradient of the optimizer step, summed over micro-batches, after clipping; None unless the
            criterion has `needs_gradients`. A layer that took no part in the step has zeros.
        optimizer: the optimizer's state of the weight, for example `exp_avg` of Adam; empty unless the criterion has
            `needs_optimizer`.
        memory: the criterion's own tensors, in the weight's shape, by name. `observe` may add and change them in
            place; they are saved in training checkpoints.

    Example:
        >>> import torch
        >>> from hf_compress.prune import CRITERIA, Evidence
        >>> CRITERIA["magnitude"].scores(Evidence(weight=torch.tensor([0.5, -2.0])))
        tensor([0.5000, 2.0000])
    """

    weight: Tensor
    gradient: Tensor | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Criterion:
    """A way to score weights, with its words for help text, model card and citation.

    Args:
        scores: returns one floating-point score for each value of a weight, in its shape. The lowest are pruned.
        help: a clause for the help text of `--prune_criterion`.
        card: a noun phrase for the card's sentence "CARD were set to zero".
        citation: a BibTeX entry, or "".
        needs_gradients: pass the gradients. Weights are then scored before the optimizer step, with its gradients.
        needs_optimizer: pass the optimizer's state.
        from_weights: whether the scores are a function of the weight alone and lowest where it is zero. Masks can
            then be found in the weights; otherwise they are saved in training checkpoints.
        observe: called in every optimizer step, to update `Evidence.memory`.

    Example:
        >>> from hf_compress.prune import CRITERIA, Criterion
        >>> saliency = Criterion(
        ...     name="saliency",
        ...     scores=lambda evidence: (evidence.weight * evidence.gradient).abs(),
        ...     help="the smallest products of weight and gradient",
        ...     card="weights with the smallest product of weight and gradient",
        ...     needs_gradients=True,
        ... )
        >>> saliency.has_state
        True
        >>> CRITERIA["saliency"] = saliency  # doctest: +SKIP
    """

    name: str
    scores: Callable[[Evidence], Tensor]
    help: str
    card: str
    citation: str = ""
    needs_gradients: bool = False
    needs_optimizer: bool = False
    from_weights: bool = True
    observe: Callable[[Evidence], None] | None = None

    @property
    def has_state(self) -> bool:
        """Whether masks and memory must be saved, because they cannot be derived from the weights."""
        return not self.from_weights or self.needs_gradients or self.needs_optimizer or self.observe is not None


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
