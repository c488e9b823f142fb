"""Patterns: where zeros are allowed within a weight or a layer, on top of the scores of any criterion.

A pattern is one entry of `PATTERNS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_compress.models.groups import GroupKind
from hf_compress.models.layer_kinds import CONVOLUTIONS, LayerKind


def anywhere(scores: Tensor, input_dim: int) -> Tensor:
    """Return the scores as they are: zeros are allowed anywhere."""
    return scores


@dataclass(frozen=True)
class Pattern:
    """A rule about the places of zeros, with its words for help text and model card.

    Args:
        restrict: returns the scores of one weight with infinity where the pattern allows no zero. It is given the
            scores and the dimension that enumerates the inputs of the layer. Scores of pruned values are the lowest
            ones.
        help: a clause for the help text of `--prune_pattern`.
        card: a sentence about the places of the zeros, for the card.
        most: the highest sparsity that the pattern allows, in (0, 1].
        joins_inputs: whether values of different inputs depend on each other. Such a pattern is refused where inputs
            are sharded.
        inputs: how many inputs belong together: every layer must have a multiple of it.
        outputs: how many consecutive outputs are zero together, at one input. Their scores are added, and `restrict`
            sees one score for all. Every layer must have a multiple of it.
        kinds: the groups that are pruned as a whole: neurons, heads or both. All other weights stay dense.
        units: what `--prune_sparsity` is a share of, for messages and the card.
        citation: a BibTeX entry, or "".

    Example:
        >>> import torch
        >>> from hf_compress.prune import PATTERNS, Pattern
        >>> def pairs(scores, input_dim):
        ...     grouped = scores.movedim(input_dim, -1).unflatten(-1, (-1, 2))
        ...     largest = grouped.argmax(-1, keepdim=True)
        ...     return grouped.scatter(-1, largest, torch.inf).flatten(-2).movedim(-1, input_dim)
        >>> words = {"help": "one of two inputs", "card": "Of two inputs one is zero."}
        >>> half = Pattern("1:2", pairs, most=0.5, joins_inputs=True, inputs=2, **words)
        >>> half.restrict(torch.tensor([[0.1, 0.2, 0.4, 0.3]]), 1)
        tensor([[0.1000,    inf,    inf, 0.3000]])
        >>> PATTERNS["1:2"] = half  # doctest: +SKIP
    """

    name: str
    restrict: Callable[[Tensor, int], Tensor]
    help: str
    card: str
    most: float = 1.0
    joins_inputs: bool = False
    inputs: int = 1
    outputs: int = 1
    kinds: tuple[GroupKind, ...] = ()
    units: str = "weights of its linear layers"
    citation: str = ""

    @property
    def slug(self) -> str:
        """The name in letters and digits that a file name may have."""
        return self.name.replace("+", "-").replace(":", "of")

    def covers(self, layer: LayerKind) -> bool:
        """Return whether layers of this kind are pruned: convolutions only where zeros are allowed anywhere.

        Kernels that use other patterns multiply matrices.
        """
        return layer not in CONVOLUTIONS or (self.inputs == self.outputs == 1 and not self.joins_inputs)

    def joined(self, scores: Tensor, input_dim: int) -> Tensor:
        """Return one score for all outputs that are zero together, the sum of theirs, restricted by the pattern."""
        output_dim = 1 - input_dim
        if self.outputs > 1:
            numbers = (scores.shape[output_dim] // self.outputs, self.outputs)
            scores = scores.unflatten(output_dim, numbers).sum(output_dim + 1)
        return self.restrict(scores, input_dim)

    def spread(self, mask: Tensor, input_dim: int) -> Tensor:
        """Return the mask of a weight, from one value for all outputs that are zero together."""
        return mask if self.outputs == 1 else mask.repeat_interleave(self.outputs, dim=1 - input_dim)

    def zeros(self, weight: Tensor, input_dim: int) -> int:
        """Return how many zeros of `weight` the pattern counts, one for all outputs that are zero together.

        A zero where the pattern allows none is not counted.
        """
        return int((self.joined((weight != 0).float(), input_dim) == 0).count_nonzero())


def two_of_four(scores: Tensor, input_dim: int) -> Tensor:
    """Return the scores with infinity at the two highest of every four consecutive inputs."""
    fours = scores.movedim(input_dim, -1).unflatten(-1, (scores.shape[input_dim] // 4, 4))
    highest = fours.sort(dim=-1, stable=True).indices[..., 2:]  # Of equal scores, the first ones may be zero.
    return fours.scatter(-1, highest, torch.inf).flatten(-2).movedim(-1, input_dim)


PATTERNS: dict[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        Pattern(
            name="unstructured",
            restrict=anywhere,
            help="anywhere",
            card="The zeros may stand anywhere in a weight (unstructured).",
        ),
        Pattern(
            name="neurons",
            restrict=anywhere,
            help="whole neurons of the feed-forward layers; `--prune_sparsity` is their share",
            card="Whole neurons of the feed-forward layers are zero, in every layer that computes or reads them.",
            kinds=("neurons",),
            units="neurons of its feed-forward layers",
        ),
        Pattern(
            name="heads",
            restrict=anywhere,
            help="whole attention heads (with all queries that share a key); `--prune_sparsity` is their share",
            card="Whole attention heads are zero, in every layer that computes or reads them.",
            kinds=("heads",),
            units="attention heads",
        ),
        Pattern(
            name="neurons+heads",
            restrict=anywhere,
            help="both, the same share of either",
            card="Whole neurons of the feed-forward layers and whole attention heads are zero, in every layer that "
            "computes or reads them.",
            kinds=("neurons", "heads"),
            units="neurons of its feed-forward layers and of its attention heads",
        ),
        Pattern(
            name="2:4",
            restrict=two_of_four,
            help="at most two of four consecutive inputs, as sparse tensor cores need (give `--prune_sparsity 0.5`)",
            card="Of four consecutive inputs at most two are zero (2:4).",
            most=0.5,
            joins_inputs=True,
            inputs=4,
            citation="""@misc{mishra-etal-2021-accelerating,
  title  = {Accelerating Sparse Deep Neural Networks},
  author = {Mishra, Asit and Latorre, Jorge Albericio and Pool, Jeff and Stosic, Darko and Stosic, Dusan and Venkatesh, Ganesh and Yu, Chong and Micikevicius, Paulius},
  year   = {2021},
  url    = {https://arxiv.org/abs/2104.08378}
}""",  # noqa: E501
        ),
        Pattern(
            name="4x1",
            restrict=anywhere,
            help="blocks of four consecutive outputs at one input, as block-sparse kernels for CPUs read them",
            card="The zeros stand in blocks of four consecutive outputs at one input (4x1).",
            outputs=4,
            units="4x1 blocks of its linear layers",
        ),
    )
}
