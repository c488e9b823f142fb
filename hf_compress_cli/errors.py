"""Report errors that the user of a command can fix."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn errors that the user can fix into one message and exit status 1. All others keep their traceback.

    These are `ValueError` (a value out of range, a broken file), `OSError` (files, folders, the network, the Hub), and
    `ImportError` for a missing extra. A `ModuleNotFoundError` is a bug: errors about extras name the extra instead.
    """
    try:
        yield
    except (BrokenPipeError, ModuleNotFoundError):
        raise  # The reader of a pipe has closed it: typer exits silently.
    except (ValueError, ImportError, OSError) as error:
        typer.echo(f"Error: {message(error)}", err=True)
        raise typer.Exit(1) from error


def message(error: Exception) -> str:
    """Return what is wrong in one line without secrets; for an error of the operating system, file and reason."""
    from hf_compress.redaction import printable, redact_text

    if isinstance(error, OSError) and error.strerror and error.filename:
        return printable(redact_text(f"{error.filename}: {error.strerror}"))
    return printable(redact_text(" ".join(str(error).split()))) or type(error).__name__
