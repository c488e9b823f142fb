"""Cache shared by layers that receive the same tensor, as query, key and value do."""

import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_compress.layers.affine import reads_numbers
from hf_compress.layers.fused import fused

# The share of rows with values outside a range up to which they are picked out. Beyond it, all rows are clipped.
FEW = 0.25


class Extremes(NamedTuple):
    """The smallest and the largest of a tensor, (2,) in float32, and of each of its rows if it has rows in memory.

    Finding those of the rows takes no longer than finding those of the whole: NaN anywhere makes them NaN, in both.
    """

    whole: Float[Tensor, "2"]
    least: Float[Tensor, "rows"] | None = None
    most: Float[Tensor, "rows"] | None = None

    @classmethod
    def of(cls, values: Tensor) -> "Extremes":
        """Return those of `values`; of its rows on a CPU only, outside compilers."""
        values = values.detach()
        if not reads_numbers(values) or values.ndim < 2 or not values.is_contiguous():
            return cls(torch.stack(torch.aminmax(values)).float())
        rows = values.view(-1, values.shape[-1])
        least, most = rows.amin(-1), rows.amax(-1)
        return cls(torch.stack([least.amin(), most.amax()]).float(), least, most)

    def outside(self, low: float, high: float) -> Int[Tensor, "outside"] | None:
        """Return the rows that have a value outside [`low`, `high`], or NaN; None if they are unknown or not few.

        Example:
            >>> import torch
            >>> from hf_compress.layers.shared_inputs import Extremes
            >>> Extremes.of(torch.eye(5)).outside(-1.0, 1.0), Extremes.of(torch.eye(5).cumsum(0)).outside(-1.0, 0.5)
            (tensor([], dtype=torch.int64), None)
        """
        if self.least is None or self.most is None:
            return None
        least, most = self.whole.tolist()
        if low <= least and most <= high:
            return torch.empty(0, dtype=torch.int64)
        # Not by "less" and "greater": NaN has to be outside.
        inside = (self.least.float() >= low) & (self.most.float() <= high)
        rows = inside.logical_not_().nonzero().view(-1)
        return rows if len(rows) <= FEW * len(inside) else None


def _pairs(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    ends = [
        (-1.0, 2.0),
        (torch.inf, -torch.inf),
        (0.5, 0.5),
        (-3.0, -1e-40),
        (torch.nan, 1.0),
        (-torch.inf, torch.nan),
    ]
    ranges = torch.tensor(ends, dtype=dtype)
    yield from itertools.product(ranges, ranges)


@fused(_pairs)
def wider(one: Float[Tensor, "2"], other: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """Return the range from the lower of the least values to the higher of the greatest; NaN wins."""
    return torch.stack([torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])])


class Siblings:
    """The last results computed from an input, for the layers of a model that receive the same tensor next.

    It holds weak references only, so it keeps no activation in memory: a rounded input is found while autograd needs
    it. Each layer keeps its own gradient, so no bit of a result changes. Compilers bypass the cache, because they
    find common operations by themselves.
    """

    def __init__(self) -> None:
        self._rounded: tuple[weakref.ref[Tensor], int, Hashable, weakref.ref[Tensor]] | None = None
        self._extremes: tuple[weakref.ref[Tensor], int, Extremes] | None = None

    def __reduce__(self) -> Any:
        return Siblings, ()  # A copy of the model, or a pickle, starts empty.

    def extremes(self, values: Tensor) -> "Extremes":
        """Return the smallest and the largest of `values`, and of its rows on a CPU."""
        shared = _comparable(values)
        if shared and self._extremes is not None:
            seen, version, extremes = self._extremes
            if seen() is values and version == values._version:
                return extremes
        extremes = Extremes.of(values)
        if shared:
            self._extremes = weakref.ref(values), values._version, extremes
        return extremes

    def rounded(
        self, values: Tensor, grid: Callable[[], Hashable], round_: Callable[[Tensor | None], Tensor]
    ) -> Tensor:
        """Return `round_(known)`; `known` is its last result for the same tensor and grid, or None.

        Args:
            grid: returns a key that differs for different grids. It is called on a CPU only, where reading a range is
                free.
        """
        if not _comparable(values) or values.device.type != "cpu" or not torch.is_grad_enabled():
            return round_(None)
        known, on = None, grid()
        if self._rounded is not None:
            seen, version, seen_on, result = self._rounded
            if seen() is values and version == values._version and seen_on == on:
                known = result()
        rounded = round_(known)
        if known is None:
            self._rounded = weakref.ref(values), values._version, on, weakref.ref(rounded)
        return rounded


def _comparable(values: Tensor) -> bool:
    """Return whether identity and version of the tensor can be compared."""
    return not torch.compiler.is_compiling() and not values.is_inference()
