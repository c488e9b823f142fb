"""Where tables are printed."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Return a console as wide as the terminal, or 200 columns wide in a pipe, where folded names cannot be found."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)
