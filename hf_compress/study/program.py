"""A run of a study as its user sees it: what is planned, what is under way, and what came of it."""

import re
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from hf_compress.study.cell import Training
from hf_compress.study.engine import Outcome, Progress, run
from hf_compress.study.grid import Grid
from hf_compress.study.node import is_done
from hf_compress.study.plan import Cell, Dense, Plan, plan
from hf_compress.study.sources import Sources
from hf_compress.study.store import Store, read_results
from hf_compress.study.workers import Here, Processes, Workers, quiet


def main(
    grid_file: Path,
    out: Path,
    *,
    data: str | None,
    jobs: int,
    threads: int,
    results: list[str],
    part: str,
    retry_failed: bool,
    dry_run: bool,
) -> bool:
    """Whether all cells asked for are done, after a run of the grid.

    Raises:
        ValueError: an option outside its range, or a grid that cannot be run.
    """
    if jobs < 1:
        raise ValueError(f"`--jobs` must be at least 1; got {jobs}. One worker process per core or GPU is a start.")
    if threads < 0:
        raise ValueError(f"`--threads` must be at least 1, or 0 for the library's own choice; got {threads}.")
    quiet()
    grid = Grid.read(grid_file)
    sources = Sources(grid, data)
    whole = plan(grid, sources.identities())
    chosen = chosen_cells(whole, part)
    known = {result.cell.key for name in results for result in read_results(name)}
    store = Store(out)
    console = Console(stderr=True)
    if dry_run:
        show_plan(Console(), whole, chosen, known, store)
        return True
    work = Training(sources)
    workers: Workers = Here(work, store)
    if jobs > 1:
        import torch

        workers = Processes(work, store, jobs, threads=threads, gpus=torch.cuda.device_count())
    elif threads:
        import torch

        torch.set_num_threads(threads)
    started = time.monotonic()

    def say(progress: Progress, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.state != "taken":
            left = progress.total - progress.found - len(progress.done) - len(progress.failed) - len(progress.blocked)
            console.print(
                f"{time.strftime('%H:%M:%S')} {outcome.state:6} {label(whole, outcome.key)} "
                f"{outcome.seconds:.0f} s, {left} left {outcome.error}",
                highlight=False,
                soft_wrap=True,
            )

    progress = run(whole, store, workers, cells=chosen, known=known, retry_failed=retry_failed, listener=say)
    console.print(
        f"{progress.found + len(progress.done)} of {progress.total} cells done ({progress.found} before), "
        f"{len(progress.failed)} failed, {len(progress.blocked)} blocked, {time.monotonic() - started:.0f} s",
        highlight=False,
    )
    for key, error in progress.failed.items():
        console.print(f"failed: {label(whole, key)}: {error}  ({store.folder / key / 'error.txt'})", soft_wrap=True)
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
    # Whole groups, each to the part that has the fewest cells so far.
    parts: list[list[str]] = [[] for _ in range(count)]
    for group in groups.values():
        min(parts, key=len).extend(group)
    return parts[number - 1]


def label(whole: Plan, key: str) -> str:
    """A node as its user knows it."""
    node: Dense | Cell = whole.dense[key] if key in whole.dense else whole.cells[key]
    size = node.model if node.layers is None else f"{node.model} cut to {node.layers}"
    what = "baseline" if isinstance(node, Dense) else node.methods
    if isinstance(node, Cell) and node.sparsity:
        what += f" {100 * node.sparsity:g} %"
    return f"{node.task} {size} {what} seed {node.seed}"


def show_plan(console: Console, whole: Plan, chosen: list[str], known: set[str], store: Store) -> None:
    """Prints the cells and what there is of them."""
    states: Counter[str] = Counter()
    for key in chosen:
        done = key in known or is_done(whole.cells[key], store)
        state = "done" if done else "failed" if store.error(key) else "to do"
        states[state] += 1
        console.print(f"{key} {state:6} {label(whole, key)}", highlight=False, soft_wrap=True)
    needed = {need for key in chosen for need in whole.cells[key].needs}
    console.print(f"{len(chosen)} cells on {len(needed)} dense models: {dict(states)}", highlight=False)
    sys.stdout.flush()
