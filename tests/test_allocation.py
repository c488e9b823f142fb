"""Choices of bytes: against all choices there are."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hf_compress.allocation import Option, worth_making

THINGS = st.lists(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 20)), min_size=1, max_size=4, unique_by=lambda pair: pair[0]
    ),
    min_size=1,
    max_size=4,
).map(
    # Of each, the fewer bytes the more error, as of fewer bits.
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
def test_the_first_choice_has_the_least_error_and_the_last_the_fewest_bytes(things: list[list[Option]]) -> None:
    choices = worth_making(things)
    everything = [total(things, choice) for choice in itertools.product(*(range(len(options)) for options in things))]
    assert total(things, choices[0])[1] == min(error for _, error in everything)
    assert total(things, choices[-1])[0] == min(size for size, _ in everything)


@given(THINGS, st.fractions(0, 5))
def test_whatever_a_byte_costs_no_choice_is_cheaper_than_the_best_of_these(
    things: list[list[Option]], price: float
) -> None:
    """By Everett's theorem such are the best for their bytes; only what lies between two of them may be missed."""

    def cost(choice: tuple[int, ...]) -> float:
        size, error = total(things, choice)
        return error + price * size

    everything = itertools.product(*(range(len(options)) for options in things))
    assert min(map(cost, worth_making(things))) == min(map(cost, everything))


def test_what_one_large_thing_leaves_is_given_to_the_small_ones() -> None:
    large = [Option(100, 0), Option(60, 30)]
    small = [Option(10, 0), Option(8, 1), Option(6, 5)]
    sizes = [total([large, small, small], choice)[0] for choice in worth_making([large, small, small])]
    assert sizes == [120, 118, 116, 114, 112, 80, 78, 76, 74, 72]


def test_nothing_has_one_choice() -> None:
    assert worth_making([]) == [()]
