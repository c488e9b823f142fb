"""`hf-compress push`: upload a finished folder to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from hf_compress_cli.errors import clean_errors


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A compressed folder with its report and card.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; created if missing.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a new repository. The default is that of its owner."),
    ] = None,
) -> None:
    """Upload a compressed folder to the Hub in one commit.

    Refused if the card does not match the report, or the report does not match the weights.
    """
    with clean_errors():
        from hf_compress import hub

        typer.echo(hub.push(folder, repo_id, private=private))
