"""Rounding with error feedback: the outputs stay closer than by rounding to nearest, and zeros stay."""

import itertools

import pytest
import torch

from hf_compress.rate import round_with_feedback
from hf_compress.rate.feedback import BLOCK, DAMPING


def _case(width: int, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, width, generator=generator) @ torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(rows, width, generator=generator), torch.full((rows, 1), 0.7), inputs.t() @ inputs


def _error(rows: torch.Tensor, weight: torch.Tensor, moments: torch.Tensor) -> float:
    difference = (rows - weight).double()
    return float(((difference @ moments.double()) * difference).sum())


def _one_column_at_a_time(rows: torch.Tensor, step: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """The optimal brain surgeon: after each column the inverse is that of the columns which are left."""
    weight, integers = rows.double().clone(), torch.zeros_like(rows)
    damped = moments.double() + DAMPING * moments.double().diagonal().mean() * torch.eye(len(moments))
    for column in range(rows.shape[1]):
        inverse = torch.linalg.inv(damped[column:, column:])
        integers[:, column] = (weight[:, column] / step[:, 0]).round()
        error = (weight[:, column] - integers[:, column] * step[:, 0]) / inverse[0, 0]
        weight[:, column:] -= error[:, None] * inverse[0]
    return integers


def test_it_is_the_optimal_brain_surgeon_column_by_column() -> None:
    rows, step, moments = _case(24)
    assert torch.equal(round_with_feedback(rows, step, moments).float(), _one_column_at_a_time(rows, step, moments))


@pytest.mark.parametrize("width", [1, 24, BLOCK, 2 * BLOCK + 3])
def test_outputs_are_closer_than_by_rounding_to_nearest(width: int) -> None:
    rows, step, moments = _case(width)
    nearest = _error(rows, (rows / step).round() * step, moments)
    found = _error(rows, round_with_feedback(rows, step, moments) * step, moments)
    assert found <= (nearest if width == 1 else 0.7 * nearest)


def test_it_is_near_the_best_integers_of_a_tiny_layer() -> None:
    rows, step, moments = _case(4, rows=1)
    choices = (torch.tensor([choice]) for choice in itertools.product(range(-4, 5), repeat=4))
    best = min(_error(rows, choice * step, moments) for choice in choices)
    nearest = _error(rows, (rows / step).round() * step, moments)
    found = _error(rows, round_with_feedback(rows, step, moments) * step, moments)
    assert best <= found and found - best <= 0.5 * (nearest - best)


def test_pruned_weights_stay_zero_and_their_error_is_fed_back() -> None:
    rows, step, moments = _case(48)
    kept = rows.abs() > rows.abs().median()
    found = round_with_feedback(rows, step, moments, kept)
    assert not found[~kept].any()
    nearest = (rows * kept / step).round() * step
    assert _error(rows, found * step, moments) < _error(rows, nearest, moments)


def test_inputs_that_were_never_seen_are_rounded_to_nearest() -> None:
    rows, step, _ = _case(8)
    assert torch.equal(round_with_feedback(rows, step, torch.zeros(8, 8)).float(), (rows / step).round())


def test_integers_never_leave_their_byte() -> None:
    rows, _, moments = _case(24)
    assert round_with_feedback(rows, torch.full((16, 1), 1e-3), moments).abs().max() <= 127
