"""Fit the integers of a model's weights into a number of bytes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from hf_compress.packing.coding import expected_bytes
from hf_compress.packing.packed import pack
from hf_compress.rate.feedback import round_with_feedback
from hf_compress.rate.statistics import Statistics
from hf_compress.rate.steps import LARGEST, steps

# The estimate for the bisection reads this many weights of a tensor, in whole rows.
SAMPLE = 1 << 18
# The packed integers take at least this share of the bytes they may take.
CLOSE, ROUNDS = 0.995, 8
DIGITS = 4  # Significant digits of the constant: people read it, and give it again.
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
        >>> Rounded(torch.tensor([[1, -2]], dtype=torch.int8), torch.tensor([[0.5]])).rows
        tensor([[ 0.5000, -1.0000]])
    """

    integers: Int8[Tensor, "rows width"]
    step: Float[Tensor, "rows 1"]

    @property
    def rows(self) -> Float[Tensor, "rows width"]:
        """The rounded weight."""
        return self.integers * self.step

    @property
    def bytes(self) -> int:
        """The bytes of the weight when packed."""
        return len(pack(self.integers.cpu(), scale=self.step.cpu()))


@dataclass(frozen=True)
class Fit:
    """The result of `fit`: the constant of all steps, the rounded weights by name, and their packed bytes.

    Example:
        >>> from hf_compress.rate import Fit
        >>> Fit(constant=0.1, weights={}, bytes=0).constant
        0.1
    """

    constant: float
    weights: dict[str, Rounded]
    bytes: int


@dataclass(frozen=True)
class Rounding:
    """Weights, and what is known about them, ready to be rounded with any constant.

    Args:
        weights: by name, one row per output feature or token.
        statistics: of these weights.
        factors: by name, the factors of the steps of the rows (`token_factors`).
        kept: by name, where a weight may differ from zero, in the layout of its rows.
        feedback: whether the layers whose inputs are known are rounded with error feedback.

    Example:
        >>> import torch
        >>> from hf_compress.rate import Rounding, Statistics
        >>> rounding = Rounding({"dense": torch.tensor([[0.9, -2.1]])}, Statistics({"dense": 4.0}, moments={}))
        >>> rounding.at(constant=1.0)["dense"].rows
        tensor([[ 1., -2.]])
    """

    weights: Mapping[str, Float[Tensor, "rows width"]]
    statistics: Statistics
    factors: Mapping[str, Float[Tensor, "rows 1"]] = field(default_factory=dict)
    kept: Mapping[str, Bool[Tensor, "rows width"]] = field(default_factory=dict)
    feedback: bool = True

    @torch.no_grad()
    def at(self, constant: float) -> dict[str, Rounded]:
        """Return the weights rounded to steps with this `constant`."""
        found = {}
        for name, rows in self.weights.items():
            step, kept, moments = self._step(name, constant), self.kept.get(name), self.statistics.moments.get(name)
            if self.feedback and moments is not None:
                integers = round_with_feedback(rows, step, moments, kept)
            else:
                integers = _nearest(rows if kept is None else rows * kept, step)
            found[name] = Rounded(integers, step)
        return found

    @torch.no_grad()
    def estimate(self, constant: float) -> float:
        """Return an estimate of the packed bytes with this `constant`, from the entropy of samples."""
        total = 0.0
        for name, rows in self.weights.items():
            every = math.ceil(rows.numel() / SAMPLE)
            some = rows[::every].float()
            if name in self.kept:
                some = some * self.kept[name][::every]
            integers = _nearest(some, self._step(name, constant, every))
            total += expected_bytes(integers.cpu().numpy().reshape(-1).view(np.uint8)) * len(rows) / max(len(some), 1)
        return total

    @property
    def finest(self) -> float:
        """The constant below which hardly any step changes, because the largest weights of the rows set the steps."""
        found = []
        for name, rows in self.weights.items():
            least = steps(rows, 1.0, 0.0) / self.factors.get(name, torch.ones(1)).to(rows.device)
            sensitivity = self.statistics.sensitivity[name]
            if sensitivity > 0 and bool((least > 0).any()):
                found.append(math.sqrt(sensitivity) * float(least[least > 0].median()))
        return max(SMALLEST, min(found, default=SMALLEST))

    def _step(self, name: str, constant: float, every: int = 1) -> Float[Tensor, "rows 1"]:
        factor = self.factors.get(name)
        chosen = None if factor is None else factor[::every]
        return steps(self.weights[name][::every], self.statistics.sensitivity[name], constant, chosen)


def fit(rounding: Rounding, limit: float) -> Fit:
    """Return the weights rounded such that they take at most `limit` bytes when packed, and nearly as many.

    Every step is the constant over the root of the tensor's sensitivity. The constant is found by bisection on the
    entropy of samples, and corrected until the packed bytes fit. It has four significant digits. If there are more
    bytes than the finest steps need, the constant is that of the finest steps.

    Args:
        rounding: the weights.
        limit: bytes.

    Raises:
        ValueError: the steps cannot be so coarse that the weights fit.

    Example:
        >>> import torch
        >>> from hf_compress.rate import Rounding, Statistics, fit
        >>> weights = {"dense": torch.randn(256, 256, generator=torch.Generator().manual_seed(0))}
        >>> found = fit(Rounding(weights, Statistics({"dense": 1.0}, moments={})), limit=20_000)  # 2.4 bits per weight
        >>> 19_000 < found.bytes <= 20_000
        True
    """
    count = sum(rows.numel() for rows in rounding.weights.values())
    finest = rounding.finest
    constant, best = _bisected(rounding.estimate, limit, finest), None
    above, below = 0.0, math.inf  # Constants whose bytes exceed the limit, and whose bytes fit.
    for tried in range(ROUNDS):
        constant = float(f"{max(constant, finest):.{DIGITS}g}")
        weights = rounding.at(constant)
        size = sum(one.bytes for one in weights.values())
        if size <= limit and (best is None or size > best.bytes):
            best = Fit(constant, weights, size)
        if CLOSE * limit < size <= limit or (size <= limit and constant <= float(f"{finest:.{DIGITS}g}")):
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


def _bisected(estimate: Callable[[float], float], limit: float, least: float) -> float:
    """Return the constant from `least` on at which the estimate of the bytes crosses `limit`.

    A greater constant takes fewer bytes.
    """
    low, high = math.log(least), math.log(GREATEST)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if estimate(math.exp(middle)) > limit else (low, middle)
    return math.exp(high)


def _nearest(rows: Tensor, step: Tensor) -> Int8[Tensor, "rows width"]:
    return torch.div(rows.float(), step).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
