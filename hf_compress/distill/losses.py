"""Distances between a student's and a teacher's logits, one value per position."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def kl(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """The divergence of the student's softened distribution from the teacher's, KL(teacher || student), times T^2.

    In nats. The factor T^2 keeps the size of the gradient independent of the temperature (Hinton et al., 2015, section
    2): as T grows the gradient tends to that of half the squared difference of the centred logits, per class.
    """
    teacher_log_p = F.log_softmax(teacher / temperature, dim=-1)
    student_log_p = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(student_log_p, teacher_log_p, reduction="none", log_target=True).sum(-1) * temperature**2


def mse(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float = 1.0
) -> Float[Tensor, "positions"]:
    """The squared difference of the logits, mean over classes (Ba & Caruana, 2014); the temperature has no effect."""
    return F.mse_loss(student, teacher, reduction="none").mean(-1)


def ce(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """The cross-entropy of the student's softened distribution under the teacher's as soft labels, times T^2.

    In nats. It is `kl` plus the teacher's own entropy, so its gradient is that of `kl`; its value never reaches zero.
    """
    soft_labels = F.softmax(teacher / temperature, dim=-1)
    return F.cross_entropy(student / temperature, soft_labels, reduction="none") * temperature**2


def binary_kl(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """The `kl` of independent yes/no labels, each with its own sigmoid: mean over the labels, in nats, times T^2."""
    student, teacher = student / temperature, teacher / temperature
    per_label = F.kl_div(F.logsigmoid(student), F.logsigmoid(teacher), reduction="none", log_target=True) + F.kl_div(
        F.logsigmoid(-student), F.logsigmoid(-teacher), reduction="none", log_target=True
    )
    return per_label.mean(-1) * temperature**2


def binary_ce(
    student: Float[Tensor, "positions classes"], teacher: Float[Tensor, "positions classes"], temperature: float
) -> Float[Tensor, "positions"]:
    """The `ce` of independent yes/no labels, each with its own sigmoid: mean over the labels, in nats, times T^2."""
    soft_labels = (teacher / temperature).sigmoid()
    per_label = F.binary_cross_entropy_with_logits(student / temperature, soft_labels, reduction="none")
    return per_label.mean(-1) * temperature**2


Loss = Callable[[Tensor, Tensor, float], Tensor]

LOSSES: dict[str, Loss] = {"kl": kl, "mse": mse, "ce": ce}
# What each name means where the classes do not exclude each other (multi-label classification).
BINARY_LOSSES: dict[str, Loss] = {"kl": binary_kl, "mse": mse, "ce": binary_ce}
