"""The commands of `hf-compress study`: run a grid, and gather what has been measured."""

# Nothing heavy is imported up here: `hf-compress --help` must not wait for torch.
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


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


@contextmanager
def _clean_errors() -> Iterator[None]:
    """Errors that are the user's to mend become one message and exit status 1."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


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
    with _clean_errors():
        from hf_compress.study import program

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
    with _clean_errors():
        from hf_compress.study.results import read_results, write_results
        from hf_compress.study.store import Store

        also = [result for name in results or [] for result in read_results(name)]
        typer.echo(f"{write_results([*also, *Store(folder).results()], file)} results written to {file}")
