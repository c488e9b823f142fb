"""Rounding to fixed steps: idempotent, clipped at 127, with a straight-through gradient inside."""

import pytest
import torch

from hf_compress.layers import SCHEMES, fake_quantize_steps, quantize_layers
from tests.tiny import bert

STEP = torch.tensor([[0.01], [0.3], [2.0]]).bfloat16().float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_to_steps_twice_changes_no_bit(dtype: torch.dtype) -> None:
    values = (torch.randn(3, 500) * 60 * STEP).to(dtype)
    once = fake_quantize_steps(values, STEP)
    assert once.dtype == dtype and torch.equal(fake_quantize_steps(once, STEP), once)


def test_rounding_to_steps_agrees_with_torch() -> None:
    values = torch.randn(3, 500) * 60 * STEP
    zero = torch.zeros(3, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(values, STEP[:, 0], zero, 0, -127, 127)
    assert torch.allclose(fake_quantize_steps(values, STEP), expected)


def test_the_gradient_is_that_of_clipping_at_half_a_step_more() -> None:
    values = (torch.randn(3, 500) * 100 * STEP).requires_grad_(True)
    weight = torch.randn(3, 500)
    (found,) = torch.autograd.grad((fake_quantize_steps(values, STEP) * weight).sum(), values)
    (expected,) = torch.autograd.grad((values.clamp(-127.5 * STEP, 127.5 * STEP) * weight).sum(), values)
    assert torch.equal(found, expected) and not found.all()


def test_casting_a_model_leaves_steps_in_float32() -> None:
    model = bert()
    layers = quantize_layers(model, SCHEMES["int8"], steps=True)
    assert all(layer.step is not None and layer.step.dtype == torch.float32 for layer in layers)
    model.bfloat16()
    assert all(layer.step is not None and layer.step.dtype == torch.float32 for layer in layers)
    assert layers[0].weight.dtype == torch.bfloat16
