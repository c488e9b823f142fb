"""Schedules against closed forms, masks against a stable sort, scores against their definition."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_compress.models.sharding import Shards
from hf_compress.prune import selection
from hf_compress.prune.criteria import CRITERIA, magnitude_masks
from hf_compress.prune.criterion import Evidence
from hf_compress.prune.schedules import SCHEDULES
from hf_compress.prune.selection import SCOPES, Candidate, disagreements, select_masks, zero_counts

SHAPES = [(48, 64), (7, 129), (1000,), (3, 5)]


def sort_oracle(weights: list[Tensor], count: int) -> list[Tensor]:
    """Return masks of one group by a stable sort of everything: exact, ties by position."""
    magnitudes = torch.cat([weight.flatten().abs() for weight in weights])
    kept = torch.ones(magnitudes.numel(), dtype=torch.bool)
    kept[magnitudes.sort(stable=True).indices[:count]] = False
    parts = kept.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def ranked(scores: list[Tensor], share: float) -> list[Tensor]:
    """Return masks of one group of scores by a stable sort."""
    flat = torch.cat([one.flatten() for one in scores])
    kept = torch.ones(flat.numel(), dtype=torch.bool)
    kept[flat.sort(stable=True).indices[: round(share * flat.numel())]] = False
    parts = kept.split([one.numel() for one in scores])
    return [part.view(one.shape) for part, one in zip(parts, scores, strict=True)]


def oracle(weights: list[Tensor], share: float, scope: str) -> list[Tensor]:
    if scope == "global":
        return sort_oracle(weights, round(share * sum(weight.numel() for weight in weights)))
    return [sort_oracle([weight], round(share * weight.numel()))[0] for weight in weights]


def equal(masks: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(mask, other) for mask, other in zip(masks, others, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.6), (0.25, 0.8), (0.5, 0.5)])
def test_schedules_go_from_initial_to_final_and_never_fall(schedule: str, initial: float, final: float) -> None:
    values = [SCHEDULES[schedule](step / 100, initial, final) for step in range(101)]
    assert values[0] == pytest.approx(initial, abs=1e-15)
    assert values[-1] == final
    assert all(earlier <= later for earlier, later in itertools.pairwise(values))


def test_schedules_match_their_formulas_halfway() -> None:
    assert SCHEDULES["linear"](0.5, 0.2, 0.8) == pytest.approx(0.5)
    # Zhu & Gupta, 2017, eq. 1: s_f + (s_i - s_f) / 8.
    assert SCHEDULES["cubic"](0.5, 0.2, 0.8) == pytest.approx(0.8 - 0.6 / 8)


def test_zero_counts_round_per_tensor_or_over_all() -> None:
    assert zero_counts([10, 3, 5], 0.5, "layer") == [5, 2, 2]
    assert zero_counts([10, 3, 5], 0.5, "global") == [9]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_no_criterion_changes_the_weights(criterion: str) -> None:
    weights = [torch.randn(shape) for shape in SHAPES]
    before = [weight.clone() for weight in weights]
    for weight in weights:
        curvature = torch.rand(weight.shape[-1])
        evidence = Evidence(weight, gradient=torch.randn_like(weight), step=10, curvature=curvature)
        if CRITERIA[criterion].observe is not None:
            CRITERIA[criterion].observe(evidence)
        CRITERIA[criterion].scores(evidence)
    assert equal(weights, before)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.0, 0.0004, 0.3, 0.6, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_masks_are_those_of_a_stable_sort(share: float, scope: str, dtype: torch.dtype) -> None:
    # Sixteen bits leave many ties among so many weights.
    weights = [(torch.randn(shape) * scale).to(dtype) for shape, scale in zip(SHAPES, (1, 0.1, 3, 1), strict=True)]
    masks = magnitude_masks(weights, share, scope)
    assert equal(masks, oracle(weights, share, scope))
    assert all(mask.dtype == torch.bool for mask in masks)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("value", [0.0, -0.0, -0.7, 1e-45, float("inf")])
def test_constant_tensors_are_pruned_from_the_front(value: float, scope: str) -> None:
    weights = [torch.full((50, 60), value), torch.full((11,), value)]
    masks = magnitude_masks(weights, 0.3, scope)
    assert equal(masks, oracle(weights, 0.3, scope))
    assert not masks[0].flatten()[:900].any()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.55, 0.9])
def test_ties_with_existing_zeros_are_exact(share: float, scope: str) -> None:
    """Between two choices half the weights are zero, of either sign."""
    weights = [torch.randn(shape) for shape in SHAPES]
    weights = [weight * mask for weight, mask in zip(weights, magnitude_masks(weights, 0.5, "layer"), strict=True)]
    assert equal(magnitude_masks(weights, share, scope), oracle(weights, share, scope))


@pytest.mark.parametrize("scope", SCOPES)
def test_masks_are_exact_where_a_sample_misleads(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(shape) for shape in SHAPES]
    for bracket in [(-1.0, -1.0), (5.0, 6.0), (0.0, 1e-9)]:
        monkeypatch.setattr(selection, "_bracket", lambda *_, bracket=bracket: (yield from ()) or bracket)
        assert equal(magnitude_masks(weights, 0.6, scope), oracle(weights, 0.6, scope))


def test_the_sample_brackets_the_threshold_despite_outliers() -> None:
    """Speed depends on it: real weights have columns and rows that are far larger than others."""
    weight = torch.randn(384, 384) * torch.where(torch.arange(384) % 3 == 0, 20.0, 1.0)
    for share in (0.1, 0.6, 0.9):
        count, alone = round(share * weight.numel()), Shards()
        scores = selection._Scores([Candidate("weight", weight.numel(), weight.abs)])
        ((low, high),) = alone.together([selection._bracket(scores, count, weight.numel(), alone)])
        inside = ((weight.abs() > low) & (weight.abs() <= high)).float().mean()
        assert (weight.abs() <= low).float().mean() <= share <= (weight.abs() <= high).float().mean()
        assert inside < 0.1


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_masks_on_an_accelerator_are_those_on_a_cpu(share: float, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices use torch in place of numpy. This test runs the torch code on a CPU."""
    weights = [torch.randn(shape).round(decimals=2) for shape in SHAPES]
    monkeypatch.setattr(selection, "_flat", lambda scores: scores.reshape(-1))
    assert equal(magnitude_masks(weights, share, scope), oracle(weights, share, scope))


@pytest.mark.parametrize("scope", SCOPES)
def test_masks_of_transposed_weights_follow_their_own_order(scope: str) -> None:
    weights = [torch.randn(30, 40).round(decimals=1).t(), torch.randn(12, 8).t()]
    assert equal(magnitude_masks(weights, 0.4, scope), oracle(weights, 0.4, scope))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, 1e-40]), min_size=1, max_size=40),
        min_size=1,
        max_size=4,
    ),
    share=st.floats(0, 1),
    more=st.floats(0, 1),
    scope=st.sampled_from(SCOPES),
)
def test_masks_nest_as_sparsity_grows(data: list[list[float]], share: float, more: float, scope: str) -> None:
    weights = [torch.tensor(values) for values in data]
    less, greater = sorted((share, more))
    dense, sparse = magnitude_masks(weights, less, scope), magnitude_masks(weights, greater, scope)
    assert equal(dense, oracle(weights, less, scope))
    assert all((kept <= before).all() for kept, before in zip(sparse, dense, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_masks_derived_from_masked_weights_are_the_same(scope: str) -> None:
    """Resuming depends on it: only the zeros show which weights are pruned."""
    weights = [torch.randn(shape).round(decimals=1) for shape in SHAPES]
    masks = magnitude_masks(weights, 0.6, scope)
    assert equal(magnitude_masks([w * m for w, m in zip(weights, masks, strict=True)], 0.6, scope), masks)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.01, 0.6])
def test_nan_is_refused_with_its_place_and_a_remedy(share: float, scope: str) -> None:
    weights = [torch.randn(shape) for shape in SHAPES]
    weights[1][3, 100] = float("nan")
    with pytest.raises(
        ValueError, match=r"Weight 2 of 4, of shape \(7, 129\), holds NaN in 1 of 903 .*`--learning_rate`"
    ):
        magnitude_masks(weights, share, scope)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_of_any_sign_are_ranked(share: float, scope: str, dtype: torch.dtype) -> None:
    scores = [torch.randn(shape).to(dtype) for shape in SHAPES]
    scores[0][:20] = -torch.inf  # Pruned before.
    candidates = [Candidate("scores", one.numel(), lambda one=one: one, one.dtype) for one in scores]
    expected = [
        mask
        for group in ([scores] if scope == "global" else [[one] for one in scores])
        for mask in ranked(group, share)
    ]
    assert equal(select_masks(candidates, share, scope, Shards()), expected)


def test_digits_order_numbers_as_comparison_does() -> None:
    """Processes agree on a threshold digit by digit; the order of bits must be that of numbers."""
    for dtype in (np.float32, np.float64):
        numbers = np.array([-np.inf, -3.5, -1e-40, -0.0, 0.0, 1e-40, 2.0, np.inf], dtype)
        ordered = selection._ordered(numbers)
        assert (np.diff(ordered.astype(object)) >= 0).all() and len(set(ordered.tolist())) == 7
        assert np.array_equal(selection._value(ordered, numbers.dtype), numbers)


def test_masks_of_zero_are_the_first_of_every_criterion() -> None:
    """A criterion whose masks are found in the weights must rank zeros lowest."""
    for criterion in CRITERIA.values():
        if not criterion.has_state:
            weight = torch.randn(50) * (torch.arange(50) % 2)
            scores = criterion.scores(Evidence(weight))
            assert scores[weight == 0].max() < scores[weight != 0].min()


def test_no_weights_have_no_masks() -> None:
    assert magnitude_masks([], 0.5, "layer") == magnitude_masks([], 0.5, "global") == []
    assert equal(magnitude_masks([torch.ones(0, 4), torch.ones(2)], 0.5, "global")[1:], [torch.tensor([False, True])])


def test_masks_agree_where_there_is_one_process() -> None:
    assert disagreements([torch.ones(3, 3, dtype=torch.bool)], Shards()) == []


def test_the_checksum_tells_masks_with_the_same_count_apart() -> None:
    masks = torch.ones(21, 21, dtype=torch.bool)
    sums = set()
    for position in range(21 * 21):
        mask = masks.clone()
        mask.view(-1)[position] = False
        sums.add(int(selection.checksum(mask)))
    assert len(sums) == 21 * 21
