"""The registry of distillation losses on the scores of a reranker: distances that look at all texts for a query.

To add one, write its function and its entry in `SCORE_LOSSES`. The flag's choices and help, the checks before training
and the model card follow from the entry.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ScoreLoss:
    """A distillation loss on the scores of pairs of a query and a text.

    Args:
        name: the value of `--distill_loss`.
        function: the distance. It takes the student's and the teacher's scores, of shape (pairs,), and the number of
            the query of each pair, and returns one value for each text that is compared.
        help: a short phrase for the flag's help.
        card: a noun phrase for "The loss is 0.9 x <card> + 0.1 x the loss on the labels".
        citation: a BibTeX entry, or "".

    Example:
        >>> from hf_compress.distill.score_losses import SCORE_LOSSES
        >>> sorted(SCORE_LOSSES)
        ['margin']
    """

    name: str
    function: Callable[..., Tensor]
    help: str
    card: str
    citation: str


def margin(
    student: Float[Tensor, "pairs"], teacher: Float[Tensor, "pairs"], queries: Int[Tensor, "pairs"]
) -> Float[Tensor, "others"]:
    """Return the squared difference of the margins, for each text of a query but its first.

    A margin is the score of the first text less that of the other (margin-MSE, Hofstaetter et al., 2020, eq. 3). The
    result is empty if every query has one text only.

    Args:
        student: its scores.
        teacher: its scores.
        queries: the number of the query of each pair, in any order.

    Example:
        >>> import torch
        >>> from hf_compress.distill.score_losses import margin
        >>> margin(torch.tensor([3.0, 1.0]), torch.tensor([9.0, 8.0]), torch.tensor([0, 0]))
        tensor([1.])
    """
    order = queries.argsort(stable=True)
    sorted_queries, gap = queries[order], (student - teacher)[order]
    starts = sorted_queries.diff(prepend=sorted_queries[:1] - 1) != 0
    firsts = gap[starts][starts.cumsum(0) - 1]
    return (firsts - gap)[~starts].square()


_HOFSTAETTER = """@article{hofstaetter2020margin,
  title = {Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation},
  author = {Hofst{\\"a}tter, Sebastian and Althammer, Sophia and Schr{\\"o}der, Michael and Sertkan, Mete
            and Hanbury, Allan},
  journal = {arXiv preprint arXiv:2010.02666},
  year = {2020}
}"""

SCORE_LOSSES: dict[str, ScoreLoss] = {
    loss.name: loss
    for loss in (
        ScoreLoss(
            "margin",
            margin,
            help="squared difference of the margins between the first text for a query and the others",
            card="the squared difference of the margins between the scores of the first text for a query and of the "
            "others from the teacher's",
            citation=_HOFSTAETTER,
        ),
    )
}
