"""Choose the weights with the lowest scores, exactly as many as asked, on one process or on several.

The number of weights below the threshold is not found by sorting. A sample brackets the threshold between two of its
quantiles. One pass per weight then counts the scores below the bracket and collects those inside, and only those few
are compared with each other (Floyd & Rivest, 1975). Counts of several weights, and of several shards, add up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from hf_compress.models.sharding import Search, Shards

Scope = Literal["layer", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# On a CPU the arrays are numpy's: comparing, finding and partitioning are several times faster there on one core than
# in torch on two, and do not wait for each other's threads on a busy machine.
Array = Any  # np.ndarray if the scores are on a CPU, else Tensor
WORDS = {4: np.uint32, 8: np.uint64}  # The unsigned integers as wide as a score, by bytes.
DIGIT = 8  # Bits of a score that processes agree on in one exchange.


@dataclass(frozen=True)
class Candidate:
    """One weight whose values compete for being kept.

    Args:
        name: used in errors.
        size: the number of values over all shards.
        scores: returns the scores of this process's part of the weight, in its shape: the lowest are pruned first. It
            is called up to twice, so that the scores of all weights never have to be in memory together.
        dtype: of the scores. Scores below 32 bits are ranked in float32.
    """

    name: str
    size: int
    scores: Callable[[], Float[Tensor, "..."]]
    dtype: torch.dtype = torch.float32


def zero_counts(sizes: Sequence[int], sparsity: float, scope: Scope) -> list[int]:
    """Return the number of zeros that `sparsity` means: one number per tensor, or one for all with scope "global".

    Args:
        sizes: the number of values of each tensor.
        sparsity: share of zeros, in [0, 1].

    Example:
        >>> from hf_compress.prune.selection import zero_counts
        >>> zero_counts([10, 3], 0.5, "layer"), zero_counts([10, 3], 0.5, "global")
        ([5, 2], [6])
    """
    return [round(sparsity * size) for size in (sizes if scope == "layer" else [sum(sizes)])]


def select_masks(
    candidates: Sequence[Candidate], sparsity: float, scope: Scope, shards: Shards
) -> list[Bool[Tensor, "..."]]:
    """Return one mask per candidate: True where a value is kept, False at the lowest scores.

    The count is exact: `round(sparsity * n)` values are pruned in each candidate with scope "layer", in all of them
    together with "global". Ties are broken by position (order of the candidates, then flat index): the first ones are
    pruned first. Therefore masks nest: values pruned at one sparsity are pruned at every higher one.

    Collective: every process that holds a shard must call it. Processes exchange counts and a few numbers, never
    weights or scores, and get their part of the masks that one process would get for whole weights.

    Args:
        sparsity: share of pruned values, in [0, 1].

    Raises:
        ValueError: a score is NaN.
    """
    if not candidates:
        return []
    counts = zero_counts([candidate.size for candidate in candidates], sparsity, scope)
    groups = [candidates] if scope == "global" else [[candidate] for candidate in candidates]
    searches = [_keep_highest(group, count, shards) for group, count in zip(groups, counts, strict=True)]
    return [mask for masks in shards.together(searches) for mask in masks]


def disagreements(masks: Sequence[Bool[Tensor, "..."]], shards: Shards) -> list[int]:
    """Return the indices of the masks that differ between processes that should have the same ones.

    Collective: every process must call it, with masks of the same shapes, and all get the same answer. They exchange
    16 bytes per mask.

    Args:
        shards: those of the weights that the masks belong to. Replicas of a shard should have the same masks.
    """
    return shards.disagreements(torch.stack([checksum(mask) for mask in masks])) if masks else []


def checksum(mask: Bool[Tensor, "..."]) -> Tensor:
    """Return a 64-bit checksum of a mask, as an int64 tensor; any single difference changes it."""
    # A sum modulo 2^64 over the mask's eight-byte words, each multiplied by a different odd number.
    words = functional.pad(mask.view(torch.uint8).flatten(), (0, -mask.numel() % 8)).view(torch.int64)
    return (words * torch.arange(1, 2 * words.numel(), 2, device=mask.device)).sum()


class _Scores:
    """The scores of one group, computed when asked for and kept if the group is a single weight."""

    def __init__(self, group: Sequence[Candidate]) -> None:
        self.group = group
        # One dtype for all, or bounds would be rounded differently from weight to weight.
        self.dtype = torch.float64 if any(one.dtype == torch.float64 for one in group) else torch.float32
        self.known: Tensor | None = None

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        if self.known is not None:
            return self.known
        scores = self.group[index].scores().to(self.dtype)
        if len(self.group) == 1:
            self.known = scores
        return scores


def _keep_highest(group: Sequence[Candidate], count: int, shards: Shards) -> Search[list[Tensor]]:
    """Return masks of one group, for this process's parts, that are False at the group's `count` lowest scores."""
    scores = _Scores(group)
    if count == 0:
        return [torch.ones_like(scores[index], dtype=torch.bool) for index in range(len(group))]
    total = sum(candidate.size for candidate in group)
    for bounds in ((yield from _bracket(scores, count, total, shards)), None):
        split = _split(scores, bounds)
        below, candidates, *broken = yield np.array([split.below, split.candidates.size, *split.broken])
        _refuse_nan(group, [int(number) for number in broken])
        if 0 <= count - below <= candidates:  # Otherwise the sample misled, or too many scores tie at the bound.
            break
    yield from split.keep_all_but(int(count - below), shards)
    return [torch.as_tensor(mask).view(shape) for mask, shape in zip(split.masks, split.shapes, strict=True)]


def _refuse_nan(group: Sequence[Candidate], broken: Sequence[int]) -> None:
    for candidate, found in zip(group, broken, strict=True):
        if found:
            raise ValueError(
                f"{candidate.name} holds NaN in {found} of {candidate.size} values, so they cannot be ranked for "
                "pruning: training has diverged. Lower `--learning_rate`, or clip gradients with `--max_grad_norm`."
            )


@dataclass
class _Split:
    """This process's parts of a group of weights, divided by a bracket (low, high] of scores.

    `below` counts the scores up to low. `masks`, one flat array per weight of the shape in `shapes`, are True above
    high. `candidates` are the scores inside the bracket and `places` their flat indices. `broken` counts the NaNs,
    weight by weight.
    """

    below: int
    masks: list[Array]
    shapes: list[torch.Size]
    places: list[Array]
    candidates: np.ndarray
    broken: list[int]

    def keep_all_but(self, count: int, shards: Shards) -> Search[None]:
        """Set the masks to True inside the bracket too, except at the `count` lowest candidates of all shards."""
        threshold, ties = (yield from _smallest(self.candidates, count, shards)) if count > 0 else (None, 0)
        keep_all = np.ones(self.candidates.size, dtype=bool)
        above = keep_all if threshold is None else self.candidates > threshold
        equal_to = ~keep_all if threshold is None else self.candidates == threshold
        ends = np.cumsum([len(places) for places in self.places])[:-1]
        tied = [np.flatnonzero(equal) for equal in np.split(equal_to, ends)]
        ahead = yield from shards.ahead(np.array([len(one) for one in tied]))
        keep = np.split(above, ends)
        for mask, places, kept, equal, before in zip(self.masks, self.places, keep, tied, ahead, strict=True):
            kept[equal[max(0, ties - before) :]] = True
            mask[places] = kept if isinstance(mask, np.ndarray) else torch.from_numpy(kept).to(mask.device)


def _split(scores: _Scores, bounds: tuple[float, float] | None) -> _Split:
    """Divide the scores by `bounds`; without bounds every score is a candidate."""
    below, masks, shapes, places, candidates, broken = 0, [], [], [], [], []
    # Weight by weight, so that the passes over one find it in the processor's cache.
    for index in range(len(scores.group)):
        values = scores[index]
        shapes.append(values.shape)
        flat = _flat(values)
        # Comparisons with NaN are false: without bounds all scores are inside.
        low, high = bounds or (math.nan, math.nan)
        under, above = flat <= low, flat > high
        inside = _where(under == above)
        inner = _on_cpu(flat[inside])
        below += int(np.count_nonzero(under) if isinstance(under, np.ndarray) else torch.count_nonzero(under))
        masks.append(above)
        places.append(inside)
        candidates.append(inner)
        broken.append(int(np.isnan(inner).sum()))  # NaN is neither below nor above the bracket.
    return _Split(below, masks, shapes, places, np.concatenate(candidates), broken)


def _bracket(scores: _Scores, count: int, total: int, shards: Shards) -> Search[tuple[float, float]]:
    """Return two scores that very probably bracket the `count`-th lowest of `total`."""
    # A sample in proportion to total^(2/3) balances its own cost against that of the candidates it leaves.
    spacing = max(1, round(total ** (1 / 3) / 2))
    samples = []
    for index in range(len(scores.group)):
        values = scores[index]
        # Prime to the row length, so that all columns are sampled alike: some hold far larger weights than others.
        stride = spacing
        while math.gcd(stride, values.shape[-1] if values.numel() > 1 else 1) != 1:
            stride += 1
        samples.append(_on_cpu(_flat(values.reshape(-1)[::stride])))
    sample = np.concatenate(samples)
    (size,) = yield np.array([sample.size])
    share = count / total
    margin = 4 * math.sqrt(size * share * (1 - share)) + 1  # 4 standard deviations of a random sample's rank
    first, last = math.floor(share * size - margin) + 1, math.ceil(share * size + margin) + 1
    # Comparisons with NaN are false: without a lower bound no score is below the bracket.
    low = (yield from _smallest(sample, first, shards))[0] if first > 0 else math.nan
    high = (yield from _smallest(sample, last, shards))[0] if last <= size else math.inf
    return low, high


def _smallest(values: np.ndarray, rank: int, shards: Shards) -> Search[tuple[float, int]]:
    """Return the `rank`-th smallest value (from 1) on all shards, and its rank among the values equal to it."""
    if shards.whole:  # Several times faster than the search below, which processes need to agree.
        threshold = np.partition(values, rank - 1)[rank - 1]
        return float(threshold), rank - int(np.count_nonzero(values < threshold))
    # Digit by digit, foremost first: the counts of all shards tell which digit the value has. Those that agree so far
    # stay in the search.
    bits, found = _ordered(values), 0
    for shift in reversed(range(0, 8 * values.itemsize, DIGIT)):
        digits = (bits >> bits.dtype.type(shift)).astype(np.int64) & (2**DIGIT - 1)
        numbers = np.cumsum((yield np.bincount(digits, minlength=2**DIGIT)))
        digit = int(np.searchsorted(numbers, rank))
        rank -= int(numbers[digit - 1]) if digit else 0
        bits, found = bits[digits == digit], found << DIGIT | digit
    return float(_value(np.array(found, bits.dtype), values.dtype)), rank


def _ordered(values: np.ndarray) -> np.ndarray:
    """Return unsigned integers in the order of floating-point `values`; zeros of either sign are equal."""
    bits = (values + 0).view(WORDS[values.itemsize])  # Adding zero turns -0.0 into 0.0.
    sign = bits.dtype.type(1 << (8 * values.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _value(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the floating-point number that `_ordered` made into these bits."""
    sign = bits.dtype.type(1 << (8 * dtype.itemsize - 1))
    return np.where(bits & sign, bits ^ sign, ~bits).astype(bits.dtype).view(dtype)


def _flat(scores: Tensor) -> Array:
    """Return scores as one flat array."""
    flat = scores.reshape(-1)
    return flat.numpy() if flat.device.type == "cpu" else flat


def _where(mask: Array) -> Array:
    return np.flatnonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero().squeeze(1)


def _on_cpu(values: Array) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
