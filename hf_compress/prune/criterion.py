"""The base of all criteria: what one is told about a weight, and the words and needs of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """Data for the scores of one weight. All tensors are this process's part, in the weight's shape.

    Args:
        weight: the values; pruned ones are zero.
        gradient: the gradient of the optimizer step, summed over micro-batches, after clipping; None unless the
            criterion has `needs_gradients`. A layer that took no part in the step has zeros.
        optimizer: the optimizer's state of the weight, for example `exp_avg` of Adam; empty unless the criterion has
            `needs_optimizer`, before the first step, and for a layer that had no gradient yet.
        settings: the optimizer's settings for the weight, for example `betas` of Adam; empty unless the criterion has
            `needs_optimizer`.
        step: the optimizer step, from 1; 0 before training.
        memory: the criterion's own tensors, in the weight's shape, by name. `observe` may add and change them in
            place; they are saved in training checkpoints.
        curvature: by column of a linear layer, what removing a 1 adds to the squared error of its outputs if the
            columns behind it make up for it; None unless the criterion `corrects`. `weight` is then some columns of
            the weight, with one row per output, and all other fields are empty.

    Example:
        >>> import torch
        >>> from hf_compress.prune import CRITERIA, Evidence
        >>> CRITERIA["magnitude"].scores(Evidence(weight=torch.tensor([0.5, -2.0])))
        tensor([0.5000, 2.0000])
    """

    weight: Tensor
    gradient: Tensor | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)
    curvature: Tensor | None = None


@dataclass(frozen=True)
class Criterion:
    """A way to score weights, with its words for help text, model card and citation.

    Args:
        scores: returns one floating-point score for each value of a weight, in its shape. The lowest are pruned.
        help: a clause for the help text of `--prune_criterion`.
        card: a noun phrase for the card's sentence "CARD were set to zero".
        citation: a BibTeX entry, or "".
        needs_gradients: pass the gradients. Weights are then scored before the optimizer step, with its gradients.
        needs_optimizer: pass the optimizer's state and settings.
        unfit: returns why the optimizer does not serve, as a clause about "it", or None. Called for every weight
            before training, when the optimizer may have no state yet, and after the first step.
        from_weights: whether the scores are a function of the weight alone and lowest where it is zero. Masks can
            then be found in the weights; otherwise they are saved in training checkpoints.
        corrects: whether the weights that stay are corrected for those that go, on the inputs of some training rows.
            Weights are then chosen block by block of inputs, with the same share of zeros in each block.
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
    unfit: Callable[[Evidence], str | None] | None = None
    from_weights: bool = True
    corrects: bool = False
    observe: Callable[[Evidence], None] | None = None

    @property
    def has_state(self) -> bool:
        """Whether masks and memory must be saved, because they cannot be derived from the weights."""
        derived = self.needs_gradients or self.needs_optimizer or self.corrects or self.observe is not None
        return derived or not self.from_weights
