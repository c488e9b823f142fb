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
    out: Annotated[Path, typer.Option("--out", help="Folder of the study: results, and what runs share.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Folder with a copy of the grid's data, in the Hub's layout.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Worker processes; with 1 all runs in this one.")] = 1,
    threads: Annotated[int, typer.Option("--threads", help="Compute threads per job; 0: the library's choice.")] = 0,
    results: Annotated[
        list[str] | None, typer.Option("--results", help="File of results whose cells count as done; repeatable.")
    ] = None,
    cells: Annotated[str, typer.Option("--cells", metavar="I/N", help="Only the I-th of N parts, from 1.")] = "1/1",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells, and run nothing.")] = False,
) -> None:
    """Run what is not done yet of a grid, one report per cell. Killed, it goes on where it was when started again."""
    with _clean_errors():
        from hf_compress.study import program

        finished = program.main(
            grid,
            out,
            data=data,
            jobs=jobs,
            threads=threads,
            results=results or [],
            part=cells,
            retry_failed=retry_failed,
            dry_run=dry_run,
        )
        raise typer.Exit(0 if finished else 1)


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines; compressed if it ends in .zst.")],
    results: Annotated[
        list[str] | None, typer.Option("--results", help="File of results to put in as well; repeatable.")
    ] = None,
) -> None:
    """Write all results of a study into one file, from which reports are made and other studies go on."""
    with _clean_errors():
        from hf_compress.study import store

        also = [result for name in results or [] for result in store.read_results(name)]
        typer.echo(f"{store.collect(folder, file, also)} results written to {file}")
