"""The linear model, compared with plain least squares, textbook intervals and simulated effects."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hf_compress.study.analysis import effects
from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.grid.combinations import COMBINATIONS

Make = Callable[..., list[Measurement]]


def test_simulated_effects_are_recovered(make_measurements: Make) -> None:
    found = effects.interactions(make_measurements(noise=0.0, seeds={1: 2}), 0.6)
    expected = {"kd": 1.0, "mp": -2.0, "int8": -0.5, "kd+mp": 0.8, "kd+int8": 0.0, "mp+int8": 0.0, "kd+mp+int8": 0.0}
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(expected, abs=1e-9)
    for estimate in found.values():
        assert estimate.interval == pytest.approx((estimate.value, estimate.value), abs=1e-6)


def test_absorbing_blocks_equals_least_squares_with_dummies(generator: np.random.Generator) -> None:
    blocks = np.repeat(np.arange(6), 5)
    design, values = generator.normal(size=(30, 3)), generator.normal(size=30)
    weights = generator.uniform(0.5, 2, 30)
    found, _ = effects.absorbing_fit(design, values, blocks, blocks, weights)
    dummies = np.hstack([design, np.eye(6)[blocks]])
    root = np.sqrt(weights)
    plain = np.linalg.lstsq(root[:, None] * dummies, root * values, rcond=None)[0]
    assert np.allclose(found, plain[:3])


def test_a_balanced_study_gives_students_t_over_tasks(make_measurements: Make) -> None:
    measurements = make_measurements(tasks=("cola", "mrpc", "qnli", "sst2"), layers=(6, 1), noise=1.0)
    found = effects.interactions(measurements, 0.6)
    scores = {(o.task, o.model, o.combination): o.score for o in measurements}
    by_task = []
    for task in ("cola", "mrpc", "qnli", "sst2"):
        of = [{name: scores[task, model, name] for name in COMBINATIONS} for model in ("synthetic-6", "synthetic-1")]
        by_task.append(np.mean([s["kd+mp"] - s["kd"] - s["mp"] + s["dense"] for s in of]))
    estimate = found["kd+mp"]
    assert estimate.value == pytest.approx(np.mean(by_task))
    assert estimate.interval == pytest.approx(stats.t.interval(0.95, 3, np.mean(by_task), stats.sem(by_task)))
    assert estimate.clusters == 4


def test_a_model_with_more_seeds_weighs_no_more(make_measurements: Make) -> None:
    measurements = make_measurements(layers=(3, 1), seeds={1: 4}, noise=1.0)
    found = effects.interactions(measurements, 0.6)["kd"].value
    by_model = []
    for model in ("synthetic-3", "synthetic-1"):
        mine = [o for o in measurements if o.model == model]
        taught, plain = ([o.score for o in mine if o.combination == name] for name in ("kd", "dense"))
        by_model.append(np.mean(taught) - np.mean(plain))
    assert found == pytest.approx(np.mean(by_model))


def test_intervals_cover_simulated_effects_as_often_as_stated(make_measurements: Make) -> None:
    tasks = tuple(f"task{number}" for number in range(5))
    hits = []
    for seed in range(60):
        found = effects.interactions(make_measurements(tasks=tasks, layers=(3,), noise=1.0, seed=seed), 0.6)["kd+mp"]
        assert found.interval is not None
        hits.append(found.interval[0] <= 0.8 <= found.interval[1])
    assert 0.87 <= np.mean(hits) <= 1.0


def test_two_tasks_give_a_number_and_no_interval(make_measurements: Make) -> None:
    measurements = make_measurements(tasks=("cola", "sst2"))
    assert effects.interactions(measurements, 0.6)["kd"].interval is None
    gain = effects.gains(measurements, "kd", "mp", "kd+mp", 0.6)
    assert gain is not None and gain.score.interval is None


def test_terms_whose_parts_were_not_measured_are_left_out(make_measurements: Make) -> None:
    measurements = [o for o in make_measurements(noise=0.0) if o.combination not in ("kd", "kd+mp+int8")]
    found = effects.interactions(measurements, 0.6)
    assert list(found) == ["mp", "int8", "mp+int8"]
    assert found["mp"].value == pytest.approx(-2.0)
    assert effects.interactions([o for o in measurements if o.combination == "mp"], 0.6) == {}


def test_a_study_without_pairs_says_so(make_measurements: Make) -> None:
    measurements = [o for o in make_measurements() if (o.combination == "kd") == (o.model == "synthetic-1")]
    with pytest.raises(ValueError, match="cannot separate the effects of the methods"):
        effects.interactions([o for o in measurements if o.combination in ("dense", "kd")], 0.6)


def test_a_gain_is_a_mean_difference_and_a_mean_ratio(make_measurements: Make) -> None:
    measurements = make_measurements(noise=0.0, sparsities=(0.6, 0.9))
    gain = effects.gains(measurements, "mp", "kd", "kd+mp", 0.9)
    assert gain is not None and gain.score.value == pytest.approx(-1.2) and gain.blocks == 9
    ratios = [(11.9 + rest) / (11.9 + 0.1 * rest) for rest in (10.8, 5.5, 2.0)]
    assert gain.analytic == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-3)
    assert effects.gains([o for o in measurements if o.combination != "kd"], "mp", "kd", "kd+mp", 0.9) is None
