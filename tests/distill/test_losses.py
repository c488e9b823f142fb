import math

import pytest
import torch
import torch.nn.functional as F

from hf_compress.distill.losses import LOSSES, binary_ce, binary_kl, ce, kl, mse


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    student = (3 * torch.randn(7, 5, dtype=torch.float64)).requires_grad_()
    return student, 3 * torch.randn(7, 5, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_torchs_divergence_times_squared_temperature(logits, temperature):
    student, teacher = logits
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher / temperature),
        torch.distributions.Categorical(logits=student / temperature),
    )
    torch.testing.assert_close(kl(student, teacher, temperature), temperature**2 * expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_ce_is_kl_plus_the_teachers_entropy(logits, temperature):
    student, teacher = logits
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy()
    expected = kl(student, teacher, temperature) + temperature**2 * entropy
    torch.testing.assert_close(ce(student, teacher, temperature), expected)


def test_ce_at_temperature_one_is_cross_entropy_with_soft_labels(logits):
    student, teacher = logits
    expected = F.cross_entropy(student, teacher.softmax(-1), reduction="none")
    torch.testing.assert_close(ce(student, teacher, 1.0), expected)


def test_mse_averages_classes_and_ignores_the_temperature(logits):
    student, teacher = logits
    torch.testing.assert_close(mse(student, teacher, 1.0), (student - teacher).pow(2).sum(-1) / 5)
    assert torch.equal(mse(student, teacher, 1.0), mse(student, teacher, 7.0))


def test_hot_kl_has_the_gradient_of_half_the_centred_mse(logits):
    student, teacher = logits
    (from_kl,) = torch.autograd.grad(kl(student, teacher, 1e4).sum(), student)
    centred = (logit - logit.mean(-1, keepdim=True) for logit in logits)
    (from_mse,) = torch.autograd.grad(mse(*centred).sum() / 2, student)
    torch.testing.assert_close(from_kl, from_mse, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binary_losses_are_the_categorical_ones_per_label(logits, temperature):
    student, teacher = logits
    for binary, categorical in ((binary_kl, kl), (binary_ce, ce)):
        pairs = (torch.stack([logit, torch.zeros_like(logit)], dim=-1).reshape(-1, 2) for logit in logits)
        expected = categorical(*pairs, temperature).reshape(student.shape).mean(-1)
        torch.testing.assert_close(binary(student, teacher, temperature), expected)


@pytest.mark.parametrize("loss", [kl, mse, binary_kl])
def test_a_student_equal_to_its_teacher_has_zero_loss(loss, logits):
    student, _ = logits
    value = loss(student, student.detach().clone(), 2.0).sum()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [form for loss in LOSSES.values() for form in (loss.function, loss.independent)])
def test_extreme_logits_give_finite_losses_and_gradients(loss):
    student = torch.tensor([[1e4, -1e4, 0.0], [-80.0, 0.0, 80.0]], requires_grad=True)
    value = loss(student, student.detach().flip(-1).clone(), 1.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert (value > 0).all()
    assert student.grad.isfinite().all()


def test_the_temperature_keeps_the_gradient_comparable():
    student = torch.tensor([[0.1, -0.1]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.2, 0.2]], dtype=torch.float64)
    norms = [torch.autograd.grad(kl(student, teacher, t).sum(), student)[0].norm().item() for t in (2.0, 8.0)]
    assert math.isclose(*norms, rel_tol=0.02)
