"""What the argument dataclasses of the methods share: which options were set, and a word if that has no effect."""

import warnings
from dataclasses import MISSING, fields
from typing import Any


def changed(options: Any) -> list[str]:
    """The names of the fields of a dataclass that differ from their defaults."""
    return [option.name for option in fields(options) if getattr(options, option.name) != _default(option)]


def warn_idle(options: Any, switch: str) -> None:
    """Warn of every option that was set although `switch`, which turns the method on, was not."""
    idle = [f"`--{name}`" for name in changed(options) if name != switch]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        warnings.warn(f"{', '.join(idle)} {verb} no effect without `--{switch}`.", UserWarning, stacklevel=4)


def _default(option: Any) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
