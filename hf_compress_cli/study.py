"""`hf-compress study`: run a grid of cells, collect the results, report on them, and suggest a recipe from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_compress_cli.errors import clean_errors


class _RunByDefault(TyperGroup):
    """A group of commands. If the first word is not a command, it is taken as the grid for `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((word for word in args if not word.startswith("-")), None)
        if args and first not in self.commands and not {"-h", "--help"} & set(args[:1]):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@contextmanager
def _study_errors() -> Iterator[None]:
    """`clean_errors`, after a check that the extra `study` is installed."""
    with clean_errors():
        from hf_compress.extras import extra

        with extra("study", "`hf-compress study`"):
            import hf_compress.study.analysis.panel
            import hf_compress.study.run.store  # noqa: F401
        yield


app = typer.Typer(
    cls=_RunByDefault,
    help="Run a grid of models, tasks and recipes: `hf-compress study GRID.yaml --out DIR`.",
    no_args_is_help=True,
)


@app.command()
def run(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="StudyGrid file; see `examples/study/`.")],
    out: Annotated[
        str,
        typer.Option("--out", metavar="DIR", help="Folder or URL of the study, for results and shared files."),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Local copy of the grid's data, in the layout of the Hub."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Worker processes; 1 runs all cells in this process.")] = 1,
    threads: Annotated[
        int, typer.Option("--threads", help="Compute threads per job; 0 leaves the choice to torch.")
    ] = 0,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster: an address, `auto` or `local`."),
    ] = None,
    cpus: Annotated[float, typer.Option("--cpus", help="CPUs, and compute threads, per cell on Ray.")] = 1.0,
    gpus: Annotated[float, typer.Option("--gpus", help="GPUs per cell on Ray; with 0.25 four cells share one.")] = 0.0,
    retries: Annotated[int, typer.Option("--retries", help="Repeats of a cell on Ray if its machine is lost.")] = 3,
    results: Annotated[
        list[str] | None,
        typer.Option("--results", metavar="FILE", help="File of results whose cells count as done; repeatable."),
    ] = None,
    cells: Annotated[str, typer.Option("--cells", metavar="I/N", help="Run only the I-th of N parts.")] = "1/1",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells again that failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and an estimate; run nothing.")] = False,
) -> None:
    """Run the cells of a grid that are not done yet; run it again to continue."""
    with _study_errors():
        from hf_compress.study.run import program

        options = program.StudyOptions(
            data=data,
            jobs=jobs,
            threads=threads,
            ray=ray,
            cpus=cpus,
            gpus=gpus,
            retries=retries,
            results=tuple(results or ()),
            part=cells,
            retry_failed=retry_failed,
            dry_run=dry_run,
        )
        raise typer.Exit(0 if program.run_study(grid, out, options) else 1)


@app.command()
def collect(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a study.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write: JSON lines, compressed if named *.zst.")],
    results: Annotated[
        list[str] | None,
        typer.Option("--results", metavar="FILE", help="File of further results to include; repeatable."),
    ] = None,
) -> None:
    """Write all results of a study into one file."""
    with _study_errors():
        from hf_compress.study.run.collect import collect_results

        typer.echo(f"{collect_results(folder, file, results or [])} results written to {file}")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="Files of results (.jsonl, .jsonl.zst) or folders of studies."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, plots and index.html.")] = Path(
        "study-report"
    ),
    metric: Annotated[
        str, typer.Option("--metric", help="paper: accuracy where a task has it; main: the main score of each task.")
    ] = "paper",
    document: Annotated[
        list[Path] | None,
        typer.Option("--document", help="Markdown file whose marked tables to replace; repeatable."),
    ] = None,
) -> None:
    """Make tables, plots and an offline page from the results of a study."""
    with _study_errors():
        from hf_compress.study.report import reporting

        tables = reporting.write_report(results, out, metric=metric, documents=document or [])
        typer.echo(f"{len(tables)} tables, plots and {out / reporting.PAGE}")
        for path in document or []:
            typer.echo(f"{path}: {reporting.quote_tables(path, tables)} tables replaced")


@app.command()
def suggest(
    model: Annotated[str, typer.Option("--model", help="A model of the study, a folder or a Hub id.")],
    task: Annotated[str, typer.Option("--task", help="A task of the study; for others, the mean of all.")],
    max_size: Annotated[str | None, typer.Option("--max-size", metavar="10MB", help="Largest file to accept.")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Largest loss of score to accept, in points of 100.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="File of results; by default the study that comes with hf_compress."),
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", help="paper: accuracy where a task has it; main: the main score of each task.")
    ] = "paper",
) -> None:
    """Suggest the recipe to try first for a model and a task."""
    with _study_errors():
        from hf_compress.study.report import advice

        typer.echo(advice.advise(model, task, max_size=max_size, max_drop=max_drop, results=results, metric=metric))
