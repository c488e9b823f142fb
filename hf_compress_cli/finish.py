"""`hf-compress finish`: complete a run whose finish was interrupted or failed, without training again."""

from pathlib import Path
from typing import Annotated

import typer

from hf_compress_cli.errors import clean_errors


def finish(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The `--output_dir` of the run.")],
    without_report: Annotated[
        bool, typer.Option("--without-report", help="Keep the compressed model even if it was never scored.")
    ] = False,
    token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Hub token; the default is that of `hf auth login`.")
    ] = None,
) -> None:
    """Complete a run whose finish was interrupted or failed after training, without training again.

    Writes the card, moves the result to RUN_FOLDER/compressed, writes formats that are missing or failed, and pushes
    if the run was to. With `--compress_max_drop` a regression is not pushed, and the exit status is 3. Scores need
    the run's own script: if they are missing, the command to run is printed.
    """
    with clean_errors():
        from hf_compress.launch.completion import complete, status_of

        complete(folder, without_report=without_report, token=token, tell=typer.echo)
        raise typer.Exit(status_of(folder))
