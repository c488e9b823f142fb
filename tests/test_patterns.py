"""Patterns in options are valid and cheap, whoever wrote them."""

import re
import time

import pytest

from hf_compress.patterns import DEAREST, check_patterns
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments

USEFUL = [
    "query", "pooler$", r"^encoder\.layer\.\d+\.", r"layer\.(0|1|2|3|4|5|6|7|8|9|10|11)\.(attention|output)",
    r"encoder\.layer\.[0-9]{1,2}\..*dense", r".*attention.*self.*", "(?i)Embeddings?", r"(?<!cross)attention", "",
    r"(?:encoder|decoder)\.(?:block|layer)s?\.1?\d\.", "(layer){1}", r"layer\.(?=0)",
]  # fmt: skip
EXPLODING = [
    "(.+)+x",
    "(a|a)+$",
    "(.*)*",
    ".*.*.*.*.*x",
    "(.|.)(.|.)(.|.)" * 8,
    "a?" * 100 + "a" * 100,
    "(?:(?:.{1,9}){1,9}){1,9}x",
]


@pytest.mark.parametrize("pattern", USEFUL)
def test_a_useful_pattern_is_accepted(pattern: str) -> None:
    check_patterns("prune_exclude", [pattern])


@pytest.mark.parametrize("pattern", EXPLODING)
def test_a_pattern_that_explodes_is_refused(pattern: str) -> None:
    for option in ("prune_exclude", "quant_exclude", "quant_bits"):
        arguments = PruningArguments if option.startswith("prune") else QuantizationArguments
        value = f"{pattern}=4" if option == "quant_bits" else pattern
        with pytest.raises(ValueError, match=f"`--{option} .* takes too long to search for"):
            arguments(**{option: [value]})


@pytest.mark.parametrize("pattern", ["(", "[", "a{999999999999}", "*", r"\k"])
def test_a_pattern_that_is_not_valid_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="`--prune_exclude .* is not a regular expression") as refused:
        check_patterns("prune_exclude", [pattern])
    assert len(str(refused.value)) < 250


def test_long_patterns_and_many_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="must have at most 500 characters; got 1,000,000"):
        check_patterns("prune_exclude", ["a" * 1_000_000])
    with pytest.raises(ValueError, match="must have at most 1,000 patterns; got 1,001"):
        check_patterns("prune_exclude", ["a"] * 1001)


def test_the_most_expensive_pattern_allowed_is_fast() -> None:
    pattern = "(?:.|.)?.*.*.x"
    check_patterns("prune_exclude", [pattern])
    start = time.perf_counter()
    assert re.search(pattern, "bert.encoder.layer.11.attention.output.dense.bias.") is None
    assert time.perf_counter() - start < 1.0
    assert DEAREST < 1e6
