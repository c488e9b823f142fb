"""A run of a study from its command line to its last line."""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from hf_compress.report.report import REPORT_NAME
from hf_compress.study.grid.grid import Grid
from hf_compress.study.grid.plan import Cell, Dense, Plan, plan
from hf_compress.study.grid.sources import Sources
from hf_compress.study.run.cell import Training, training_arguments
from hf_compress.study.run.display import Display, label
from hf_compress.study.run.engine import run
from hf_compress.study.run.estimate import in_words, seconds_left
from hf_compress.study.run.ray_cluster import OnRay
from hf_compress.study.run.results import read_results
from hf_compress.study.run.store import ERROR, Store
from hf_compress.study.run.workers import Here, Processes, Workers, quiet, visible_gpus


@dataclass(frozen=True)
class Options:
    """What the command line says beside the grid and the folder.

    Raises:
        ValueError: a value outside its range.
    """

    data: str | None = None
    jobs: int = 1
    threads: int = 0
    ray: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3
    results: tuple[str, ...] = field(default_factory=tuple)
    part: str = "1/1"
    retry_failed: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"`--jobs` must be at least 1; got {self.jobs}. One per core or GPU is a start.")
        if self.jobs > 1 and self.ray is not None:
            raise ValueError(
                "`--jobs` and `--ray` exclude each other: on a cluster `--cpus` and `--gpus` say how many."
            )
        if self.threads < 0:
            raise ValueError(f"`--threads` must be at least 1, or 0 for the library's choice; got {self.threads}.")
        for name in ("cpus", "gpus", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name}` must be 0 or more; got {getattr(self, name)}.")


def main(grid_file: Path, out: str, options: Options) -> bool:
    """Whether all cells asked for are done, after a run of the grid.

    Raises:
        ValueError: a grid that cannot be run.
    """
    quiet()
    sources = Sources(Grid.read(grid_file), options.data)
    whole = plan(sources.grid, sources.identities(guess=options.dry_run))
    chosen = chosen_cells(whole, options.part)
    took = {result.cell.key: result.seconds for name in options.results for result in read_results(name)}
    if options.dry_run:
        show_plan(Console(), whole, chosen, took, out, options)
        return True
    check_training(whole)
    store = Store(out)
    console = Console(stderr=True)
    workers = _workers(Training(sources), store, options)
    started = time.monotonic()
    before = {result.cell.key: result.seconds for result in store.results() if result.cell.key in whole.cells}
    with Display(whole, console, before | took, lambda: workers.slots) as display:
        progress = run(
            whole,
            store,
            workers,
            cells=chosen,
            known=took.keys(),
            retry_failed=options.retry_failed,
            listener=display,
        )
    done = len(progress.found) + len(progress.done.keys() & whole.cells.keys())
    console.print(
        f"{done} of {len(chosen)} cells done, {len(progress.found)} of them before, in "
        f"{in_words(time.monotonic() - started)}; {len(progress.failed)} failed, {len(progress.blocked)} wait for "
        "what failed",
        highlight=False,
    )
    for key, error in progress.failed.items():
        node = whole.dense[key] if key in whole.dense else whole.cells[key]
        console.print(f"failed: {label(node)}: {error}\n  {out}/{key}/{ERROR}", soft_wrap=True, markup=False)
    if progress.failed:
        console.print("`--retry-failed` runs these again.")
    return progress.finished


def chosen_cells(whole: Plan, part: str) -> list[str]:
    """The keys of the I-th of N parts of the plan, `part` being "I/N": cells that share a dense model stay together.

    Raises:
        ValueError: `part` is no such part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"`--cells` must be I/N, the I-th of N parts from 1 to N; got {part!r}. Give 1/2, say.")
    groups: dict[str, list[str]] = {}
    for cell in whole.cells.values():
        groups.setdefault(cell.starts_from, []).append(cell.key)
    # Each group goes to the part that has the fewest cells so far.
    parts: list[list[str]] = [[] for _ in range(count)]
    for group in groups.values():
        min(parts, key=len).extend(group)
    return parts[number - 1]


def check_training(whole: Plan) -> None:
    """Has Transformers refuse, before anything is trained, the training arguments that it would refuse later.

    Raises:
        ValueError: it does.
    """
    checked: list[Mapping[str, object]] = []
    nodes: list[Dense | Cell] = [*whole.dense.values(), *whole.cells.values()]
    for node in nodes:
        if not any(node.training is seen or node.training == seen for seen in checked):
            checked.append(node.training)
            training_arguments(node, Path("unused"))


def show_plan(
    console: Console, whole: Plan, chosen: Collection[str], took: Mapping[str, float], out: str, options: Options
) -> None:
    """Prints the cells, what there is of each, and how long the rest may take."""
    store = Store(out)
    reports, failed = store.listed(REPORT_NAME), store.listed(ERROR)
    found = {key: result.seconds for key in reports & whole.cells.keys() if (result := store.result(key)) is not None}
    took = found | {key: seconds for key, seconds in took.items() if key in whole.cells}
    to_do = [key for key in chosen if key not in took]
    needed = {need for key in to_do for need in whole.cells[key].needs}
    for key in chosen:
        state = "done" if key in took else "failed" if key in failed else "to do"
        console.print(f"{key} {state:6} {label(whole.cells[key])}", highlight=False, soft_wrap=True)
    seconds = seconds_left(whole, [*to_do, *needed], took)
    words = in_words(None if seconds is None else seconds / options.jobs)
    console.print(
        f"{len(chosen)} cells, {len(to_do)} to do on {len(needed)} dense models; estimate: {words}"
        + ("" if took else ", until some have run"),
        highlight=False,
    )


def _workers(work: Training, store: Store, options: Options) -> Workers:
    if options.ray is not None:
        return OnRay(work, store, options.ray, cpus=options.cpus, gpus=options.gpus, retries=options.retries)
    if options.jobs > 1:
        return Processes(work, store, options.jobs, threads=options.threads, gpus=visible_gpus())
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    return Here(work, store)
