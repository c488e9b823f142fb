"""A panel compares the same tasks, and its draws have the variance of the runs."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.panel import Point, complete, draw, expanded_interval, panel

Make = Callable[..., list[Measurement]]


def test_means_are_over_seeds_and_holes_stay_holes(make_measurements: Make) -> None:
    measurements = [o for o in make_measurements(seeds={1: 3}) if (o.task, o.model) != ("sst2", "synthetic-6")]
    whole = panel(measurements)
    place = whole.tasks.index("cola"), whole.column(Point("synthetic-1", "kd", 0.0))
    mine = [o.score for o in measurements if (o.task, o.model, o.combination) == ("cola", "synthetic-1", "kd")]
    assert whole.scores[place] == pytest.approx(np.mean(mine)) and whole.seeds[place] == 3
    assert np.isnan(whole.scores[whole.tasks.index("sst2"), whole.column(Point("synthetic-6", "kd", 0.0))])
    assert whole.models == ("synthetic-6", "synthetic-3", "synthetic-1"), "the largest first"


def test_the_complete_part_is_the_one_with_the_most_cells(make_measurements: Make) -> None:
    measurements = make_measurements()
    lacking = [o for o in measurements if (o.task, o.model) != ("sst2", "synthetic-6")]
    full = complete(panel(lacking))
    assert full.tasks == ("cola", "mrpc", "sst2") and len(full.points) == 16, "3 x 16 cells beat 2 x 24, by tasks"
    few = [o for o in measurements if o.task != "sst2" or o.model == "synthetic-6"]
    full = complete(panel(few))
    assert full.tasks == ("cola", "mrpc") and len(full.points) == 24, "2 x 24 beat 3 x 8"
    assert not np.isnan(full.scores).any()


def test_a_point_without_its_control_is_left_out(make_measurements: Make) -> None:
    measurements = [o for o in make_measurements() if (o.model, o.combination) != ("synthetic-3", "dense")]
    assert {point.model for point in complete(panel(measurements)).points} == {"synthetic-6", "synthetic-1"}


def test_draws_scatter_as_the_seeds_did_also_where_there_is_one(make_measurements: Make) -> None:
    full = complete(panel(make_measurements(tasks=("cola",), layers=(3, 1), seeds={1: 25}, noise=0.5)))
    draws = draw(full)
    assert draws.over == "seeds" and draws.units == 8 * 24 + 1
    one, many = (full.column(Point(model, "kd", 0.0)) for model in ("synthetic-3", "synthetic-1"))
    assert draws.scores[:, 0, one].std() == pytest.approx(0.5, rel=0.1)
    assert draws.scores[:, 0, many].std() == pytest.approx(0.5 / 5, rel=0.1)
    assert draws.scores[:, 0, one].mean() == pytest.approx(full.scores[0, one], abs=0.05)


def test_the_same_panel_gives_the_same_draws(make_measurements: Make) -> None:
    full = complete(panel(make_measurements(seeds={1: 3})))
    first, again = draw(full, 50), draw(full, 50)
    assert np.array_equal(first.scores, again.scores) and np.array_equal(first.picked, again.picked)
    assert not np.array_equal(first.scores, draw(full, 50, seed=1).scores)


def test_too_few_tasks_and_seeds_give_no_interval(make_measurements: Make) -> None:
    draws = draw(complete(panel(make_measurements(tasks=("cola", "sst2")))), 50)
    assert draws.over == "" and draws.interval(np.arange(50.0)) is None
    assert draw(complete(panel(make_measurements())), 50).over == "tasks"
    assert draw(complete(panel(make_measurements(tasks=("cola",), seeds={6: 2}))), 50).over == "seeds"
    assert draw(complete(panel(make_measurements(seeds={6: 2}))), 50).over == "tasks and seeds"


def test_the_mean_over_tasks_is_of_the_tasks_that_were_drawn(make_measurements: Make) -> None:
    draws = draw(complete(panel(make_measurements())), 20)
    means = draws.over_tasks(draws.scores[:, :, 0])
    by_hand = [draws.scores[i, draws.picked[i], 0].mean() for i in range(20)]
    assert np.allclose(means, by_hand)


def test_the_expanded_interval_of_normal_numbers_is_students_t(generator: np.random.Generator) -> None:
    numbers = generator.normal(size=12)
    means = generator.choice(numbers, (200_000, 12)).mean(axis=1)
    low, high = expanded_interval(means, 12)
    student = stats.t.interval(0.95, 11, numbers.mean(), numbers.std(ddof=1) / np.sqrt(12))
    assert (low, high) == pytest.approx(student, abs=0.06)
    plain = np.quantile(means, [0.025, 0.975])
    assert low < plain[0] and high > plain[1]
