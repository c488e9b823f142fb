"""`hf-compress demo`: a complete run in five minutes, without any download."""

from pathlib import Path
from typing import Annotated

import typer

from hf_compress_cli.errors import clean_errors


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where to write the result.")] = Path("demo"),
) -> None:
    """Train and compress a small model on synthetic sentences, offline."""
    with clean_errors():
        from hf_compress_cli import demonstration

        demonstration.main(out)
