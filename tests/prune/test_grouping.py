"""Groups are chosen by their sums, with exact numbers, and those that stay make up for the others."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_compress import PruningArguments
from hf_compress.prune import Coverage
from hf_compress.prune.grouping import choose_groups, correct, group_losses
from hf_compress.rate import damped
from tests.tiny import bert


def covered(scope: str = "layer", pattern: str = "neurons") -> Coverage:
    return Coverage.of(bert(), PruningArguments(prune_sparsity=0.5, prune_pattern=pattern, prune_scope=scope))


def scores(coverage: Coverage, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 12, block.count).astype(float) for block in coverage.blocks]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99])
def test_the_lowest_scores_go_first(sparsity: float) -> None:
    coverage = covered()
    found = scores(coverage)
    for kept, ours in zip(choose_groups(coverage, found, sparsity, None), found, strict=True):
        lowest = np.argsort(ours, kind="stable")[: int(sparsity * 64)]
        assert set(np.flatnonzero(~kept)) == set(lowest)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_choices_nest_as_sparsity_grows(scope: str) -> None:
    coverage = covered(scope, "neurons+heads")
    choices = [choose_groups(coverage, scores(coverage), share, None) for share in np.linspace(0, 0.99, 40)]
    for less, more in itertools.pairwise(choices):
        assert all((one >= other).all() for one, other in zip(less, more, strict=True))


def test_over_the_model_no_layer_loses_all_groups() -> None:
    coverage = covered("global")
    low, high = np.zeros(64), np.ones(64)
    kept = choose_groups(coverage, [low, high], 0.6, None)
    assert [int(one.sum()) for one in kept] == [1, 51]
    assert sum(int((~one).sum()) for one in kept) == int(0.6 * 128)


def test_a_pruned_group_stays_pruned() -> None:
    coverage = covered()
    found = scores(coverage)
    alive = [np.arange(64) % 4 > 0 for _ in found]
    for kept, still in zip(choose_groups(coverage, found, 0.5, alive), alive, strict=True):
        assert not kept[~still].any()
        assert kept.sum() == 32


def test_scores_that_are_no_numbers_are_refused() -> None:
    coverage = covered()
    found = scores(coverage)
    found[1][3] = np.nan
    with pytest.raises(ValueError, match=r"layer.1 at step 7 holds NaN in 1 of 64 neurons.*diverged"):
        choose_groups(coverage, found, 0.5, None, 7)


def inputs(rows: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=draw) @ torch.randn(width, width, generator=draw)


@pytest.mark.parametrize("size", [1, 3])
def test_a_loss_is_what_the_best_correction_leaves(size: int) -> None:
    moments = (seen := inputs(50, 12)).T @ seen
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    indices = torch.arange(12).view(-1, size)
    kept = torch.ones(len(indices), dtype=torch.bool)
    kept[1] = False
    rows[:, indices[1]] = 0
    losses = group_losses(rows, moments, indices, kept)
    root = torch.linalg.cholesky(damped(moments)).T  # As inputs, it has these moments.
    for group in torch.nonzero(kept).flatten().tolist():
        stays = [place for other in range(len(indices)) if other != group and kept[other] for place in indices[other]]
        wanted = root @ rows.double().T
        best = torch.linalg.lstsq(root[:, stays], wanted).solution
        left = (wanted - root[:, stays] @ best).square().sum()
        assert losses[group] == pytest.approx(float(left), rel=1e-6)
    assert losses[1] == 0


def test_the_correction_is_that_of_least_squares() -> None:
    moments = (seen := inputs(50, 12)).T @ seen
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    kept = torch.arange(12) % 3 > 0
    root = torch.linalg.cholesky(damped(moments)).T
    best = torch.linalg.lstsq(root[:, kept], root @ rows.double().T).solution.T
    correct(rows, moments, kept)
    assert torch.allclose(rows[:, kept].double(), best, rtol=1e-4, atol=1e-5)
    assert not rows[:, ~kept].any()
