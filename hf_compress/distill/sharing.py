"""Which rows an epoch has if the share of teacher-only rows is set."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler


class SharingSampler(Sampler[int]):
    """Yields, in random order, all labelled rows and as many teacher-only rows as their share asks for.

    Teacher-only rows are drawn without replacement: each epoch goes on where the one before it ended, so that all of
    them are seen before one comes again. Which rows an epoch has depends on the seed and its number alone, so a
    resumed run and several processes draw the same.

    Args:
        labelled: the number of labelled rows, which come first in the data set.
        further: the number of teacher-only rows behind them.
        share: of an epoch's rows that are teacher-only, in (0, 1).
        seed: chooses rows and their order.

    Example:
        >>> from hf_compress.distill.sharing import SharingSampler
        >>> sampler = SharingSampler(labelled=2, further=6, share=0.5, seed=0)
        >>> first = sorted(sampler)
        >>> sampler.set_epoch(1)
        >>> len(sampler), first[:2], len({*first, *sampler})
        (4, [0, 1], 6)
    """

    def __init__(self, labelled: int, further: int, share: float, seed: int) -> None:
        self.labelled, self.further, self.seed, self.epoch = labelled, further, seed, 0
        self.drawn = max(1, round(labelled * share / (1 - share)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.labelled + self.drawn

    def __iter__(self) -> Iterator[int]:
        rows = np.concatenate([np.arange(self.labelled), self.labelled + self._drawn()])
        yield from self._random(self.epoch, 0).permutation(rows).tolist()

    def _drawn(self) -> Int[np.ndarray, " rows"]:
        """Return the teacher-only rows of the epoch: a part of an endless sequence of all of them in new orders."""
        begin = self.epoch * self.drawn
        rounds = range(begin // self.further, (begin + self.drawn - 1) // self.further + 1)
        orders = [self._random(one, 1).permutation(self.further) for one in rounds]
        start = begin - rounds.start * self.further
        return np.concatenate(orders)[start : start + self.drawn]

    def _random(self, number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, purpose])
