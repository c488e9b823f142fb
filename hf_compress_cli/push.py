"""`hf-compress push`: publish a finished folder on the Hub."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from hf_compress_cli.errors import clean_errors

if TYPE_CHECKING:
    from hf_compress.hub.push import Pushed

INTERRUPTED = 130


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A compressed folder with its report and card.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; created if missing.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a new repository. The default is that of its owner."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; created if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Token of the Hub; `-` reads it from standard input. The default is HF_TOKEN or the login."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite or remove files of another model that the repository holds.")
    ] = False,
    regression_too: Annotated[
        bool, typer.Option("--regression-too", help="Publish a model that lost more than it was allowed to.")
    ] = False,
) -> None:
    """Make a Hub repository hold a compressed folder, in one commit.

    Refused if a file is not the one that the report records, or holds a secret. Files of an earlier push that the
    folder lacks are removed; other files stay, and README.md keeps what its author wrote.
    """
    with clean_errors():
        from hf_compress.hub.push import publish

        with _stops_at_once(f"Interrupted. {repo_id} holds all of {folder} or none of it. Push again to complete it."):
            pushed = publish(
                folder,
                repo_id,
                private=private,
                revision=revision,
                create_pr=create_pr,
                message=message,
                token=_read_token() if token == "-" else token,
                replace=replace,
                regression_too=regression_too,
            )
    _show(pushed)


def _read_token() -> str:
    if token := sys.stdin.readline().strip():
        return token
    raise ValueError("`--token -` reads the token from standard input, and there was none. Pipe it into the command.")


@contextmanager
def _stops_at_once(message: str) -> Iterator[None]:
    """End the process on Ctrl-C. Its client would wait until running uploads end, which may take minutes."""

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{message}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show(pushed: "Pushed") -> None:
    """Print what changed, and last the address, so that scripts can read it."""
    done = pushed.changes
    rows = (
        ("added", done.added),
        ("changed", done.changed),
        ("removed", done.removed),
        ("unchanged", done.unchanged),
        ("not ours, kept", [name for name in done.kept if not name.startswith(".git")]),
        ("not in the report, left here", pushed.left),
    )
    for what, names in rows:
        if names:
            typer.echo(f"{what}: {', '.join(names)}", err=True)
    typer.echo(pushed.url)
