"""A whole run of a study, as `hf-compress study` starts it."""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from hf_compress.report.report import REPORT_NAME
from hf_compress.study.grid.grid import StudyGrid
from hf_compress.study.grid.plan import DenseModel, Plan, make_plan
from hf_compress.study.grid.sources import Sources
from hf_compress.study.grid.values import shown
from hf_compress.study.run.cell import Training, training_arguments
from hf_compress.study.run.display import Display, label
from hf_compress.study.run.engine import run_plan
from hf_compress.study.run.estimate import in_words, seconds_left
from hf_compress.study.run.ray_cluster import RayWorkers
from hf_compress.study.run.results import read_results
from hf_compress.study.run.store import ERROR_FILE, Store
from hf_compress.study.run.workers import ProcessWorkers, SerialWorkers, Workers, quiet, visible_gpus

MOST_PARTS = 10_000
MOST_PROCESSES = 1024


@dataclass(frozen=True)
class StudyOptions:
    """Options of a run beside the grid and the folder.

    Args:
        data: folder with a copy of the grid's data.
        jobs: worker processes; 1 runs all nodes in this process.
        threads: compute threads per job; 0 leaves the choice to torch.
        ray: address of a Ray cluster, "auto" or "local".
        cpus: CPUs per node on Ray.
        gpus: GPUs per node on Ray.
        retries: repeats of a node on Ray if its machine is lost.
        results: files of results whose cells count as done.
        part: "I/N" runs the I-th of N parts.
        retry_failed: whether to run failed nodes again.
        dry_run: whether to print the plan only.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> from hf_compress.study.run import StudyOptions
        >>> options = StudyOptions(jobs=2, part="1/4")
        >>> options.jobs, options.part, options.dry_run
        (2, '1/4', False)
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
        for name, least, most in (("jobs", 1, MOST_PROCESSES), ("threads", 0, MOST_PROCESSES), ("retries", 0, 1000)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"`--{name}` must be from {least} to {most}; got {getattr(self, name)}.")
        if self.jobs > 1 and self.ray is not None:
            raise ValueError(
                "`--jobs` and `--ray` cannot be combined. On a cluster, `--cpus` and `--gpus` set how many nodes run."
            )
        for name in ("cpus", "gpus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`--{name}` must be a number from 0; got {getattr(self, name)}.")


def run_study(grid_file: Path, out: str, options: StudyOptions) -> bool:
    """Run the grid in a file, and return whether all its chosen cells are done.

    Args:
        grid_file: the YAML file.
        out: folder or URL of the study.
        options: everything else.

    Raises:
        ValueError: the grid cannot be run. Nothing is written then.

    Example:
        >>> from pathlib import Path
        >>> from hf_compress.study.run import StudyOptions, run_study
        >>> run_study(Path("grid.yaml"), "study", StudyOptions(jobs=2))  # doctest: +SKIP
        True
    """
    quiet()
    sources, store = Sources(StudyGrid.read(grid_file), options.data), Store(out)
    check_training(sources.grid)
    unreached: list[str] | None = [] if options.dry_run else None
    whole = make_plan(sources.grid, sources.identities(unreached))
    chosen = chosen_cells(whole, options.part)
    took = {result.cell.key: result.seconds for name in options.results for result in read_results(name)}
    if options.dry_run:
        show_plan(Console(), whole, chosen, took, store, options)
        for line in unreached or []:
            Console(stderr=True).print(f"not checked: {line}", highlight=False, soft_wrap=True, markup=False)
        return True
    console = Console(stderr=True)
    workers = _workers(Training(sources), store, options)
    started = time.monotonic()
    before = {result.cell.key: result.seconds for result in store.results() if result.cell.key in whole.cells}
    with Display(whole, console, before | took, lambda: workers.slots) as display:
        progress = run_plan(
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
        f"{in_words(time.monotonic() - started)}; {len(progress.failed)} failed, {len(progress.blocked)} blocked by "
        "failures",
        highlight=False,
    )
    for key, error in progress.failed.items():
        node = whole.dense[key] if key in whole.dense else whole.cells[key]
        console.print(f"failed: {label(node)}: {error}\n  {out}/{key}/{ERROR_FILE}", soft_wrap=True, markup=False)
    if progress.failed:
        console.print("Run again with `--retry-failed` to repeat them.")
    return progress.finished


def chosen_cells(whole: Plan, part: str) -> list[str]:
    """Return the keys of the I-th of N parts of the plan. Cells that share a dense model are in the same part.

    Args:
        whole: the plan.
        part: "I/N", with I from 1 to N.

    Raises:
        ValueError: `part` is invalid.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count <= MOST_PARTS:
        raise ValueError(
            f"`--cells` must be I/N, the I-th of N parts, with N from I to {MOST_PARTS}; got {shown(part)}. For "
            "example, give 1/2."
        )
    groups: dict[str, list[str]] = {}
    for cell in whole.cells.values():
        groups.setdefault(cell.starts_from, []).append(cell.key)
    # Add each group to the part with the fewest cells so far.
    parts: list[list[str]] = [[] for _ in range(count)]
    for group in groups.values():
        min(parts, key=len).extend(group)
    return parts[number - 1]


def check_training(grid: StudyGrid) -> None:
    """Check the training arguments of all nodes before any training.

    Raises:
        ValueError: Transformers refuses a value.
    """
    for model in ({}, *(model.training for model in grid.models)):
        for task in grid.tasks:
            for own in ({}, grid.dense_training):
                training = {**grid.training, **model, **task.training, **own}
                training_arguments(DenseModel("", "", None, task.name, 0, training), Path("unused"))


def show_plan(
    console: Console,
    whole: Plan,
    chosen: Collection[str],
    took: Mapping[str, float],
    store: Store,
    options: StudyOptions,
) -> None:
    """Print the cells with their state, and an estimate of the time that the rest takes."""
    reports, failed = store.listed(REPORT_NAME), store.listed(ERROR_FILE)
    found = {key: result.seconds for key in reports & whole.cells.keys() if (result := store.result(key)) is not None}
    took = found | {key: seconds for key, seconds in took.items() if key in whole.cells}
    to_do = [key for key in chosen if key not in took]
    needed = {need for key in to_do for need in whole.cells[key].needs}
    for key in chosen:
        state = "done" if key in took else "failed" if key in failed else "to do"
        console.print(f"{key} {state:6} {label(whole.cells[key])}", highlight=False, soft_wrap=True, markup=False)
    seconds = seconds_left(whole, [*to_do, *needed], took)
    words = in_words(None if seconds is None else seconds / options.jobs)
    console.print(
        f"{len(chosen)} cells, {len(to_do)} to do on {len(needed)} dense models; estimate: {words}"
        + ("" if took else " until some have run"),
        highlight=False,
    )


def _workers(work: Training, store: Store, options: StudyOptions) -> Workers:
    if options.ray is not None:
        return RayWorkers(work, store, options.ray, cpus=options.cpus, gpus=options.gpus, retries=options.retries)
    if options.jobs > 1:
        return ProcessWorkers(work, store, options.jobs, threads=options.threads, gpus=visible_gpus())
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    return SerialWorkers(work, store)
