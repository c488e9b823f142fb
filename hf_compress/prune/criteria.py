"""Which weights become zero: criteria, pure functions of the weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from hf_compress.models.sharding import Search, Shards, local

Scope = Literal["layer", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


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

    Of weights that FSDP2 has sharded by rows (`DTensor`s), masks are this process's part of what one process would get
    for the whole weights. All processes must call it. They exchange counts and a few numbers, never weights.

    Args:
        weights: floating-point tensors; left as they are.
        sparsity: share of zeros, in [0, 1].

    Raises:
        ValueError: a weight holds NaN, which has no magnitude to compare.
    """
    if not weights:
        return []
    counts = zero_counts([weight.numel() for weight in weights], sparsity, scope)
    groups = [weights] if scope == "global" else [[weight] for weight in weights]
    shards = Shards.of(weights)
    searches = [_keep_largest(group, count, shards) for group, count in zip(groups, counts, strict=True)]
    return [mask for masks in shards.together(searches) for mask in masks]


CRITERIA: dict[str, Callable[[Sequence[Tensor], float, Scope], list[Tensor]]] = {"magnitude": magnitude_masks}


def disagreements(masks: Sequence[Bool[Tensor, "..."]], shards: Shards) -> list[int]:
    """The indices of the masks that differ between processes which should have the same; none where there is one.

    All processes must call it, with masks of the same shapes, and all get the same answer. They exchange 16 bytes per
    mask: a checksum that no single difference escapes, and several only by coincidence.

    Args:
        shards: of the weights that the masks were derived from; replicas of a shard should have the same masks.
    """
    return shards.disagreements(torch.stack([_checksum(mask) for mask in masks])) if masks else []


def _checksum(mask: Tensor) -> Tensor:
    """A sum modulo 2^64 over the mask's eight-byte words, each times an odd number of its own."""
    words = functional.pad(mask.view(torch.uint8).flatten(), (0, -mask.numel() % 8)).view(torch.int64)
    return (words * torch.arange(1, 2 * words.numel(), 2, device=mask.device)).sum()


# The count-th smallest magnitude is bracketed by quantiles of a sample. One pass per tensor then counts what lies
# below the bracket and picks out what lies inside, and only those few are compared with each other (Floyd & Rivest,
# 1975). Counts of several tensors, and of several shards of them, simply add up.
#
# On a CPU the arrays are numpy's: comparing, finding and partitioning are several times faster there on one core than
# in torch on two, and do not wait for each other's threads on a busy machine.
Array = Any  # np.ndarray if the weights are on a CPU, else Tensor
BITS = {4: np.uint32, 8: np.uint64}  # The integers as wide as a magnitude, by bytes.
DIGIT = 8  # Bits by which processes narrow down a number together.


def _keep_largest(weights: Sequence[Tensor], count: int, shards: Shards) -> Search[list[Tensor]]:
    """Masks over one group, of this process's parts, that are False at the group's `count` smallest magnitudes."""
    parts = [local(weight) for weight in weights]
    if count == 0:
        return [torch.ones_like(part, dtype=torch.bool) for part in parts]
    dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    total = sum(weight.numel() for weight in weights)
    for low, high in ((yield from _bracket(parts, dtype, count, total, shards)), (-1.0, math.inf)):
        split = _split(parts, dtype, low, high)
        below, candidates, *broken = yield np.array([split.below, split.candidates.size, *split.broken])
        for index, weight in enumerate(weights):
            if broken[index]:
                raise ValueError(
                    f"weight {index + 1} of {len(weights)}, of shape {tuple(weight.shape)}, holds NaN, so magnitudes "
                    "cannot be ranked: training has diverged. Lower `--learning_rate`, or clip gradients with "
                    "`--max_grad_norm`."
                )
        if 0 <= count - below <= candidates:  # Or else the sample misled, or too many weights tie at `low`.
            break
    yield from split.keep_all_but(int(count - below), shards)
    return [torch.as_tensor(mask).view(part.shape) for mask, part in zip(split.masks, parts, strict=True)]


@dataclass
class _Split:
    """This process's parts of a group of weights, parted by a bracket (low, high] of magnitudes.

    `below` counts the magnitudes up to low; `masks`, one flat array per weight, are True above high; `candidates` are
    the magnitudes in between, `places` their flat indices, and `broken` the number of NaNs, weight by weight.
    """

    below: int
    masks: list[Array]
    places: list[Array]
    candidates: np.ndarray
    broken: list[int]

    def keep_all_but(self, count: int, shards: Shards) -> Search[None]:
        """Sets the masks to True inside the bracket too, except at the `count` smallest candidates of all shards."""
        threshold, ties = (yield from _smallest(self.candidates, count, shards)) if count > 0 else (-1.0, 0)
        ends = np.cumsum([len(places) for places in self.places])
        tied = [np.flatnonzero(inside == threshold) for inside in np.split(self.candidates, ends[:-1])]
        ahead = yield from shards.ahead(np.array([len(one) for one in tied]))
        keep = np.split(self.candidates > threshold, ends[:-1])
        for mask, places, kept, equal, before in zip(self.masks, self.places, keep, tied, ahead, strict=True):
            kept[equal[max(0, ties - before) :]] = True
            mask[places] = kept if isinstance(mask, np.ndarray) else torch.from_numpy(kept).to(mask.device)


def _split(parts: Sequence[Tensor], dtype: torch.dtype, low: float, high: float) -> _Split:
    below, masks, places, candidates, broken = 0, [], [], [], []
    # Weight by weight, so that the passes over one find it in the processor's cache.
    for part in parts:
        magnitudes = _magnitudes(part, dtype)
        under, above = magnitudes <= low, magnitudes > high
        inside = _where(under == above)
        inner = _on_cpu(magnitudes[inside])
        below += int(np.count_nonzero(under) if isinstance(under, np.ndarray) else torch.count_nonzero(under))
        masks.append(above)
        places.append(inside)
        candidates.append(inner)
        broken.append(int(np.isnan(inner).sum()))  # NaN is neither below nor above the bracket.
    return _Split(below, masks, places, np.concatenate(candidates), broken)


def _bracket(
    parts: Sequence[Tensor], dtype: torch.dtype, count: int, total: int, shards: Shards
) -> Search[tuple[float, float]]:
    """Two magnitudes between which, in all likelihood, the `count`-th smallest of `total` lies."""
    # A sample in proportion to total^(2/3) balances its own cost against that of the candidates it leaves.
    spacing = max(1, round(total ** (1 / 3) / 2))
    samples = []
    for part in parts:
        # Prime to the row length, so that all columns are sampled alike: some hold far larger weights than others.
        stride = spacing
        while math.gcd(stride, part.shape[-1] if part.numel() > 1 else 1) != 1:
            stride += 1
        samples.append(_on_cpu(_magnitudes(part.reshape(-1)[::stride], dtype)))
    sample = np.concatenate(samples)
    (size,) = yield np.array([sample.size])
    share = count / total
    margin = 4 * math.sqrt(size * share * (1 - share)) + 1  # 4 standard deviations of a random sample's rank
    first, last = math.floor(share * size - margin) + 1, math.ceil(share * size + margin) + 1
    low = (yield from _smallest(sample, first, shards))[0] if first > 0 else -1.0
    high = (yield from _smallest(sample, last, shards))[0] if last <= size else math.inf
    return low, high


def _smallest(magnitudes: np.ndarray, rank: int, shards: Shards) -> Search[tuple[float, int]]:
    """The `rank`-th smallest magnitude, from 1, of those on all shards, and its rank among the ones equal to it."""
    if shards.whole:  # Several times faster than what follows, where nothing has to be agreed upon.
        threshold = np.partition(magnitudes, rank - 1)[rank - 1]
        return float(threshold), rank - int(np.count_nonzero(magnitudes < threshold))
    # Magnitudes are ordered as their bits are. Digit by digit, foremost first, the counts of all shards tell which
    # one it has; what agrees so far goes on.
    bits, found = magnitudes.view(BITS[magnitudes.itemsize]), 0
    for shift in reversed(range(0, 8 * magnitudes.itemsize, DIGIT)):
        digits = (bits >> bits.dtype.type(shift)).astype(np.int64) & (2**DIGIT - 1)
        numbers = np.cumsum((yield np.bincount(digits, minlength=2**DIGIT)))
        digit = int(np.searchsorted(numbers, rank))
        rank -= int(numbers[digit - 1]) if digit else 0
        bits, found = bits[digits == digit], found << DIGIT | digit
    return float(np.array(found, bits.dtype).view(magnitudes.dtype)), rank


def _magnitudes(weight: Tensor, dtype: torch.dtype) -> Array:
    flat = weight.detach().reshape(-1).to(dtype)
    return np.abs(flat.numpy()) if flat.device.type == "cpu" else flat.abs()


def _where(mask: Array) -> Array:
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().squeeze(1)


def _on_cpu(magnitudes: Array) -> np.ndarray:
    return magnitudes if isinstance(magnitudes, np.ndarray) else magnitudes.cpu().numpy()
