"""Rounding with error feedback: the error of a column is made up for in the columns that are still to be rounded."""

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from hf_compress.rate.steps import LARGEST

# Added to the diagonal of the moments, relative to its mean, so that they can be inverted (Frantar et al., 2023).
DAMPING = 0.01
BLOCK = 128
CITATION = """@inproceedings{frantar-etal-2023-gptq,
  title     = {{GPTQ}: Accurate Post-Training Quantization for Generative Pre-trained Transformers},
  author    = {Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  url       = {https://arxiv.org/abs/2210.17323}
}

@inproceedings{hassibi-stork-1993-second,
  title     = {Second Order Derivatives for Network Pruning: Optimal Brain Surgeon},
  author    = {Hassibi, Babak and Stork, David G.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {1993}
}"""


@torch.no_grad()
def round_with_feedback(
    rows: Float[Tensor, "outputs inputs"],
    step: Float[Tensor, "outputs 1"],
    moments: Float[Tensor, "inputs inputs"],
    kept: Bool[Tensor, "outputs inputs"] | None = None,
) -> Int8[Tensor, "outputs inputs"]:
    """Return integers whose products with `step` give nearly the outputs of `rows` on the inputs seen.

    Columns are rounded one after another. The error of column j is distributed over the later columns such that the
    squared error of the outputs grows least (Hassibi & Stork, 1993; Frantar et al., 2023, GPTQ). With `kept`, pruned
    weights stay zero and their error is distributed too (Frantar & Alistarh, 2023, SparseGPT).

    Args:
        rows: the weight, one row per output.
        step: the distance of two neighbouring values of a row.
        moments: the sum X'X of the inputs of the layer.
        kept: where a weight may differ from zero.

    Example:
        >>> import torch
        >>> from hf_compress.rate import round_with_feedback
        >>> rows, step = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0]])
        >>> round_with_feedback(rows, step, torch.ones(2, 2) + 0.1 * torch.eye(2))  # The inputs are nearly equal.
        tensor([[0, 1]], dtype=torch.int8)
    """
    weight, width = rows.detach().float().clone(), rows.shape[1]
    factor = _factor(moments)
    integers = torch.empty_like(weight)
    spread = step.float().reshape(-1)
    for begin in range(0, width, BLOCK):
        end = min(begin + BLOCK, width)
        block, errors = weight[:, begin:end], torch.empty_like(weight[:, begin:end])
        for column in range(end - begin):
            place = begin + column
            found = torch.div(block[:, column], spread).round_().clamp_(-LARGEST, LARGEST)
            if kept is not None:
                found *= kept[:, place]
            integers[:, place] = found
            errors[:, column] = (block[:, column] - found * spread) / factor[place, place]
            block[:, column + 1 :] -= torch.outer(errors[:, column], factor[place, place + 1 : end])
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return integers.to(torch.int8)


def _factor(moments: Float[Tensor, "inputs inputs"]) -> Float[Tensor, "inputs inputs"]:
    """Return the upper Cholesky factor of the inverse of the damped moments."""
    damped = moments.double().clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
