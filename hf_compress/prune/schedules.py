"""How sparsity grows over training: schedules, and the steps at which weights are chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A curve from the initial to the final sparsity, with its words for help text, model card and citation.

    Args:
        function: returns the sparsity for `(progress, initial, final)`. Progress is the share of the pruning phase
            that is over, in [0, 1]; sparsities are shares of zeros, in [0, 1). It returns `initial` at 0 and `final`
            at 1, exactly, and never falls in between.
        help: a clause for the help text of `--prune_schedule`.
        card: a phrase for the card's sentence "Sparsity grew CARD from 0 % to 60 %".
        citation: a BibTeX entry, or "".

    Example:
        >>> from hf_compress.prune import SCHEDULES
        >>> SCHEDULES["linear"](0.5, 0.0, 0.6)
        0.3
    """

    name: str
    function: Callable[[float, float, float], float]
    help: str
    card: str
    citation: str = ""

    def __call__(self, progress: float, initial: float, final: float) -> float:
        return self.function(progress, initial, final)


def cubic(progress: float, initial: float, final: float) -> float:
    """Return a sparsity that rises fast at first, while weights abound, and slowly towards `final`.

    Source: Zhu & Gupta, 2017, eq. 1.
    """
    return final + (initial - final) * (1 - progress) ** 3


def linear(progress: float, initial: float, final: float) -> float:
    """Return a sparsity that rises at a constant rate; the schedule of Movva et al., 2022."""
    return final + (initial - final) * (1 - progress)


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule(
            name="cubic",
            function=cubic,
            help="fast at first, slowly towards the end",
            card="quickly at first and slowly towards the end (cubic schedule)",
            citation="""@misc{zhu-gupta-2017-prune,
  title  = {To prune, or not to prune: exploring the efficacy of pruning for model compression},
  author = {Zhu, Michael and Gupta, Suyog},
  year   = {2017},
  url    = {https://arxiv.org/abs/1710.01878}
}""",
        ),
        Schedule(
            name="linear",
            function=linear,
            help="at a constant rate",
            card="at a constant rate (linear schedule)",
        ),
    )
}


@dataclass(frozen=True)
class Timetable:
    """The optimizer steps at which weights are chosen: every `every` steps from `begin` on, and at `end`, the last.

    Example:
        >>> from hf_compress.prune.schedules import Timetable
        >>> [Timetable(begin=2, end=6, every=3).last_choice(step) for step in range(8)]
        [0, 0, 2, 2, 2, 5, 6, 6]
    """

    begin: int
    end: int
    every: int

    @classmethod
    def of(cls, begin: float, end: float, every: int, max_steps: int) -> "Timetable":
        """Return the timetable of a run of `max_steps` steps, from shares of training.

        Raises:
            ValueError: there is no step between `begin` and `end`.
        """
        # The first choice is made after the first step at the earliest.
        first, last = max(1, round(begin * max_steps)), round(end * max_steps)
        if last <= first:
            raise ValueError(
                f"`--prune_begin {begin}` and `--prune_end {end}` leave no step to prune in: of {max_steps} optimizer "
                f"steps (`max_steps`), pruning would begin at {first} and end at {last}. Train longer (`--max_steps`, "
                "`--num_train_epochs`), or raise `--prune_end`."
            )
        return cls(first, last, every)

    @property
    def choices(self) -> int:
        """The number of steps at which weights are chosen."""
        return 1 + math.ceil((self.end - self.begin) / self.every)

    def last_choice(self, step: int) -> int:
        """Return the latest step up to `step` at which weights are chosen; 0 before the first."""
        if step < self.begin:
            return 0
        if step >= self.end:
            return self.end
        return step - (step - self.begin) % self.every

    def progress(self, step: int) -> float:
        """Return the share of the pruning phase that is over at `step`, from 0 at `begin` to 1 at `end`."""
        return (step - self.begin) / (self.end - self.begin)
