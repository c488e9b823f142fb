"""Intervals hold the truth as often as they say, and those of a difference are paired."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hf_compress.report.comparing import NOT_RECORDED, with_intervals
from hf_compress.report.facts import Control
from hf_compress.report.intervals import Interval, bootstrap, ends, mcnemar, wilson
from hf_compress.report.outputs import Outputs
from hf_compress.report.report import Report

stats = pytest.importorskip("scipy.stats")
sklearn = pytest.importorskip("sklearn.metrics")

GOLDEN = Path(__file__).parents[1] / "golden"
Scores = Mapping[str, Callable[[np.ndarray, np.ndarray], float]]
ACCURACY: Scores = {"accuracy": lambda labels, predicted: float((labels == predicted).mean())}
PEARSON: Scores = {"pearson": lambda labels, predicted: float(stats.pearsonr(labels, predicted).statistic)}


def compared(
    compressed: Outputs, dense: Outputs | None, scores: Scores, names: Mapping[int, str] | None = None
) -> Report:
    """The golden report with the intervals of these outputs, scored by `scores`."""

    def scored(outputs: Outputs) -> dict[str, float]:
        return {name: score(outputs.labels, outputs.predicted) for name, score in scores.items()}

    report = replace(
        Report.load(GOLDEN),
        main_metric=next(iter(scores)),
        compressed=scored(compressed),
        dense=None if dense is None else scored(dense),
        teacher=None,
    )
    return with_intervals(report, compressed, dense, names or {})


def classified(labels: np.ndarray, right: np.ndarray) -> Outputs:
    return Outputs("classes", labels, np.where(right, labels, 1 - labels))


def draw(rows: int, dense: float = 0.8, lost: float = 0.1, seed: int = 0) -> tuple[Outputs, Outputs]:
    """A dense model that is right with probability `dense`, and a compressed one that disagrees on a share `lost`."""
    random = np.random.default_rng(seed)
    labels, right = random.integers(2, size=rows), random.random(rows) < dense
    return classified(labels, right), classified(labels, right ^ (random.random(rows) < lost))


def test_equal_models_differ_by_exactly_nothing() -> None:
    dense, _ = draw(200)
    report = compared(dense, dense, ACCURACY)
    difference = report.comparison["accuracy"]
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)
    assert not difference.excludes_zero
    assert report.intervals["accuracy"].low < report.compressed["accuracy"] < report.intervals["accuracy"].high


def test_a_loss_of_the_compressed_model_is_negative() -> None:
    labels = np.arange(400) % 2
    dense, compressed = classified(labels, np.arange(400) > 20), classified(labels, np.arange(400) > 80)
    report = compared(compressed, dense, ACCURACY)
    difference = report.comparison["accuracy"]
    assert difference.value == pytest.approx(-60 / 400)
    assert difference.low < difference.value < difference.high < 0
    assert difference.excludes_zero and difference.p_value == pytest.approx(2 * 0.5**60)


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    dense, compressed = draw(1000, lost=0.01)
    report = compared(compressed, dense, ACCURACY)
    paired, alone = report.comparison["accuracy"], report.intervals["accuracy"]
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)


def test_the_same_rows_give_the_same_interval() -> None:
    dense, compressed = draw(300)
    assert compared(compressed, dense, ACCURACY) == compared(compressed, dense, ACCURACY)


def test_an_interval_says_how_it_was_made_and_what_it_counts() -> None:
    dense, compressed = draw(300)
    report = compared(compressed, dense, ACCURACY)
    one, two = report.intervals["accuracy"], report.comparison["accuracy"]
    assert (one.method, one.units, one.count, one.level) == ("Wilson score interval", "rows", 300, 0.95)
    assert (two.method, two.units, two.count) == ("paired bootstrap, 2,000 resamples of rows", "rows", 300)


def test_tokens_are_counted_and_their_rows_resampled() -> None:
    """All tokens of a row are right or all are wrong, so only rows tell something: 40 of them, not 400 tokens."""
    right = np.random.default_rng(0).random(40) < 0.7
    labels = np.ones(400, dtype=int)
    outputs = Outputs("tokens", labels, np.repeat(right, 10).astype(int), lengths=np.full(40, 10))
    report = compared(outputs, outputs, ACCURACY)
    interval = report.intervals["accuracy"]
    assert (interval.units, interval.count) == ("tokens", 400)
    assert report.comparison["accuracy"].p_value is None
    low, high = wilson(int(right.sum()), 40)
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.15)


def test_entities_are_the_unit_of_their_f1() -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    outputs = Outputs("tokens", np.array([1, 2, 0, 1] * 3), np.array([1, 2, 0, 0] * 3), lengths=np.full(3, 4))
    report = compared(outputs, outputs, {"f1": lambda labels, predicted: 2 * 3 / (6 + 3)}, names)
    assert (report.intervals["f1"].units, report.intervals["f1"].count) == ("entities", 6)


def test_a_metric_without_interval_says_why() -> None:
    dense, compressed = draw(50)
    report = compared(compressed, dense, {**ACCURACY, "fluency": lambda labels, predicted: 0.5})
    assert list(report.intervals) == list(report.comparison) == ["accuracy"]
    assert report.without_interval == {
        "fluency": "`fluency` could not be computed again from the predictions of the rows."
    }
    alone = with_intervals(replace(report, dense={"accuracy": 0.5, "fluency": 0.5}), compressed, None, {})
    assert alone.comparison == {} and alone.intervals == report.intervals
    assert alone.without_interval["accuracy"] == f"The difference to the dense model has no interval. {NOT_RECORDED}"


def resampled(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    """The metric by scikit-learn or SciPy."""
    measures = {
        "f1": lambda: sklearn.f1_score(labels, predicted, zero_division=0),
        "matthews_correlation": lambda: sklearn.matthews_corrcoef(labels, predicted),
        "pearson": lambda: stats.pearsonr(labels, predicted).statistic,
        "spearmanr": lambda: stats.spearmanr(labels, predicted).statistic,
    }
    return float(measures[metric]())


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation", "pearson", "spearmanr"])
def test_differences_are_those_of_a_loop_over_resamples(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_compress.report.comparing.bootstrap", partial(bootstrap, draws=40))
    if metric in ("f1", "matthews_correlation"):
        dense, compressed = draw(80)
        _, control = draw(80, lost=0.2)
    else:
        labels, *errors = np.random.default_rng(0).normal(size=(4, 80))
        dense, compressed, control = (Outputs("numbers", labels, labels + error) for error in errors)
    found = {name: {metric: resampled(metric, one.labels, one.predicted)} for name, one in
             {"dense": dense, "compressed": compressed, "control": control}.items()}  # fmt: skip
    report = replace(
        Report.load(GOLDEN),
        main_metric=metric,
        compressed=found["compressed"],
        dense=found["dense"],
        teacher=None,
        control=Control("control", 9, found["control"]),
    )
    report = with_intervals(report, compressed, dense, {}, control=control)
    random = np.random.default_rng(0)
    rows = [random.integers(80, size=80) for _ in range(40)]
    often = {name: np.array([resampled(metric, one.labels[chosen], one.predicted[chosen]) for chosen in rows])
             for name, one in {"dense": dense, "compressed": compressed, "control": control}.items()}  # fmt: skip
    assert report.control is not None
    for name, comparison in (("dense", report.comparison), ("control", report.control.comparison)):
        interval, expected = comparison[metric], often["compressed"] - often[name]
        assert interval.value == pytest.approx(found["compressed"][metric] - found[name][metric])
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_one_row_allows_no_interval() -> None:
    dense, compressed = draw(1)
    report = compared(compressed, dense, ACCURACY)
    assert report.intervals == report.comparison == {}
    assert report.without_interval == {"accuracy": "One row allows no interval."}


def test_a_percentage_has_an_interval_of_percentages() -> None:
    dense, compressed = draw(300)
    share = compared(compressed, dense, ACCURACY)
    percent = compared(compressed, dense, {"accuracy": lambda *both: 100 * ACCURACY["accuracy"](*both)})
    for one, hundred in ((share.intervals, percent.intervals), (share.comparison, percent.comparison)):
        assert hundred["accuracy"].low == pytest.approx(100 * one["accuracy"].low)
        assert hundred["accuracy"].high == pytest.approx(100 * one["accuracy"].high)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (7, 10), (746, 872), (1, 1)])
def test_wilson_s_interval_is_scipy_s(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (3, 3), (1, 5), (0, 12), (40, 62), (2000, 2150)])
def test_mcnemar_s_test_is_the_exact_binomial_test(one: int, other: int) -> None:
    expected = 1.0 if one + other == 0 else stats.binomtest(one, one + other).pvalue
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(expected)


def test_resamples_do_not_depend_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    scorers = {"mean": lambda weights: weights @ values / 50}
    whole = bootstrap(scorers, 50, draws=100)["mean"]
    monkeypatch.setattr("hf_compress.report.intervals.MOST_WEIGHTS", 350)
    assert np.allclose(bootstrap(scorers, 50, draws=100)["mean"], whole)
    # The spread of a mean, known in closed form.
    assert whole.std() == pytest.approx(values.std() / 50**0.5, rel=0.2)


def test_the_ends_are_percentiles() -> None:
    assert ends(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_zero_is_excluded_on_either_side() -> None:
    interval = Interval(0.1, 0.05, 0.2, 0.95, "", "rows", 9)
    assert interval.excludes_zero and replace(interval, low=-0.3, high=-0.1).excludes_zero
    assert not replace(interval, low=0.0).excludes_zero


@pytest.mark.slow
def test_the_interval_of_a_difference_holds_the_truth() -> None:
    """200 evaluation sets of 300 rows: 95 % of the intervals hold the true difference of accuracies."""
    dense, lost = 0.8, 0.1
    truth = lost * (1 - 2 * dense)
    held = 0
    for seed in range(200):
        before, after = draw(300, dense, lost, seed)
        interval = compared(after, before, ACCURACY).comparison["accuracy"]
        held += interval.low <= truth <= interval.high
    assert held / 200 == pytest.approx(0.95, abs=0.035)


@pytest.mark.slow
def test_the_interval_of_pearson_s_difference_holds_the_truth() -> None:
    """Two models whose predictions have known correlations with the labels, and share a part of their errors."""

    def model(labels: np.ndarray, noise: np.ndarray, correlation: float) -> Outputs:
        return Outputs("numbers", labels, correlation * labels + (1 - correlation**2) ** 0.5 * noise)

    held = 0
    for seed in range(200):
        labels, shared, own = np.random.default_rng(seed).normal(size=(3, 300))
        report = compared(model(labels, 0.8 * shared + 0.6 * own, 0.75), model(labels, shared, 0.8), PEARSON)
        interval = report.comparison["pearson"]
        held += interval.low <= -0.05 <= interval.high
    assert held / 200 == pytest.approx(0.95, abs=0.035)
