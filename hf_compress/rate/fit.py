"""Fit the integers of a model's weights into a number of bytes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from hf_compress.models.targets import Target
from hf_compress.packing.coding import expected_bytes
from hf_compress.packing.packed import pack
from hf_compress.rate.feedback import round_with_feedback
from hf_compress.rate.statistics import Statistics
from hf_compress.rate.steps import LARGEST, steps

# The estimate for the bisection reads this many weights of a tensor, in whole rows.
SAMPLE = 1 << 18
# The packed integers take at least this share of the bytes they may take.
CLOSE, ROUNDS = 0.995, 8
SMALLEST, GREATEST = 1e-12, 1e12  # Of the constant.


@dataclass(frozen=True)
class Rounded:
    """A weight as integers and the steps of its rows. The weight is their product.

    Attributes:
        integers: one row per output feature or token, in [-127, 127].
        step: float32, with bfloat16 values.

    Example:
        >>> import torch
        >>> from hf_compress.rate import Rounded
        >>> rounded = Rounded(torch.tensor([[1, -2]], dtype=torch.int8), torch.tensor([[0.5]]))
        >>> rounded.integers * rounded.step
        tensor([[ 0.5000, -1.0000]])
    """

    integers: Int8[Tensor, "rows width"]
    step: Float[Tensor, "rows 1"]

    def weight(self, like: Target) -> Float[Tensor, "..."]:
        """Return the weight in the layout of the target."""
        rows = self.integers * self.step
        return rows.t().contiguous() if like.kind == "conv1d" else rows


@dataclass(frozen=True)
class Fit:
    """The result of `fit`: the constant of all steps, the weights by the names of targets, and their packed bytes.

    Example:
        >>> from hf_compress.rate import Fit
        >>> Fit(constant=0.1, weights={}, bytes=0).constant
        0.1
    """

    constant: float
    weights: dict[str, Rounded]
    bytes: int


@torch.no_grad()
def fit(
    targets: Sequence[Target],
    statistics: Statistics,
    limit: float,
    factors: Mapping[str, Float[Tensor, "rows 1"]] | None = None,
    kept: Mapping[str, Bool[Tensor, "..."]] | None = None,
    *,
    feedback: bool = True,
) -> Fit:
    """Return the weights `targets` rounded such that they take at most `limit` bytes when packed, and nearly as many.

    Every step is the constant over the root of the tensor's sensitivity. The constant is found by bisection on the
    entropy of samples, and corrected until the packed bytes fit.

    Args:
        targets: the weights, each once.
        statistics: of these weights.
        limit: bytes.
        factors: by the name of a target, the factors of the steps of its rows (`token_factors`).
        kept: by the name of a target, where its weight may differ from zero, in the layout of the weight.
        feedback: whether the layers whose inputs are known are rounded with error feedback.

    Raises:
        ValueError: the steps cannot be so coarse that the weights fit.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.models import quantizable
        >>> sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=500, **sizes))
        >>> targets = quantizable(model)
        >>> from hf_compress.rate import fit, gather
        >>> statistics = gather(model, targets, [{"input_ids": torch.tensor([[1, 2, 3]])}])
        >>> found = fit(targets, statistics, limit=40_000)
        >>> 38_000 < found.bytes <= 40_000
        True
    """
    all_rows = {target.name: _rows(target, target.weight) for target in targets}
    masks = {
        name: _rows(target, mask) for target in targets if (mask := (kept or {}).get(name := target.name)) is not None
    }
    scaled = factors or {}

    def step(name: str, constant: float, every: int = 1) -> Tensor:
        factor = scaled.get(name)
        chosen = None if factor is None else factor[::every]
        return steps(all_rows[name][::every], statistics.sensitivity[name], constant, chosen)

    def estimate(constant: float) -> float:
        total = 0.0
        for name, rows in all_rows.items():
            every = math.ceil(rows.numel() / SAMPLE)
            some = rows[::every].float()
            if name in masks:
                some = some * masks[name][::every]
            integers = _nearest(some, step(name, constant, every))
            total += expected_bytes(integers.numpy().reshape(-1).view(np.uint8)) * len(rows) / max(len(some), 1)
        return total

    def rounded(constant: float) -> dict[str, Rounded]:
        found = {}
        for name, rows in all_rows.items():
            chosen, mask = step(name, constant), masks.get(name)
            if feedback and name in statistics.moments:
                integers = round_with_feedback(rows, chosen, statistics.moments[name], mask)
            else:
                integers = _nearest(rows if mask is None else rows * mask, chosen)
            found[name] = Rounded(integers, chosen)
        return found

    count = sum(rows.numel() for rows in all_rows.values())
    constant, best = _bisected(estimate, limit), None
    above, below = 0.0, math.inf  # Constants whose bytes exceed the limit, and whose bytes fit.
    for tried in range(ROUNDS):
        weights = rounded(constant)
        size = sum(len(pack(one.integers, scale=one.step)) for one in weights.values())
        if size <= limit and (best is None or size > best.bytes):
            best = Fit(constant, weights, size)
        if CLOSE * limit < size <= limit:
            break
        above, below = (max(above, constant), below) if size > limit else (above, min(below, constant))
        # At a high rate, one bit less per weight doubles the step; at a low one, more than doubles it.
        constant *= 2 ** (2**tried * 8 * (size - (1 + CLOSE) / 2 * limit) / count)
        if above and below < math.inf and not above < constant < below:
            constant = math.sqrt(above * below)
    if best is None:
        raise ValueError(
            f"The weights cannot be rounded into {limit / 1e6:.3g} MB; the coarsest steps tried take "
            f"{size / 1e6:.3g} MB. Allow more, remove layers or unused tokens, or start from a smaller model."
        )
    return best


def _bisected(estimate: Callable[[float], float], limit: float) -> float:
    """Return the constant at which the estimate of the bytes crosses `limit`; a greater constant takes fewer bytes."""
    low, high = math.log(SMALLEST), math.log(GREATEST)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if estimate(math.exp(middle)) > limit else (low, middle)
    return math.exp(high)


def _nearest(rows: Tensor, step: Tensor) -> Int8[Tensor, "rows width"]:
    return torch.div(rows.float(), step).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)


def _rows(target: Target, tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.t().contiguous() if target.kind == "conv1d" else tensor
