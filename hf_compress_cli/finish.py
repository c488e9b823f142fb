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
) -> None:
    """Complete a run that was interrupted after training.

    Writes missing formats and the card, moves the result to RUN_FOLDER/compressed, and pushes it if the run was to.
    Scores need the run's own script: if they are missing, the command to run is printed.
    """
    with clean_errors():
        from hf_compress.launch.result import complete

        for step in complete(folder, without_report=without_report):
            typer.echo(step)
