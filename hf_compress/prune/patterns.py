"""Patterns: where zeros are allowed within a weight, on top of the scores of any criterion.

A pattern is one entry of `PATTERNS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


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
        citation: a BibTeX entry, or "".

    Example:
        >>> import torch
        >>> from hf_compress.prune import PATTERNS, Pattern
        >>> def pairs(scores, input_dim):
        ...     grouped = scores.movedim(input_dim, -1).unflatten(-1, (-1, 2))
        ...     largest = grouped.argmax(-1, keepdim=True)
        ...     return grouped.scatter(-1, largest, torch.inf).flatten(-2).movedim(-1, input_dim)
        >>> words = {"help": "one of two inputs", "card": "Of two inputs one is zero."}
        >>> half = Pattern("1:2", pairs, most=0.5, joins_inputs=True, **words)
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
    citation: str = ""


def anywhere(scores: Tensor, input_dim: int) -> Tensor:
    """Return the scores as they are: zeros are allowed anywhere."""
    return scores


PATTERNS: dict[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        Pattern(
            name="unstructured",
            restrict=anywhere,
            help="anywhere",
            card="The zeros may stand anywhere in a weight (unstructured).",
        ),
    )
}
