"""Steps by sensitivity, and a number of bytes that is met as packed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from hf_compress.models.targets import Target, quantizable
from hf_compress.packing import pack
from hf_compress.rate import Rounding, fit, gather, steps, token_factors

MakeBert = Callable[..., BertForSequenceClassification]
BATCH = {"input_ids": torch.arange(40).reshape(4, 10) % 29}


def _rounding(model: torch.nn.Module) -> tuple[list[Target], Rounding]:
    targets = list({id(target.weight): target for target in quantizable(model)}.values())  # type: ignore[arg-type]
    weights = {target.name: _rows(target, target.weight.detach()) for target in targets}
    return targets, Rounding(weights, gather(model, targets, [BATCH]))  # type: ignore[arg-type]


def _rows(target: Target, tensor: torch.Tensor) -> torch.Tensor:
    """The weight with one row per output, or back: the transpose of the transpose."""
    return tensor.t().contiguous() if target.kind == "conv1d" else tensor


@pytest.fixture
def model(make_bert: MakeBert) -> BertForSequenceClassification:
    return make_bert(vocab_size=400, hidden_size=64, intermediate_size=128).eval()


def test_steps_are_bfloat16_and_follow_the_root_of_sensitivity() -> None:
    rows = torch.randn(20, 30)
    fine, coarse = (steps(rows, sensitivity, 0.1) for sensitivity in (4.0, 1.0))
    assert torch.equal(2 * fine, coarse) and torch.equal(fine.bfloat16().float(), fine)


def test_no_row_needs_more_than_seven_bits_and_a_sign() -> None:
    rows = torch.randn(500, 30) * torch.logspace(-3, 3, 500)[:, None]
    assert float((rows / steps(rows, 1.0, 1e-9)).round().abs().max()) == 127


def test_rare_tokens_get_coarser_steps_within_bounds() -> None:
    factors = token_factors(torch.tensor([0, 1, 100, 10_000]))
    assert torch.equal(factors, factors.sort(0, descending=True).values)
    assert factors.max() == pytest.approx(1 / 0.6) and factors.min() >= 1 / 4
    assert token_factors(torch.zeros(3, dtype=torch.long)).unique().numel() == 1


@pytest.mark.parametrize("bits", [6.0, 3.5, 1.5])
def test_the_packed_bytes_are_those_that_were_asked_for(bits: float, model: BertForSequenceClassification) -> None:
    targets, rounding = _rounding(model)
    limit = bits / 8 * sum(target.weight.numel() for target in targets)
    found = fit(rounding, limit)
    packed = sum(len(pack(one.integers, scale=one.step)) for one in found.weights.values())
    assert 0.97 * limit < packed == found.bytes <= limit


def test_the_constant_as_printed_gives_the_same_weights(model: BertForSequenceClassification) -> None:
    targets, rounding = _rounding(model)
    found = fit(rounding, 3 / 8 * sum(target.weight.numel() for target in targets))
    assert found.constant == float(f"{found.constant:.4g}")
    again = rounding.at(float(f"{found.constant:g}"))
    assert all(torch.equal(one.rows, again[name].rows) for name, one in found.weights.items())


def test_more_bytes_give_less_error_in_the_outputs(model: BertForSequenceClassification) -> None:
    targets, rounding = _rounding(model)
    dense, errors = model(**BATCH).logits, []
    for bits in (2, 4, 6):
        found = fit(rounding, bits / 8 * sum(target.weight.numel() for target in targets))
        weights = {f"{target.name}.weight": _rows(target, found.weights[target.name].rows) for target in targets}
        logits = torch.func.functional_call(model, weights, (), BATCH).logits
        errors.append((logits - dense).square().mean().item())
    assert errors[0] > 4 * errors[1] and errors[1] > 2 * errors[2]


def test_zeros_stay_and_leave_their_bytes_to_the_others(model: BertForSequenceClassification) -> None:
    targets, rounding = _rounding(model)
    kept = {
        target.name: target.weight.abs() > target.weight.abs().median()
        for target in targets
        if target.kind == "linear"
    }
    limit = 0.5 * sum(target.weight.numel() for target in targets)
    pruned, dense = fit(replace(rounding, kept=kept), limit), fit(rounding, limit)
    assert pruned.constant < dense.constant
    assert not any(pruned.weights[name].integers[~mask].any() for name, mask in kept.items())


def test_transposed_layers_are_rounded_by_outputs() -> None:
    config = GPT2Config(vocab_size=29, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    targets, rounding = _rounding(model)
    found = fit(rounding, 0.75 * sum(target.weight.numel() for target in targets))
    for target in targets:
        rounded = found.weights[target.name]
        assert _rows(target, rounded.rows).shape == target.weight.shape
        assert len(rounded.step) == target.weight.shape[target.row_dim]


def test_more_bytes_than_any_step_needs_give_the_finest(model: BertForSequenceClassification) -> None:
    rounding = _rounding(model)[1]
    found = fit(rounding, limit=10**9)
    assert found.constant == pytest.approx(rounding.finest, rel=1e-3)
    assert found.bytes == sum(one.bytes for one in rounding.at(found.constant).values())


def test_bytes_that_no_step_can_meet_are_refused(model: BertForSequenceClassification) -> None:
    _, rounding = _rounding(model)
    with pytest.raises(ValueError, match="cannot be rounded into"):
        fit(rounding, 10.0)
