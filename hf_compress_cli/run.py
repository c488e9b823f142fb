"""`hf-compress run`: any Trainer script, unmodified, compresses what it trains."""

from typing import Annotated

import typer


def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="SCRIPT.py ...", help="The script, its own arguments, and our flags.")
    ] = None,
) -> None:
    """Run a Trainer script, unmodified, and compress the model it trains."""
    from hf_compress.launch import launcher

    raise typer.Exit(launcher.main(arguments or []))
