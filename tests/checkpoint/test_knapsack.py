"""Choices of bytes, compared with brute force over all choices."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hf_compress.checkpoint.knapsack import Option, worth_making

THINGS = st.lists(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 20)), min_size=1, max_size=4, unique_by=lambda pair: pair[0]
    ),
    min_size=1,
    max_size=4,
).map(
    # For each thing, fewer bytes mean more error, as fewer bits do.
    lambda things: [
        [
            Option(size, error)
            for size, error in zip(
                sorted((size for size, _ in pairs), reverse=True), sorted(error for _, error in pairs), strict=True
            )
        ]
        for pairs in things
    ]
)


def total(things: list[list[Option]], choice: tuple[int, ...]) -> tuple[float, float]:
    chosen = [options[one] for options, one in zip(things, choice, strict=True)]
    return sum(one.bytes for one in chosen), sum(one.error for one in chosen)


@given(THINGS)
def test_choices_shrink_as_their_error_grows(things: list[list[Option]]) -> None:
    totals = [total(things, choice) for choice in worth_making(things)]
    for (larger, less), (smaller, more) in itertools.pairwise(totals):
        assert smaller < larger and more > less


@given(THINGS)
def test_no_choice_has_less_error_for_as_few_bytes(things: list[list[Option]]) -> None:
    everything = [total(things, choice) for choice in itertools.product(*(range(len(options)) for options in things))]
    best = {
        (size, error)
        for size, error in everything
        if not any(other[0] <= size and other[1] <= error and other != (size, error) for other in everything)
    }
    assert {total(things, choice) for choice in worth_making(things)} == best


def test_what_one_large_thing_leaves_is_given_to_the_small_ones() -> None:
    large = [Option(100, 0), Option(60, 30)]
    small = [Option(10, 0), Option(8, 1), Option(6, 5)]
    sizes = [total([large, small, small], choice)[0] for choice in worth_making([large, small, small])]
    assert sizes == [120, 118, 116, 114, 112, 80, 78, 76, 74, 72]


def test_a_hundred_things_fit_any_number_of_bytes() -> None:
    things = [[Option(2.0**bits, 4.0**-bits * (1 + place % 7)) for bits in (8, 7, 6, 5, 4, 3)] for place in range(100)]
    choices = worth_making(things)
    sizes = [total(things, choice)[0] for choice in choices]
    assert max(larger - smaller for larger, smaller in itertools.pairwise(sizes)) <= 2.0**8 - 2.0**7
    assert choices[0] == (0,) * 100 and choices[-1] == (5,) * 100


def test_nothing_has_one_choice() -> None:
    assert worth_making([]) == [()]
