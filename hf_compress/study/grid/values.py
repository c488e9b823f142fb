"""Checks of the values in a grid file. Each error names the option, its legal range and the value."""

import math
from collections.abc import Iterable
from dataclasses import fields
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 2**63 - 1


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value from YAML has the type of an option. Numbers must be finite and fit into 64 bits.

    Example:
        >>> from hf_compress.study.grid.values import fits
        >>> fits(1, float), fits("fast", float), fits(float("nan"), float), fits(None, int | None)
        (True, False, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is list or hint is list:
        return isinstance(value, list) and all(fits(item, option) for item in value for option in inner)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint in (NoneType, None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return is_whole(value)
    if hint is float:
        return is_number(value)
    if hint is str or (isinstance(hint, type) and issubclass(hint, Enum)):
        return isinstance(value, str)
    return True


def in_words(hint: Any) -> str:
    """Return the name of a type, for errors."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(option) for option in get_args(hint)))
    if hint in (NoneType, None):
        return "null"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return words.get(hint) or (
        "text" if isinstance(hint, type) and issubclass(hint, Enum) else str(getattr(hint, "__name__", hint))
    )


def shown(value: Any) -> str:
    """Return a value for an error, cut to 80 characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return "a number beyond 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def text(value: Any, where: str) -> str:
    """Return a name or path after a check: text without control characters or line breaks."""
    if not (isinstance(value, str) and value and value.isprintable() and len(value) <= 1000):
        raise ValueError(f"{where} must be text without line breaks or control characters; got {shown(value)}.")
    return value


def keys(values: Any, where: str, known: Any, required: Iterable[str] = ()) -> dict[str, Any]:
    """Return a mapping after a check of its keys.

    Args:
        values: the mapping in the file.
        where: its name in errors.
        known: legal keys, or a dataclass with these fields.
        required: keys that must be there.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of names to values; got {shown(values)}.")
    names = [option.name for option in fields(known)] if isinstance(known, type) else list(known)
    unknown = [f"`{name}`" for name in values if name not in names]
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}. It may have {', '.join(names)}.")
    missing = [f"`{name}`" for name in required if name not in values]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}. See `examples/study/` for whole grids.")
    return values


def entries(value: Any, where: str) -> list[Any]:
    """Return a list after a check that it is one and has an entry."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{where}` must be a list with at least one entry; got {shown(value)}.")
    return value


def distinct(values: Iterable[Any], where: str) -> None:
    """Check that no value occurs twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"`{where}` has {shown(value)} twice. Remove one of the two.")
        seen.add(value)


def seed_list(seeds: Any, where: str) -> tuple[int, ...]:
    """Return a list of seeds as a tuple, after a check."""
    for seed in entries(seeds, where):
        if not (is_whole(seed) and 0 <= seed < 2**32):
            raise ValueError(
                f"`{where}` must be whole numbers from 0 to 4294967295; got {shown(seed)}. For example, give "
                "[0, 1, 2]."
            )
    distinct(seeds, where)
    return tuple(seeds)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))
