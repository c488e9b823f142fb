"""Which weights become zero, and how many at which time: schedules and criteria, pure functions of the weights."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Scope = Literal["layer", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


def cubic(progress: float, initial: float, final: float) -> float:
    """Sparsity that rises fast at first, while weights abound, and ever slower towards `final`.

    `progress` is the share of the pruning phase gone by, in [0, 1]; sparsities are shares of zeros, in [0, 1). Source:
    Zhu & Gupta, 2017, eq. 1.
    """
    return final + (initial - final) * (1 - progress) ** 3


def linear(progress: float, initial: float, final: float) -> float:
    """Sparsity that rises evenly from `initial` to `final`; the schedule of Movva et al., 2022.

    `progress` is the share of the pruning phase gone by, in [0, 1]; sparsities are shares of zeros, in [0, 1).
    """
    return final + (initial - final) * (1 - progress)


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {"cubic": cubic, "linear": linear}


def zero_counts(sizes: Sequence[int], sparsity: float, scope: Scope) -> list[int]:
    """The number of zeros that `sparsity` stands for: one per tensor with scope "layer", a single one with "global".

    Args:
        sizes: the number of weights of each tensor.
        sparsity: share of zeros, in [0, 1].
    """
    return [round(sparsity * size) for size in (sizes if scope == "layer" else [sum(sizes)])]


def magnitude_masks(
    weights: Sequence[Float[Tensor, "..."]], sparsity: float, scope: Scope
) -> list[Bool[Tensor, "..."]]:
    """One mask per weight, of its shape, that is True where the weight is kept: all but the smallest magnitudes.

    The count is exact: `round(sparsity * n)` zeros in each tensor with scope "layer", in all of them together with
    "global". Equal magnitudes go by position (order of the tensors, then flat index), the first ones first. So masks
    nest: what is pruned at one sparsity is pruned at every higher one.

    Args:
        weights: floating-point tensors; left as they are.
        sparsity: share of zeros, in [0, 1].

    Raises:
        ValueError: a weight holds NaN, which has no magnitude to compare.
    """
    if not weights:
        return []
    counts = zero_counts([weight.numel() for weight in weights], sparsity, scope)
    if scope == "global":
        return _keep_largest(weights, counts[0])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda weight, count: _keep_largest([weight], count)[0], weights, counts))


CRITERIA: dict[str, Callable[[Sequence[Tensor], float, Scope], list[Tensor]]] = {"magnitude": magnitude_masks}


def disagreements(masks: Sequence[Bool[Tensor, "..."]]) -> list[int]:
    """The indices of the masks that are not the same on all processes; none where there is one process.

    All processes must call it, with masks of the same shapes, and all get the same answer. They exchange 16 bytes per
    mask: a checksum that no single difference escapes, and several only by coincidence.
    """
    if not masks or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return []
    sums = torch.stack([_checksum(mask) for mask in masks])
    # Greatest and least in one message: the complement turns order around without overflow.
    extremes = torch.cat([sums, ~sums])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    greatest, least = extremes[: len(masks)], ~extremes[len(masks) :]
    return (greatest != least).nonzero().flatten().tolist()


def _checksum(mask: Tensor) -> Tensor:
    """A sum modulo 2^64 over the mask's eight-byte words, each times an odd number of its own."""
    words = functional.pad(mask.view(torch.uint8).flatten(), (0, -mask.numel() % 8)).view(torch.int64)
    return (words * torch.arange(1, 2 * words.numel(), 2, device=mask.device)).sum()


# The count-th smallest magnitude is bracketed by quantiles of a sample. One pass per tensor then counts what lies
# below the bracket and picks out what lies inside, and only those few are compared with each other (Floyd & Rivest,
# 1975). Counts and candidates of several tensors, or of several shards of a model, simply add up.
#
# On a CPU the arrays are numpy's: comparing, finding and partitioning are several times faster there on one core than
# in torch on two, and do not wait for each other's threads on a busy machine.
Array = Any  # np.ndarray if the weights are on a CPU, else Tensor


@torch.no_grad()
def _keep_largest(weights: Sequence[Tensor], count: int) -> list[Tensor]:
    """Masks over one group that are False at its `count` smallest magnitudes."""
    if count == 0:
        return [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32
    split = _split(weights, dtype, *_bracket(weights, dtype, count))
    if not 0 <= count - split.below <= split.candidates.size:  # The sample misled, or too many weights tie at `low`.
        everything = torch.cat([weight.detach().reshape(-1).to(dtype).abs() for weight in weights])
        threshold = everything.kthvalue(count).values
        below = float(torch.nextafter(threshold, torch.zeros_like(threshold))) if threshold > 0 else -1.0
        split = _split(weights, dtype, below, float(threshold))
    split.keep_all_but(count - split.below)
    return [torch.as_tensor(mask).view(weight.shape) for mask, weight in zip(split.masks, weights, strict=True)]


@dataclass
class _Split:
    """A group of weights, parted by a bracket (low, high] of magnitudes.

    `below` counts the magnitudes up to low; `masks`, one flat array per weight, are True above high; `candidates` are
    the magnitudes in between, and `places` their flat indices, weight by weight.
    """

    below: int
    masks: list[Array]
    places: list[Array]
    candidates: np.ndarray

    def keep_all_but(self, count: int) -> None:
        """Sets the masks to True inside the bracket too, except at the `count` smallest candidates."""
        keep = np.ones(self.candidates.size, dtype=bool)
        if count > 0:
            threshold = np.partition(self.candidates, count - 1)[count - 1]
            smaller = self.candidates < threshold
            ties = np.flatnonzero(self.candidates == threshold)
            keep[smaller] = False
            keep[ties[: count - np.count_nonzero(smaller)]] = False
        start = 0
        for mask, places in zip(self.masks, self.places, strict=True):
            kept = keep[start : start + len(places)]
            mask[places] = kept if isinstance(mask, np.ndarray) else torch.from_numpy(kept).to(mask.device)
            start += len(places)


def _split(weights: Sequence[Tensor], dtype: torch.dtype, low: float, high: float) -> _Split:
    below, masks, places, candidates = 0, [], [], []
    # Weight by weight, so that the passes over one find it in the processor's cache.
    for index, weight in enumerate(weights):
        magnitudes = _magnitudes(weight, dtype)
        under, above = magnitudes <= low, magnitudes > high
        inside = _where(under == above)
        inner = magnitudes[inside]
        inner = inner if isinstance(inner, np.ndarray) else inner.cpu().numpy()
        # NaN is neither below nor above the bracket.
        if np.isnan(inner).any():
            raise ValueError(
                f"weight {index + 1} of {len(weights)}, of shape {tuple(weight.shape)}, holds NaN, so magnitudes "
                "cannot be ranked: training has diverged. Lower `--learning_rate`, or clip gradients with "
                "`--max_grad_norm`."
            )
        below += int(np.count_nonzero(under) if isinstance(under, np.ndarray) else torch.count_nonzero(under))
        masks.append(above)
        places.append(inside)
        candidates.append(inner)
    return _Split(below, masks, places, np.concatenate(candidates))


def _bracket(weights: Sequence[Tensor], dtype: torch.dtype, count: int) -> tuple[float, float]:
    """Two magnitudes between which, in all likelihood, the `count`-th smallest lies."""
    total = sum(weight.numel() for weight in weights)
    # A sample in proportion to total^(2/3) balances its own cost against that of the candidates it leaves.
    spacing = max(1, round(total ** (1 / 3) / 2))
    samples = []
    for weight in weights:
        # Prime to the row length, so that all columns are sampled alike: some hold far larger weights than others.
        stride = spacing
        while math.gcd(stride, weight.shape[-1] if weight.numel() > 1 else 1) != 1:
            stride += 1
        samples.append(_magnitudes(weight.detach().reshape(-1)[::stride], dtype))
    sample = np.concatenate([part if isinstance(part, np.ndarray) else part.cpu().numpy() for part in samples])
    share = count / total
    margin = 4 * math.sqrt(sample.size * share * (1 - share)) + 1  # 4 standard deviations of a random sample's rank
    first, last = math.floor(share * sample.size - margin), math.ceil(share * sample.size + margin)
    ordered = np.partition(sample, [max(first, 0), min(last, sample.size - 1)])
    low = float(ordered[first]) if first >= 0 else -1.0
    high = float(ordered[last]) if last < sample.size else math.inf
    return low, high


def _magnitudes(weight: Tensor, dtype: torch.dtype) -> Array:
    flat = weight.detach().reshape(-1).to(dtype)
    return np.abs(flat.numpy()) if flat.device.type == "cpu" else flat.abs()


def _where(mask: Array) -> Array:
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().squeeze(1)
