"""Removal errors: against Jacobians of the outputs by explicit gates."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import Part
from hf_compress.rate import removal_errors
from tests.tiny import bert


def oracle(model: PreTrainedModel, reader: Part, rows: list[dict[str, Tensor]]) -> Tensor:
    """Return the sums of squares of the Jacobian of the logits by a gate before each group."""
    part, total = reader, torch.zeros(reader.count, dtype=torch.float64)

    def logits(gates: Tensor, row: dict[str, Tensor]) -> Tensor:
        along = torch.cat([gates, gates.new_ones(1)])[part.owners()]
        handle = part.target.module.register_forward_pre_hook(lambda _, given: (given[0] * along,))
        try:
            return model(**row).logits
        finally:
            handle.remove()

    for row in rows:
        jacobian = torch.autograd.functional.jacobian(
            lambda gates, row=row: logits(gates, row), torch.ones(part.count, dtype=torch.float64)
        )
        total += jacobian.reshape(-1, part.count).square().sum(0)
    return total / len(rows)


def test_they_are_squared_jacobians_by_gates() -> None:
    model = bert().double().eval()
    blocks = find_groups(model, ["neurons", "heads"])
    rows = [{"input_ids": torch.arange(1 + seed, 7 + seed)[None]} for seed in range(3)]
    readers = [block.consumer for block in blocks]
    found = removal_errors(model, readers, rows * 100)  # The mean over many signs.
    for reader, ours in zip(readers, found, strict=True):
        theirs = oracle(model, reader, rows)
        assert float(ours.sum()) == pytest.approx(float(theirs.sum()), rel=0.2)
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.95


def test_the_model_is_left_as_it_was() -> None:
    model = bert().train()
    model.bert.pooler.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    needs = [weight.requires_grad for weight in model.parameters()]
    removal_errors(model, [find_groups(model, ["heads"])[0].consumer], [{"input_ids": torch.tensor([[1, 2]])}])
    assert model.training
    assert [weight.requires_grad for weight in model.parameters()] == needs
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_no_rows_and_broken_weights_are_refused() -> None:
    model = bert()
    (reader, *_) = [block.consumer for block in find_groups(model, ["neurons"])]
    with pytest.raises(ValueError, match="sample of rows is empty"):
        removal_errors(model, [reader], [])
    with torch.no_grad():
        reader.target.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"not finite in bert\.encoder\.layer\.0\.output\.dense"):
        removal_errors(model, [reader], [{"input_ids": torch.tensor([[1, 2]])}])
