"""Regular expressions in options: checked to be valid, and cheap enough to search for in every module name."""

import math
import re
from collections.abc import Sequence
from re import _parser  # type: ignore[attr-defined]  # The one way to see a pattern's structure; there is no public one.
from typing import Any

from hf_compress.options import check_list

LONGEST = 500  # Characters of a pattern.
MOST = 1000  # Patterns in one option.
NAME = 50  # Characters of a typical module name.
DEAREST = 200_000  # Ways to match such a name; three `.*` have 125,000.
ONCE = 1  # A repeat at most this often, `?`, is a choice between two.


def check_patterns(option: str, patterns: Sequence[str]) -> None:
    r"""Check that regular expressions are valid, and that no search can take more than a moment.

    A pattern such as `(.+)+x` tries exponentially many ways to match a name that it does not match.

    Args:
        option: the name of the option, for errors.
        patterns: regular expressions to be searched for in module names.

    Raises:
        ValueError: a pattern is not valid or too expensive, there are more than 1,000 of them, or they are one text.

    Example:
        >>> from hf_compress.patterns import check_patterns
        >>> check_patterns("prune_exclude", [r"layer\.(0|1)\..*query"])
        >>> check_patterns("prune_exclude", ["(.+)+x"])
        Traceback (most recent call last):
        ValueError: `--prune_exclude (.+)+x` takes too long to search for: ...
    """
    check_list(option, patterns)
    if len(patterns) > MOST:
        raise ValueError(f"`--{option}` must have at most {MOST:,} patterns; got {len(patterns):,}.")
    for pattern in patterns:
        shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}..."
        if len(pattern) > LONGEST:
            raise ValueError(f"`--{option} {shown}` must have at most {LONGEST} characters; got {len(pattern):,}.")
        try:
            re.compile(pattern)
            ways = _ways(_parser.parse(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"`--{option} {shown}` is not a regular expression: {error}.") from error
        if ways > DEAREST:
            raise ValueError(
                f"`--{option} {shown}` takes too long to search for: it can match a name in too many ways. Use fewer "
                "`*`, `+` and `|`, and none of them inside a repeated group."
            )


def _ways(pattern: Any) -> float:
    """Return an upper bound for the number of ways in which the parsed pattern can match part of a name."""
    ways = 1.0
    for operator, value in pattern:
        name = str(operator)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = min(value[0], NAME), min(value[1], NAME), _ways(value[2])
            ways *= (most - least + 1) * (inner if most <= ONCE else _power(inner, most))
        elif name == "BRANCH":
            ways *= sum(_ways(branch) for branch in value[1])
        elif isinstance(value, tuple | list):
            for part in value:
                ways *= _ways(part) if isinstance(part, _parser.SubPattern) else 1.0
        elif isinstance(value, _parser.SubPattern):
            ways *= _ways(value)
    return ways


def _power(base: float, exponent: int) -> float:
    return math.inf if base > 1 and exponent * math.log(base) > math.log(1e12) else base**exponent
