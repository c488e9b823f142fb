"""The display of a running study: names of nodes, and a table of progress."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hf_compress.study.grid.plan import Cell, DenseModel, Plan
from hf_compress.study.run.engine import Progress
from hf_compress.study.run.estimate import in_words, seconds_left
from hf_compress.study.run.node import Outcome

STATES = ("done", "running", "failed", "blocked", "to do")


def label(node: DenseModel | Cell) -> str:
    """Return the name of a node for its user, for example "sst2 minilm/3 kd+mp+int8 60 % seed 0"."""
    what = "baseline" if isinstance(node, DenseModel) else node.methods
    if isinstance(node, Cell) and node.sparsity:
        what += f" {100 * node.sparsity:g} %"
    return f"{node.task} {size(node)} {what} seed {node.seed}"


def size(node: DenseModel | Cell) -> str:
    """Return the model of a node; after a slash the number of layers it is cut to."""
    return node.model if node.layers is None else f"{node.model}/{node.layers}"


def states(plan: Plan, progress: Progress) -> dict[tuple[str, str], Counter[str]]:
    """Count the cells in each of the `STATES`, by size and task."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    for key in progress.chosen:
        cell = plan.cells[key]
        state = (
            "done"
            if key in progress.found or key in progress.done
            else next((name for name in STATES[1:4] if key in getattr(progress, name)), "to do")
        )
        counted.setdefault((size(cell), cell.task), Counter())[state] += 1
    return counted


def table(plan: Plan, progress: Progress, left: str) -> Table:
    """Return the progress table: one line per size and task, and the dense models in training below."""
    counted = states(plan, progress)
    result = Table(box=box.SIMPLE, caption_justify="left")
    for heading in ("size", "task"):
        result.add_column(heading)
    for heading in STATES:
        result.add_column(heading, justify="right")
    for (model, task), counts in counted.items():
        result.add_row(model, task, *(str(counts[state] or "") for state in STATES))
    total = sum(counted.values(), Counter())
    result.add_section()
    result.add_row("all", "", *(str(total[state] or "") for state in STATES))
    baselines = [label(plan.dense[key]) for key in sorted(progress.running & plan.dense.keys())]
    result.caption = f"time left: {left}" + (f"; training {', '.join(baselines)}" if baselines else "")
    return result


class Display:
    """Shows a run: a live table on a terminal, otherwise one line when a node ends.

    Args:
        plan: the nodes.
        console: where to print.
        took: seconds of cells from earlier runs, to estimate the remaining time.
        slots: returns how many nodes run at the same time.
    """

    def __init__(self, plan: Plan, console: Console, took: Mapping[str, float], slots: Callable[[], int]) -> None:
        self.plan, self.console, self.took, self.slots = plan, console, dict(took), slots
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = self._judged = 0.0
        self._words = "unknown"

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress, outcome: Outcome | None) -> None:
        """Show the progress, and how `outcome` ended."""
        if outcome is not None and outcome.state == "taken":
            return
        if outcome is not None and outcome.state == "done":
            self.took[outcome.key] = outcome.seconds
        if self._live is not None:
            # Counting thousands of cells can take longer than running one.
            if time.monotonic() - self._shown > 0.5 or not progress.to_do:
                self._live.update(table(self.plan, progress, self._left(progress)), refresh=True)
                self._shown = time.monotonic()
        elif outcome is not None:
            key = outcome.key
            node = self.plan.dense[key] if key in self.plan.dense else self.plan.cells[key]
            words = f"{time.strftime('%H:%M:%S')} {outcome.state:6} {label(node)}, {outcome.seconds:.0f} s"
            self.console.print(
                f"{words}; {len(progress.to_do)} to go, {self._left(progress)} left  {outcome.error}".rstrip(),
                highlight=False,
                soft_wrap=True,
                markup=False,
            )

    def _left(self, progress: Progress) -> str:
        """Return the remaining time in words. It is a sum over all nodes, so it is computed once a second."""
        if time.monotonic() - self._judged > 1.0:
            seconds = seconds_left(self.plan, progress.to_do, self.took)
            self._words = in_words(None if seconds is None else seconds / max(1, self.slots()))
            self._judged = time.monotonic()
        return self._words
