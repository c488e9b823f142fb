"""The losses on embeddings, against oracles, and the projection of a wider teacher."""

import pytest
import torch
from torch.nn import functional as F

from hf_compress.distill.embedding_losses import (
    EMBEDDING_LOSSES,
    cosine,
    principal_directions,
    similarity,
    similarity_kl,
    squared,
)

DRAW = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (torch.randn(5, 4, generator=DRAW) for _ in range(2))


def test_distances_of_embeddings_equal_torchs_own() -> None:
    share = (STUDENT - TEACHER).square().sum() / TEACHER.square().sum()
    assert squared(STUDENT, TEACHER).mean().item() == pytest.approx(share.item(), rel=1e-5)
    expected = F.cosine_embedding_loss(STUDENT, TEACHER, torch.ones(5), reduction="none")
    assert torch.allclose(cosine(STUDENT, TEACHER), expected)


def test_similarities_are_compared_pair_by_pair() -> None:
    wide = torch.cat([TEACHER, TEACHER[:, :2]], 1)
    ours, theirs = (
        torch.stack([F.cosine_similarity(one[row][None], one) for row in range(5)]) for one in (STUDENT, wide)
    )
    others = ~torch.eye(5, dtype=torch.bool)
    squares = (ours - theirs).square()[others].view(5, 4).mean(1)
    assert torch.allclose(similarity(STUDENT, wide), squares, atol=1e-6)
    ours, theirs = ((20 / 2 * one[others].view(5, 4)).softmax(1) for one in (ours, theirs))
    expected = 4 * (theirs * (theirs / ours).log()).sum(1)
    assert torch.allclose(similarity_kl(STUDENT, wide, 2.0), expected, atol=1e-4)


@pytest.mark.parametrize("name", list(EMBEDDING_LOSSES))
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_equal_teacher_costs_nothing_and_gradients_exist(name: str, rows: int) -> None:
    student = TEACHER[:rows].clone().requires_grad_()
    loss = EMBEDDING_LOSSES[name].function(student, TEACHER[:rows], 1.0)
    assert loss.shape == (rows,) and torch.allclose(loss, torch.zeros(rows), atol=1e-6)
    loss.sum().backward()
    assert student.grad is not None and bool(student.grad.isfinite().all())


def test_the_projection_keeps_inner_products_best() -> None:
    rows = torch.randn(50, 8, generator=DRAW) @ torch.diag(torch.tensor([5, 4, 3, 0.1, 0.1, 0.1, 0.1, 0.1]))
    found = principal_directions(rows, 3)
    assert torch.allclose(found.T @ found, torch.eye(3), atol=1e-5)
    kept = rows @ found
    assert (rows @ rows.T - kept @ kept.T).norm() < 0.02 * (rows @ rows.T).norm()
    assert torch.equal(principal_directions(rows.flip(0), 3).sign(), found.sign())
