"""The table of latency: what it predicts, and that it never falls."""

import itertools

import numpy as np
import pytest

from hf_compress.models.blocks import find_groups
from hf_compress.prune.latency import Course, LatencyTable, never_falling
from tests.tiny import bert

NEURONS = Course("neurons", count=64, blocks=2, kept=[2, 32, 64], shares=[0.6, 0.8, 1.0])
HEADS = Course("heads", count=2, blocks=2, kept=[1, 2], shares=[0.8, 1.0])


def table(least: float = 0.4) -> LatencyTable:
    return LatencyTable("1 x 128 tokens", 0.01, least, (NEURONS, HEADS), "int8", "ONNX Runtime, 1 thread", "a CPU")


def test_what_blocks_save_adds_up() -> None:
    blocks = find_groups(bert(), ["neurons", "heads"])
    neurons = [block for block in blocks if block.kind == "neurons"]
    assert table().speedup(blocks, {}) == 1
    assert table().saved(neurons[0], 32) == pytest.approx(0.1)
    assert table().saved(neurons[0], 48) == pytest.approx(0.05)
    assert table().speedup(blocks, {neurons[0].name: 32, neurons[1].name: 48}) == pytest.approx(1 / 0.85)


def test_the_sum_meets_what_all_blocks_save_together() -> None:
    blocks = find_groups(bert(), ["neurons", "heads"])
    fewest = {block.name: 2 if block.kind == "neurons" else 1 for block in blocks}
    for least in (0.3, 0.4, 0.5):
        assert table(least).speedup(blocks, fewest) == pytest.approx(table(least).most)


def test_pooled_values_are_the_closest_that_never_fall() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        values = draw.random(5)
        found = never_falling(values.tolist())
        assert all(one <= other for one, other in itertools.pairwise(found))
        error = np.square(np.array(found) - values).sum()
        for _ in range(200):  # No other such sequence near it is closer.
            other = np.sort(np.array(found) + draw.normal(0, 0.1, 5))
            assert np.square(other - values).sum() >= error - 1e-12


def test_a_table_survives_its_file() -> None:
    assert LatencyTable.from_dict(table().to_dict()) == table()
