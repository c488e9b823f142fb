"""Layerwise losses against naive loops, and what holds for each: padding, equal models, scale."""

import math

import pytest
import torch
from torch import Tensor

from hf_compress.distill.layer_losses import LAYER_LOSSES, relation_heads

ROWS, TOKENS, WIDTH, HEADS = 3, 5, 12, 4
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
VECTORS = ("hidden", "hidden_cosine", "embeddings")


def inputs(name: str, seed: int, width: int = WIDTH, heads: int = HEADS) -> Tensor | tuple[Tensor, ...]:
    """Random values of the part of a layer that the loss reads; padding gets no attention."""
    draw = torch.Generator().manual_seed(seed)
    reads = LAYER_LOSSES[name].reads
    if reads == "attention":
        scores = torch.randn(ROWS, heads, TOKENS, TOKENS, generator=draw, dtype=torch.float64)
        return scores.masked_fill(~MASK[:, None, None, :], -1e9).softmax(-1)
    found = tuple(torch.randn(ROWS, TOKENS, width, generator=draw, dtype=torch.float64) for _ in range(3))
    return found if reads == "relations" else found[0]


def naive_hidden(student: Tensor, teacher: Tensor, row: int) -> float:
    above = below = 0.0
    for token in range(TOKENS):
        if MASK[row, token]:
            for ours, theirs in zip(student[row, token].tolist(), teacher[row, token].tolist(), strict=True):
                above += (ours - theirs) ** 2
                below += theirs**2
    return above / below


def naive_cosine(student: Tensor, teacher: Tensor, row: int) -> float:
    found = []
    for token in range(TOKENS):
        if MASK[row, token]:
            ours, theirs = student[row, token].tolist(), teacher[row, token].tolist()
            product = sum(one * other for one, other in zip(ours, theirs, strict=True))
            found.append(1 - product / math.hypot(*ours) / math.hypot(*theirs))
    return sum(found) / len(found)


def divergence(teacher: list[float], student: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True) if p > 0)


def naive_attention(student: Tensor, teacher: Tensor, row: int) -> float:
    found = []
    for query in range(TOKENS):
        if MASK[row, query]:
            maps = zip(student[row, :, query].tolist(), teacher[row, :, query].tolist(), strict=True)
            found += [divergence(theirs, ours) for ours, theirs in maps]
    return sum(found) / len(found)


def naive_relation(vectors: Tensor, row: int, head: int, heads: int, query: int) -> list[float]:
    width = vectors.shape[-1] // heads
    part = vectors[row, :, head * width : (head + 1) * width]
    powers = [
        math.exp(float(part[query] @ part[key]) / math.sqrt(width)) if MASK[row, key] else 0.0 for key in range(TOKENS)
    ]
    return [power / sum(powers) for power in powers]


def naive_relations(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], row: int) -> float:
    heads = math.gcd(student[0].shape[-1], teacher[0].shape[-1])
    found = [
        divergence(naive_relation(theirs, row, head, heads, query), naive_relation(ours, row, head, heads, query))
        for ours, theirs in zip(student, teacher, strict=True)
        for head in range(heads)
        for query in range(TOKENS)
        if MASK[row, query]
    ]
    return sum(found) / len(found)


NAIVE = {
    "hidden": naive_hidden,
    "hidden_cosine": naive_cosine,
    "embeddings": naive_hidden,
    "attention": naive_attention,
    "relations": naive_relations,
}


def test_every_loss_has_an_oracle() -> None:
    assert NAIVE.keys() == LAYER_LOSSES.keys()


@pytest.mark.parametrize("name", NAIVE)
def test_a_loss_is_what_naive_loops_give(name: str) -> None:
    student, teacher = inputs(name, 0), inputs(name, 1)
    expected = [NAIVE[name](student, teacher, row) for row in range(ROWS)]  # type: ignore[arg-type]
    found = LAYER_LOSSES[name].function(student, teacher, MASK)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_relations_compare_models_of_different_widths() -> None:
    student, teacher = inputs("relations", 0, width=8), inputs("relations", 1, width=12)
    expected = [naive_relations(student, teacher, row) for row in range(ROWS)]  # type: ignore[arg-type]
    found = LAYER_LOSSES["relations"].function(student, teacher, MASK)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_maps_are_averaged_if_numbers_of_heads_differ() -> None:
    student, teacher = inputs("attention", 0, heads=2), inputs("attention", 1, heads=4)
    averaged = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)  # type: ignore[union-attr]
    loss = LAYER_LOSSES["attention"].function
    assert torch.equal(loss(student, teacher, MASK), loss(*averaged, MASK))


@pytest.mark.parametrize("name", NAIVE)
def test_a_student_equal_to_its_teacher_has_no_loss(name: str) -> None:
    teacher = inputs(name, 1)
    student = [part.clone().requires_grad_() for part in (teacher if isinstance(teacher, tuple) else (teacher,))]
    value = LAYER_LOSSES[name].function(tuple(student) if len(student) > 1 else student[0], teacher, MASK).sum()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert max(part.grad.abs().max().item() for part in student) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_what_stands_in_padding_has_no_effect(name: str, garbage: float) -> None:
    def spoilt(values: Tensor) -> Tensor:
        spoilt = values.clone()
        spoilt[~MASK] = garbage  # Of the queries of a map, whose keys are never anything but 0 there.
        return spoilt

    def change(values: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(values, tuple):
            return tuple(map(spoilt, values))
        return spoilt(values.transpose(1, 2)).transpose(1, 2) if name == "attention" else spoilt(values)

    student, teacher = inputs(name, 0), inputs(name, 1)
    loss = LAYER_LOSSES[name].function
    torch.testing.assert_close(loss(change(student), change(teacher), MASK), loss(student, teacher, MASK))


@pytest.mark.parametrize("name", NAIVE)
def test_a_row_of_padding_has_no_loss(name: str) -> None:
    mask = MASK.clone()
    mask[2] = False
    assert LAYER_LOSSES[name].function(inputs(name, 0), inputs(name, 1), mask)[2] == 0


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_hidden_does_not_depend_on_the_models_scale(scale: float) -> None:
    student, teacher = inputs("hidden", 0), inputs("hidden", 1)
    loss = LAYER_LOSSES["hidden"].function
    torch.testing.assert_close(loss(scale * student, scale * teacher, MASK), loss(student, teacher, MASK))
    torch.testing.assert_close(loss(0 * student, teacher, MASK), torch.ones(ROWS, dtype=torch.float64))


def test_a_key_without_attention_keeps_the_loss_finite() -> None:
    teacher = inputs("attention", 1)
    student = torch.zeros_like(teacher)
    student[..., 0] = 1.0
    student.requires_grad_()
    value = LAYER_LOSSES["attention"].function(student, teacher, MASK).sum()
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("widths", "heads"), [((384, 384), 48), ((312, 768), 24), ((384, 768, 128), 32), ((7, 11), 1)]
)
def test_relation_heads_divide_all_widths(widths: tuple[int, ...], heads: int) -> None:
    assert relation_heads(*widths) == heads
