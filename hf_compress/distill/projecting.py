"""Trained projections from the student's width to the teacher's, which live in the student during training only."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Projection(nn.Module):
    """A linear map between widths, without bias. No method prunes, rounds or counts it, because it is no `nn.Linear`.

    Args:
        student: the width of the student's layers.
        teacher: the width of the teacher's layers.
        like: a weight of the student, for device and dtype.
    """

    def __init__(self, student: int, teacher: int, like: Tensor) -> None:
        super().__init__()
        weight = torch.empty(teacher, student).uniform_(-1, 1) / math.sqrt(student)
        self.weight = nn.Parameter(weight.to(like))

    def forward(self, values: Float[Tensor, "rows tokens student"]) -> Float[Tensor, "rows tokens teacher"]:
        return functional.linear(values.to(self.weight.dtype), self.weight)


def new_projections(widths: dict[int, tuple[int, int]], like: Tensor, seed: int) -> nn.ModuleDict:
    """Return projections by number. They are drawn from a state of their own, so that batches stay the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict({str(number): Projection(*pair, like) for number, pair in widths.items()})
