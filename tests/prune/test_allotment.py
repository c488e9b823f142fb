"""The allotment of groups: against all allotments of small models, and what it refuses."""

import itertools

import numpy as np
import pytest

from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import Groups
from hf_compress.prune import Course, LatencyTable, SpeedGoal
from hf_compress.prune.allotment import counts
from tests.tiny import bert

NEURONS = Course("neurons", count=4, blocks=2, kept=[1, 2, 4], shares=[0.6, 0.65, 1.0])
HEADS = Course("heads", count=2, blocks=2, kept=[1, 2], shares=[0.8, 1.0])
TABLE = LatencyTable("1 x 128 tokens", 0.01, 0.4, (NEURONS, HEADS), "int8", "ONNX Runtime, 1 thread", "a CPU")


@pytest.fixture(scope="module")
def blocks() -> list[Groups]:
    """The blocks of a BERT of two layers, four neurons and two heads."""
    return find_groups(bert(intermediate_size=4), ["neurons", "heads"])


def errors(blocks: list[Groups], seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.random(block.count) for block in blocks]


def lost(blocks: list[Groups], losses: list[np.ndarray], kept: dict[str, int]) -> float:
    """Return the sum of the errors of the groups that go."""
    return sum(
        float(np.sort(ours)[: block.count - kept[block.name]].sum())
        for block, ours in zip(blocks, losses, strict=True)
    )


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("speedup", [1.05, 1.3, 1.7, 2.2, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_allotment_as_fast_loses_less(blocks: list[Groups], speedup: float, seed: int, uniform: bool) -> None:
    losses = errors(blocks, seed)
    kept = SpeedGoal(speedup, TABLE).allot(blocks, losses, uniform=uniform)
    assert TABLE.speedup(blocks, kept) >= speedup * (1 - 1e-9)
    others = []
    for numbers in itertools.product(*(range(1, block.count + 1) for block in blocks)):
        other = {block.name: number for block, number in zip(blocks, numbers, strict=True)}
        alike = all(
            len({other[block.name] for block in blocks if block.kind == kind}) == 1 for kind in ("neurons", "heads")
        )
        # A little faster, because times are counted in steps.
        if TABLE.speedup(blocks, other) >= speedup * (1 + 4 / 4096) and (alike or not uniform):
            others.append(lost(blocks, losses, other))
    assert lost(blocks, losses, kept) <= min(others, default=np.inf) + 1e-9
    if uniform:
        assert len({kept[block.name] for block in blocks if block.kind == "heads"}) == 1


def test_groups_that_count_little_go_first(blocks: list[Groups]) -> None:
    losses = [np.full(block.count, 1.0 if "layer.0" in block.name else 1e-3) for block in blocks]
    kept = SpeedGoal(1.2, TABLE).allot(blocks, losses)
    assert {name for name, number in kept.items() if number < next(b.count for b in blocks if b.name == name)} <= {
        block.name for block in blocks if "layer.1" in block.name
    }


def test_more_speed_than_the_fewest_groups_give_is_refused(blocks: list[Groups]) -> None:
    assert not SpeedGoal(2.6, TABLE).possible
    with pytest.raises(ValueError, match=r"`--compress_speedup 2.6` is more than .* allow: 2\.50\. Lower it"):
        SpeedGoal(2.6, TABLE).allot(blocks, errors(blocks, 0))


def test_large_blocks_keep_thirty_second_parts() -> None:
    found = counts(1536, 48)
    assert found[0] == 1536
    assert found[-1] == 48
    assert {one - other for one, other in itertools.pairwise(found)} == {48}
    assert counts(12, 1) == list(range(12, 0, -1))
