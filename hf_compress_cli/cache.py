"""`hf-compress cache`: look at decoded copies of packed models, check them, and remove them."""

from datetime import datetime
from typing import Annotated

import typer

from hf_compress_cli.errors import clean_errors

app = typer.Typer(help="Look at decoded copies of packed models, check them, or remove them.", no_args_is_help=True)


@app.command("list")
def show() -> None:
    """List the decoded copies on this machine, the one that was used last first."""
    with clean_errors():
        from rich.table import Table

        from hf_compress.checkpoint import decoded
        from hf_compress.redaction import printable
        from hf_compress_cli.console import console

        found = decoded.copies()
        table = Table("key", "made from", "run", "dtype", "MB", "last used")
        for copy in found:
            used = datetime.fromtimestamp(copy.used).strftime("%Y-%m-%d %H:%M")
            texts = [printable(text) for text in (copy.source, copy.run, copy.dtype)]
            table.add_row(copy.folder.name[:12], *texts, f"{copy.bytes / 1e6:,.1f}", used)
        if found:
            console().print(table)
        total = sum(copy.bytes for copy in found)
        typer.echo(f"{len(found)} copies, {total / 1e9:.2f} of {decoded.limit() / 1e9:g} GB, in {decoded.root()}")


@app.command()
def check() -> None:
    """Read all decoded copies, compare their checksums, and remove those that are damaged."""
    with clean_errors():
        from hf_compress.checkpoint import decoded

        found = decoded.copies()
        damaged = [copy.folder.name for copy in found if not copy.intact()]
        if damaged:
            decoded.clear(damaged)
        typer.echo(f"{len(found)} copies, {len(damaged)} of them damaged{' and removed' if damaged else ''}")


@app.command()
def clear(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Copies to remove, as `list` names them; all by default.")
    ] = None,
) -> None:
    """Remove decoded copies. Models that are already loaded keep working."""
    with clean_errors():
        from hf_compress.checkpoint import decoded

        typer.echo(f"{decoded.clear(keys or []) / 1e6:,.1f} MB freed in {decoded.root()}")
