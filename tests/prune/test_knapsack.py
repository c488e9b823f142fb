"""The knapsack: against all choices of small cases."""

import itertools

import numpy as np
import pytest

from hf_compress.prune.knapsack import STEPS, Option, least_loss


def best(things: list[list[Option]], budget: float) -> float | None:
    """Return the least loss of all choices within the budget, by trying each."""
    losses = [
        sum(option.loss for option in choice)
        for choice in itertools.product(*things)
        if sum(option.cost for option in choice) <= budget
    ]
    return min(losses, default=None)


def totals(things: list[list[Option]], chosen: list[int]) -> tuple[float, float]:
    options = [options[number] for options, number in zip(things, chosen, strict=True)]
    return sum(option.cost for option in options), sum(option.loss for option in options)


def random_things(draw: np.random.Generator) -> list[list[Option]]:
    return [
        [Option(float(draw.integers(0, 9)), float(draw.random())) for _ in range(draw.integers(1, 5))]
        for _ in range(draw.integers(1, 6))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_within_the_budget_loses_less(seed: int) -> None:
    draw = np.random.default_rng(seed)
    things = random_things(draw)
    # Powers of two above the cheapest choice, so that costs are whole numbers of steps.
    budget = sum(min(option.cost for option in options) for options in things) + 2.0 ** draw.integers(0, 5)
    chosen = least_loss(things, budget)
    assert chosen is not None
    cost, loss = totals(things, chosen)
    assert cost <= budget
    assert loss == pytest.approx(best(things, budget))


@pytest.mark.parametrize("seed", range(20))
def test_any_budget_is_kept_and_all_but_a_few_steps_used(seed: int) -> None:
    draw = np.random.default_rng(100 + seed)
    things, budget = random_things(draw), float(30 * draw.random())
    chosen, least = least_loss(things, budget), best(things, budget)
    assert (chosen is None) == (least is None)
    if chosen is not None and least is not None:
        cost, loss = totals(things, chosen)
        tighter = best(things, budget * (1 - len(things) / STEPS))
        assert cost <= budget + 1e-9
        assert loss >= least - 1e-9
        assert tighter is None or loss <= tighter + 1e-9


def test_what_fits_exactly_is_found() -> None:
    things = [[Option(0.1, 1.0), Option(0.3, 0.0)], [Option(0.2, 2.0)]]
    assert least_loss(things, 0.1 + 0.2) == [0, 0]
    assert least_loss(things, 0.5) == [1, 0]


def test_nothing_is_returned_where_nothing_fits() -> None:
    assert least_loss([[Option(2.0, 0.0)], [Option(1.0, 0.0)]], 2.9) is None
