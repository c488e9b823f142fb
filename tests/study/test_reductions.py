"""The arithmetic of Table 1, by hand and on the paper's figures."""

import itertools

import numpy as np
import pytest

from hf_compress.study.analysis import published, reductions
from hf_compress.study.grid.combinations import COMBINATIONS, DENSE, combine, methods_in, subsets

# Two tasks by three points.
SCORES = np.array([[90.0, 89.6, 85.0], [80.0, 79.0, 79.5]])
SIZES = np.array([[100.0, 50.0, 10.0], [100.0, 50.0, 10.0]])


def test_the_smallest_point_in_tolerance_is_taken_per_task() -> None:
    baseline = np.array([90.0, 80.0])
    smallest = reductions.smallest_within(SCORES, SIZES, baseline)
    assert smallest.tolist() == [50.0, 10.0], "89.6 is within 0.5 of 90, and 79.5 of 80 to the edge"
    assert reductions.reduction(smallest, np.array([200.0, 200.0])).tolist() == [4.0, 20.0]


def test_without_a_good_point_the_ratio_is_1() -> None:
    smallest = reductions.smallest_within(SCORES, SIZES, np.array([95.0, 80.0]))
    assert np.isinf(smallest[0])
    assert reductions.reduction(smallest, np.array([200.0, 200.0])).tolist() == [1.0, 20.0]
    none = reductions.smallest_within(SCORES[:, :0], SIZES[:, :0], np.array([1.0, 1.0]))
    assert np.isinf(none).all()


def test_the_smallest_good_point_may_exceed_the_baseline() -> None:
    smallest = reductions.smallest_within(SCORES[:1], SIZES[:1], np.array([90.3]))
    assert reductions.reduction(smallest, np.array([50.0])).tolist() == [0.5]


def test_draws_are_reduced_one_by_one(generator: np.random.Generator) -> None:
    scores, baseline = SCORES + generator.normal(size=(7, 2, 3)), generator.normal(85, 5, (7, 2))
    together = reductions.smallest_within(scores, SIZES, baseline)
    for place in range(7):
        assert np.array_equal(together[place], reductions.smallest_within(scores[place], SIZES, baseline[place]))


def test_multiplicativity_is_one_where_ratios_multiply() -> None:
    found = {"mp": [np.array(2.0), np.array(3.0)], "int8": [np.array(4.0), np.array(4.0)]}
    assert reductions.multiplicativity(found | {"mp+int8": [np.array(8.0), np.array(12.0)]}, "mp+int8") == 1.0
    assert reductions.multiplicativity(found | {"mp+int8": [np.array(16.0), np.array(6.0)]}, "mp+int8") == 1.0
    assert reductions.multiplicativity(found | {"mp+int8": [np.array(4.0), np.array(6.0)]}, "mp+int8") == 0.5


@pytest.mark.parametrize(
    ("combination", "ratio"), [("kd+int8", 1.16), ("mp+int8", 0.87), ("kd+mp", 1.22), ("kd+mp+int8", 1.41)]
)
def test_the_papers_multiplicativity_follows_from_its_table(combination: str, ratio: float) -> None:
    assert published.multiplicativity(combination) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(
    ("pair", "low", "high"), [("kd+int8", 0.01, 0.38), ("kd+mp", 0.11, 2.06), ("mp+int8", -0.46, 0.23)]
)
def test_the_papers_interactions_follow_from_its_figure(pair: str, low: float, high: float) -> None:
    values = np.concatenate([published.interaction(pair, sparsity) for sparsity in (0.4, 0.6)])
    assert (values.min(), values.max()) == pytest.approx((low, high), abs=0.005)


def test_the_papers_table_roughly_follows_its_figure() -> None:
    """The figure has means over tasks, the table means of ratios: similar, not equal."""
    figure, errors = published.figure1(), []
    for model, name in itertools.product(published.models(), COMBINATIONS):
        if name != DENSE:
            dense_size, dense_score = figure[published.Point(model, DENSE, 0.0)]
            points = [values for point, values in figure.items() if point.combination == name]
            scores, sizes = np.array([[score for _, score in points]]), np.array([[size for size, _ in points]])
            smallest = reductions.smallest_within(scores, sizes, np.array([dense_score]))
            ratio = reductions.reduction(smallest, np.array([dense_size]))[0]
            errors.append(np.log(ratio / published.table1()[model, name]))
    assert len(errors) == 42
    assert np.median(np.abs(errors)) < np.log(1.25)
    assert abs(np.mean(errors)) < 0.2


def test_the_front_is_what_a_search_over_all_pairs_finds(generator: np.random.Generator) -> None:
    sizes, scores = generator.integers(1, 9, 30).astype(float), generator.integers(60, 70, (4, 30)).astype(float)
    for row, found in zip(scores, reductions.front(sizes, scores), strict=True):
        for place in range(30):
            beaten = any(
                sizes[other] <= sizes[place]
                and row[other] >= row[place]
                and (sizes[other], row[other]) != (sizes[place], row[place])
                for other in range(30)
            )
            assert found[place] == (not beaten)


def test_combinations_are_the_eight_subsets() -> None:
    assert len(COMBINATIONS) == len(set(COMBINATIONS)) == 8
    assert all(combine(*reversed(methods_in(name))) == name for name in COMBINATIONS)
    assert subsets("kd+int8") == ("dense", "kd", "int8", "kd+int8")
    assert subsets("kd+mp+int8") == COMBINATIONS
