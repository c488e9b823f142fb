"""The registry of distillation losses on embeddings: distances between those of a student and of its teacher.

To add one, write its function and its entry in `EMBEDDING_LOSSES`. The flag's choices and help, the checks before
training and the model card follow from the entry.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# What cosines are multiplied by before a softmax: usual for training with in-batch negatives.
SCALE = 20.0


@dataclass(frozen=True)
class EmbeddingLoss:
    """A distillation loss on the embeddings of the texts in a batch.

    Args:
        name: the value of `--distill_loss`.
        function: the distance. It takes the student's and the teacher's embeddings, of shapes (rows, width), and the
            temperature, and returns one value per row.
        same_width: whether both must have the same width. A wider teacher is then projected.
        help: a short phrase for the flag's help.
        card: a noun phrase for "The loss is 0.9 x <card> + 0.1 x the loss on the labels". `{temperature:g}` and
            `{scale:g}` (the temperature squared) are filled in.
        citation: a BibTeX entry, or "".
        has_temperature: whether the temperature changes the loss.

    Example:
        >>> from hf_compress.distill.embedding_losses import EMBEDDING_LOSSES
        >>> sorted(EMBEDDING_LOSSES)
        ['cosine', 'kl', 'mse', 'similarity']
    """

    name: str
    function: Callable[..., Tensor]
    same_width: bool
    help: str
    card: str
    citation: str = ""
    has_temperature: bool = False


def squared(
    student: Float[Tensor, "rows width"], teacher: Float[Tensor, "rows width"], temperature: float = 1.0
) -> Float[Tensor, "rows"]:
    """Return the squared distance of the embeddings, as a share of the mean squared length of the teacher's.

    The share does not depend on the width and the length of embeddings. The temperature has no effect.
    """
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).mean().clamp(min=1e-12)


def cosine(
    student: Float[Tensor, "rows width"], teacher: Float[Tensor, "rows width"], temperature: float = 1.0
) -> Float[Tensor, "rows"]:
    """Return 1 - cosine of the embeddings. The temperature has no effect."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def similarity(
    student: Float[Tensor, "rows width"], teacher: Float[Tensor, "rows other_width"], temperature: float = 1.0
) -> Float[Tensor, "rows"]:
    """Return the mean squared difference of the cosines of each row with the other rows.

    After Park et al. (2019), who compare distances. It is zero for one row alone. The temperature has no effect.
    """
    difference = _cosines(student) - _cosines(teacher)  # Zero on the diagonal, but for rounding.
    return difference.square().fill_diagonal_(0).sum(-1) / max(len(student) - 1, 1)


def similarity_kl(
    student: Float[Tensor, "rows width"], teacher: Float[Tensor, "rows other_width"], temperature: float = 1.0
) -> Float[Tensor, "rows"]:
    """Return KL(teacher || student) of how similar each row is to the other rows, times the squared temperature.

    The distributions are softmaxes over the other rows, of 20 times the cosine over the temperature. It is zero for
    one or two rows, which leave no choice. In nats.
    """
    if len(student) < 2:
        return 0.0 * student.sum(-1)
    # Left out rather than set to minus infinity, which has no gradient.
    ours, theirs = (
        F.log_softmax(SCALE / temperature * _without_diagonal(_cosines(one)), dim=-1) for one in (student, teacher)
    )
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2


def _cosines(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
    unit = F.normalize(rows, dim=-1)
    return unit @ unit.T


def _without_diagonal(square: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows others"]:
    count = len(square)
    return square.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)


def principal_directions(rows: Float[Tensor, "rows width"], count: int) -> Float[Tensor, "width count"]:
    """Return the projection to `count` dimensions that keeps most of the inner products of `rows`.

    These are the first right singular vectors (Eckart & Young, 1936): PCA without centring, because centring would
    change cosines. Signs are fixed, so that another machine finds the same.

    Args:
        rows: embeddings, at least `count` of them.

    Example:
        >>> import torch
        >>> from hf_compress.distill.embedding_losses import principal_directions
        >>> principal_directions(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), count=1).T
        tensor([[1., 0.]])
    """
    found = torch.linalg.svd(rows.double(), full_matrices=False).Vh[:count].T
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return (found * largest.sign()).float() + 0.0  # No negative zeros.


_PARK = """@inproceedings{park2019relational,
  title = {Relational Knowledge Distillation},
  author = {Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2019}
}"""
_REIMERS = """@inproceedings{reimers2020making,
  title = {Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation},
  author = {Reimers, Nils and Gurevych, Iryna},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing},
  year = {2020}
}"""

EMBEDDING_LOSSES: dict[str, EmbeddingLoss] = {
    loss.name: loss
    for loss in (
        EmbeddingLoss(
            "kl",
            similarity_kl,
            same_width=False,
            help="divergence of the softmaxes over the similarities with the other texts of the batch",
            card="the Kullback-Leibler divergence from the teacher's similarities within the batch (softmaxes of "
            "20 times the cosines at temperature {temperature:g}, scaled by {scale:g})",
            citation=_PARK,
            has_temperature=True,
        ),
        EmbeddingLoss(
            "mse",
            squared,
            same_width=True,
            help="squared distance of the embeddings",
            card="the squared distance of the embeddings from the teacher's, as a share of their squared length",
            citation=_REIMERS,
        ),
        EmbeddingLoss(
            "cosine",
            cosine,
            same_width=True,
            help="1 - cosine of the embeddings",
            card="the cosine distance (1 - cosine) of the embeddings to the teacher's",
        ),
        EmbeddingLoss(
            "similarity",
            similarity,
            same_width=False,
            help="squared difference of the similarities with the other texts of the batch",
            card="the mean squared difference of the similarities within the batch (cosines) from the teacher's",
            citation=_PARK,
        ),
    )
}
