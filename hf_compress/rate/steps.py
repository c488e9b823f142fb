"""The step of each weight tensor for a number of bytes: every byte goes where it lowers the error of the outputs most.

At a high rate the best quantizer of numbers that are entropy-coded afterwards is uniform (Gish & Pierce, 1968), and
the slope of error against bytes is the same everywhere. Minimizing the sum of s N D^2 / 12 over tensors of N weights
with sensitivity s and step D, at a rate of h - log2 D bits per weight, gives D proportional to 1 / sqrt(s), whatever
the distribution of the weights is.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

LARGEST = 127
GREATEST = 1e30  # A step that rounds every weight to zero, and is finite as a bfloat16 number.
# A token that occurs with frequency f, relative to the mean, counts by f + FLOOR. Its step is divided by the root of
# that, between these bounds.
FLOOR, RARE, FREQUENT = 0.02, 0.6, 4.0
CITATION = """@article{gish-pierce-1968-asymptotically,
  title   = {Asymptotically Efficient Quantizing},
  author  = {Gish, Herbert and Pierce, John N.},
  journal = {IEEE Transactions on Information Theory},
  volume  = {14},
  number  = {5},
  pages   = {676--683},
  year    = {1968}
}"""


def token_factors(counts: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens 1"]:
    """Return by how much the steps of a token's row exceed those of the embedding: rare tokens are rounded coarsely.

    The error of a row counts as often as its token occurs. The sensitivity of the whole matrix does not know that.

    Args:
        counts: how often each token occurs in the training texts.

    Example:
        >>> import torch
        >>> from hf_compress.rate import token_factors
        >>> token_factors(torch.tensor([0, 10, 1000])).flatten()
        tensor([1.6667, 1.6667, 0.5783])
    """
    frequency = counts.float() / counts.float().mean().clamp(min=1e-12)
    return 1 / (frequency + FLOOR).sqrt().clamp(RARE, FREQUENT).unsqueeze(1)


def steps(
    rows: Float[Tensor, "rows width"],
    sensitivity: float,
    constant: float,
    factors: Float[Tensor, "rows 1"] | None = None,
) -> Float[Tensor, "rows 1"]:
    """Return the float32 steps of the rows of a weight, which are bfloat16 numbers: `constant` / sqrt(`sensitivity`).

    A row whose largest weight would be more than 127 steps away from zero gets a larger step.

    Args:
        rows: the weight, one row per output feature or token.
        sensitivity: of the whole tensor.
        constant: the same for all tensors of a model.
        factors: of each row.

    Example:
        >>> import torch
        >>> from hf_compress.rate import steps
        >>> steps(torch.tensor([[0.5, 0.1], [254.0, 0.1]]), sensitivity=4.0, constant=1.0)
        tensor([[0.5000],
                [2.0000]])
    """
    values = rows.detach().float()
    wanted = min(constant / math.sqrt(max(sensitivity, 1e-30)), GREATEST)
    step = torch.full((len(values), 1), wanted, device=values.device)
    if factors is not None:
        step = step * factors.to(step)
    return torch.maximum(step.bfloat16().float(), _round_up(values.abs().amax(1, keepdim=True) / LARGEST))


def _round_up(values: Tensor) -> Tensor:
    """Return positive float32 numbers rounded up to the next bfloat16."""
    return values.contiguous().view(torch.int32).add(0xFFFF).bitwise_and(~0xFFFF).view(torch.float32)
