"""Checks that the options of several methods share."""

import warnings
from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import Any


def check_list(option: str, values: Any) -> None:
    """Refuse a text where a list of texts belongs: it would be read letter by letter.

    Raises:
        ValueError: `values` is a text.
    """
    if isinstance(values, str):
        raise ValueError(f"`--{option}` must be a list of texts; got the text {values!r}. Give [{values!r}].")


def changed(options: Any) -> list[str]:
    """Return the names of the fields of a dataclass that differ from their defaults."""
    return [option.name for option in fields(options) if getattr(options, option.name) != _default(option)]


def as_flag(options: Any, name: str) -> str:
    """Return the option of a dataclass as it is given on the command line, for a message."""
    value = getattr(options, name)
    return f"`--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}`"


def warn_idle(options: Any, switch: str, used: Collection[str] = ()) -> None:
    """Warn about options that were set although `switch`, which turns the method on, was not.

    Args:
        used: further options that have an effect.
    """
    idle = [f"`--{name}`" for name in changed(options) if name != switch and name not in used]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        warnings.warn(f"{', '.join(idle)} {verb} no effect without `--{switch}`.", UserWarning, stacklevel=4)


def refuse_averages(optimizer: Any, switch: str, what: str) -> None:
    """Refuse an optimizer that evaluates and saves an average of earlier weights, `what` as a clause about them.

    Raises:
        ValueError: it is one of `schedulefree` (Defazio et al., 2024), alone or wrapped by accelerate.
    """
    kind = type(getattr(optimizer, "optimizer", optimizer))
    if kind.__module__.partition(".")[0] == "schedulefree":
        raise ValueError(
            f"`{switch}` cannot train with {kind.__name__} (`--optim schedule_free_...`): it evaluates and saves an "
            f"average of earlier weights, {what}. Choose another `--optim`, such as "
            "`adamw_torch`."
        )


def _default(option: Any) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
