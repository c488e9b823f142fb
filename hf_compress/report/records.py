"""Dataclasses to JSON values and back, without loss. Values of a wrong type are refused by name, never converted."""

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def encode(value: Any, where: str = "record") -> Any:
    """`value` as JSON values. Dataclasses become objects.

    Args:
        value: a dataclass, mapping, list, tuple, str, bool, int, float or None.
        where: the name of the value in errors.

    Raises:
        ValueError: a value of another type, or a number that is not finite. The message names the path from the root.

    Example:
        >>> from hf_compress.report.records import encode
        >>> encode({"parity": float("nan")}, "report")
        Traceback (most recent call last):
        ValueError: report.parity must be a finite number; got nan.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name), f"{where}.{field.name}") for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): encode(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        _expect(math.isfinite(value), "a finite number", value, where)
        return value
    if value is None or isinstance(value, str | bool | int):
        return value
    raise ValueError(f"{where} must be a JSON value; got {value!r} ({type(value).__name__}).")


def decode(hint: Any, value: Any, where: str) -> Any:
    """The value of type `hint` that `encode` turned into `value`.

    Args:
        hint: a type: a dataclass, `X | None`, `dict[str, X]`, `dict[int, X]`, `list[X]`, `str`, `bool`, `int`, `float`
            or `Any`. JSON writes the keys of a `dict[int, X]` as strings.
        value: JSON values.
        where: the name of the value in errors.

    Raises:
        ValueError: an unknown field, a missing one without a default, or a value of another type. The message names
            the path from the root.

    Example:
        >>> from hf_compress.report.records import decode
        >>> decode(list[int], [1, "2"], "report.sizes")
        Traceback (most recent call last):
        ValueError: report.sizes[1] must be int; got '2'.
    """
    if hint is Any:
        return value
    if isinstance(hint, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        (inner,) = (option for option in get_args(hint) if option is not NoneType)
        return decode(inner, value, where)
    if is_dataclass(hint):
        return _decode_dataclass(hint, value, where)
    if get_origin(hint) is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        key, inner = get_args(hint)
        if key is int:
            _expect(all(name.isdecimal() for name in value), "an object with whole numbers as keys", value, where)
        return {key(name): decode(inner, item, f"{where}.{name}") for name, item in value.items()}
    if get_origin(hint) is list:
        _expect(isinstance(value, list), "a list", value, where)
        return [decode(get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # An integer beyond the largest float compares, but cannot be converted.
        _expect(number and abs(value) <= sys.float_info.max, "a finite number", value, where)
        return float(value)
    _expect(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), hint.__name__, value, where)
    return value


def _decode_dataclass(hint: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    known = {field.name: field for field in fields(hint)}
    unknown = [name for name in value if name not in known]
    required = {name for name, field in known.items() if field.default is field.default_factory is MISSING}
    missing = [name for name in known if name in required and name not in value]
    for problem, names in (("does not know the field", unknown), ("lacks the field", missing)):
        if names:
            listed = ", ".join(f"`{name}`" for name in names)
            raise ValueError(f"{where} {problem} {listed}. Read it with the version of hf_compress that wrote it.")
    hints = get_type_hints(hint)
    return hint(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _expect(holds: bool, what: str, value: Any, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} must be {what}; got {value!r}.")
