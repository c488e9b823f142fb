"""Where tables are printed, and what libraries print beside them."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Return a console as wide as the terminal, or 200 columns wide in a pipe, where folded names cannot be found."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which libraries say nothing, because the command says itself what is wrong, in sentences."""
    import datasets
    from transformers.utils import logging as transformers_logging

    names = ("transformers", "datasets", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if bars[0]:
                transformers_logging.enable_progress_bar()
            if not bars[1]:
                datasets.enable_progress_bars()
