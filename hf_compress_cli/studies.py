"""The commands for many models: run a grid, gather what was measured, report on it, and take advice from it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_compress_cli.errors import clean_errors


class _RunByDefault(TyperGroup):
    """A group in which what is no command's name is the grid that `run` is to run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = next((word for word in args if not word.startswith("-")), None)
        if args and first not in self.commands and not {"-h", "--help"} & set(args[:1]):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Run a grid of models, tasks and recipes: `hf-compress study GRID.yaml --out DIR`.",
    no_args_is_help=True,
)


@app.command()
def run(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="The grid; `examples/study/` has some.")],
    out: Annotated[
        str,
        typer.Option("--out", metavar="DIR", help="Folder of the study, or its URL: results, and what runs share."),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Folder with a copy of the grid's data, laid out as on the Hub."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Worker processes; with 1 all runs in this one.")] = 1,
    threads: Annotated[int, typer.Option("--threads", help="Compute threads per job; 0: the library's choice.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run on this Ray cluster; `auto`: that of this machine; `local`."
        ),
    ] = None,
    cpus: Annotated[float, typer.Option("--cpus", help="On Ray: CPUs, and compute threads, per run.")] = 1.0,
    gpus: Annotated[float, typer.Option("--gpus", help="On Ray: GPUs per run; 0.25 puts four on each.")] = 0.0,
    retries: Annotated[int, typer.Option("--retries", help="On Ray: further attempts if a machine is lost.")] = 3,
    results: Annotated[
        list[str] | None,
        typer.Option("--results", metavar="FILE", help="Results whose cells count as done; may be given again."),
    ] = None,
    cells: Annotated[str, typer.Option("--cells", metavar="I/N", help="Only the I-th of N parts, from 1.")] = "1/1",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells and an estimate, and run nothing.")] = False,
) -> None:
    """Run what is not done yet of a grid, one report per cell. Killed, it goes on where it was when started again."""
    with clean_errors():
        from hf_compress.study.run import program

        options = program.Options(
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
        raise typer.Exit(0 if program.main(grid, out, options) else 1)


@app.command()
def collect(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a study, or its URL.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="To write: JSON lines, compressed if it ends in .zst.")],
    results: Annotated[
        list[str] | None,
        typer.Option("--results", metavar="FILE", help="Results to put in as well; may be given again."),
    ] = None,
) -> None:
    """Write all results of a study into one file, from which reports are made and other studies go on."""
    with clean_errors():
        from hf_compress.study.run.results import read_results, write_results
        from hf_compress.study.run.store import Store

        also = [result for name in results or [] for result in read_results(name)]
        typer.echo(f"{write_results([*also, *Store(folder).results()], file)} results written to {file}")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="Files of results (.jsonl, .jsonl.zst), or a study's folder."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for tables, plots and index.html.")] = Path(
        "study-report"
    ),
    metric: Annotated[
        str, typer.Option("--metric", help="paper: accuracy where a task reports one; main: each task's own score.")
    ] = "paper",
    document: Annotated[
        list[Path] | None,
        typer.Option("--document", help="Markdown file whose marked tables are to be replaced; repeatable."),
    ] = None,
) -> None:
    """Make tables, plots and a page that works offline from the results of a study."""
    with clean_errors():
        from hf_compress.study.report import reporting

        tables = reporting.write_report(results, out, metric=metric)
        typer.echo(f"{len(tables)} tables, plots and {out / reporting.PAGE}")
        for path in document or []:
            typer.echo(f"{path}: {reporting.quote(path, tables)} tables replaced")


def suggest(
    model: Annotated[str, typer.Option("--model", help="A model of the study, or a folder or Hub id.")],
    task: Annotated[str, typer.Option("--task", help="A task of the study, or your own, for which all stand in.")],
    max_size: Annotated[str | None, typer.Option("--max-size", metavar="10MB", help="The largest file.")] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="The largest loss of score, in points of a hundred.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Results of a study; by default those that come with the package.")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="As for `study report`.")] = "paper",
) -> None:
    """Say which recipe to try first for a model and a task, and what to expect of it, from the runs of a study."""
    with clean_errors():
        from hf_compress.study.report import advice

        typer.echo(advice.advise(model, task, max_size=max_size, max_drop=max_drop, results=results, metric=metric))
