"""The registry of distillation losses: distances between a student's and a teacher's logits.

To add a loss, write its function and its entry in `LOSSES`. The flag's choices and help, the checks before training
and the model card follow from the entry.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A distillation loss, with the words that the flag's help and the card need.

    Args:
        name: the value of `--distill_loss`.
        function: the distance. It takes the student's logits, the teacher's logits, both of shape
            (positions, classes), and the temperature, and returns one value per position.
        independent: the form of `function` for independent labels (multi-label classification), or None if there is
            none. Training with such labels is then refused.
        help: a short phrase for the flag's help.
        card: a noun phrase for "The loss is 0.9 x <card> + 0.1 x the loss on the labels". `{temperature:g}` and
            `{scale:g}` (the temperature squared) are filled in.
        citation: a BibTeX entry, or "".
        has_temperature: whether the temperature changes the loss.

    Example:
        >>> import torch
        >>> from hf_compress.distill import LOSSES, Loss
        >>> mae = Loss(
        ...     name="mae",
        ...     function=lambda student, teacher, temperature: (student - teacher).abs().mean(-1),
        ...     independent=None,
        ...     help="absolute difference of logits",
        ...     card="the mean absolute difference of the logits",
        ...     citation="",
        ...     has_temperature=False,
        ... )
        >>> mae.function(torch.zeros(2, 3), torch.ones(2, 3), 1.0)
        tensor([1., 1.])
        >>> LOSSES["mae"] = mae  # From here on, `--distill_loss mae` is legal.
        >>> del LOSSES["mae"]
    """

    name: str
    function: Callable[..., Tensor]
    independent: Callable[..., Tensor] | None
    help: str
    card: str
    citation: str
    has_temperature: bool = True


def kl(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """Return KL(teacher || student) of the softened distributions, times the squared temperature, in nats.

    The factor T^2 keeps the size of the gradient independent of the temperature (Hinton et al., 2015, section 2): as T
    grows, the gradient approaches that of half the squared difference of the centred logits, per class.
    """
    teacher_log_p = F.log_softmax(teacher / temperature, dim=-1)
    student_log_p = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(student_log_p, teacher_log_p, reduction="none", log_target=True).sum(-1) * temperature**2


def mse(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float = 1.0
) -> Float[Tensor, "positions"]:
    """Return the squared difference of the logits, averaged over classes (Ba & Caruana, 2014).

    The temperature has no effect.
    """
    return F.mse_loss(student, teacher, reduction="none").mean(-1)


def ce(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """Return the cross-entropy with the teacher's softened distribution as labels, times the squared temperature.

    In nats. It is `kl` plus the teacher's own entropy, so it has the gradient of `kl` but does not reach zero.
    """
    soft_labels = F.softmax(teacher / temperature, dim=-1)
    return F.cross_entropy(student / temperature, soft_labels, reduction="none") * temperature**2


def binary_kl(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """Return the `kl` of independent labels, each with its own sigmoid: the mean over labels, in nats, times T^2."""
    student, teacher = student / temperature, teacher / temperature
    per_label = F.kl_div(F.logsigmoid(student), F.logsigmoid(teacher), reduction="none", log_target=True) + F.kl_div(
        F.logsigmoid(-student), F.logsigmoid(-teacher), reduction="none", log_target=True
    )
    return per_label.mean(-1) * temperature**2


def binary_ce(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """Return the `ce` of independent labels, each with its own sigmoid: the mean over labels, in nats, times T^2."""
    soft_labels = (teacher / temperature).sigmoid()
    per_label = F.binary_cross_entropy_with_logits(student / temperature, soft_labels, reduction="none")
    return per_label.mean(-1) * temperature**2


_HINTON = """@article{hinton2015distilling,
  title = {Distilling the Knowledge in a Neural Network},
  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year = {2015}
}"""
_BA = """@inproceedings{ba2014deep,
  title = {Do Deep Nets Really Need to be Deep?},
  author = {Ba, Lei Jimmy and Caruana, Rich},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {27},
  year = {2014}
}"""

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            name="kl",
            function=kl,
            independent=binary_kl,
            help="divergence of the softened distributions",
            card="the Kullback-Leibler divergence from the teacher's probabilities at temperature {temperature:g} "
            "(scaled by {scale:g})",
            citation=_HINTON,
        ),
        Loss(
            name="mse",
            function=mse,
            independent=mse,
            help="squared difference of the logits; regression always uses it",
            card="the mean squared difference of the logits",
            citation=_BA,
            has_temperature=False,
        ),
        Loss(
            name="ce",
            function=ce,
            independent=binary_ce,
            help="cross-entropy with the teacher's soft labels",
            card="the cross-entropy with the teacher's probabilities at temperature {temperature:g} (scaled by "
            "{scale:g})",
            citation=_HINTON,
        ),
    )
}
# Regression compares outputs, which have no distribution to soften.
REGRESSION = LOSSES["mse"]
