"""What a command says when its user has something to mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def clean_errors() -> Iterator[None]:
    """Errors that are the user's to mend become one message and exit status 1; all others keep their traceback."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (ValueError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
