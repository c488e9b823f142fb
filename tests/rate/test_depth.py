"""What the outputs lose without a layer: squares of differences, against a model that was cut."""

import pytest
import torch

from hf_compress.cut.students import student_from
from hf_compress.models.stacks import layers_of
from hf_compress.rate import skipping_errors
from tests.tiny import bert


@torch.no_grad()
def test_errors_are_those_of_models_without_the_layer() -> None:
    model = bert(num_hidden_layers=3).train()
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    batches = [{"input_ids": torch.arange(5, 5 + 4 * rows).reshape(rows, 4) % 29} for rows in (3, 2)]
    errors = skipping_errors(model, layers_of(model), [{**batch, "labels": torch.ones(1)} for batch in batches])
    assert model.training and before == {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.eval()
    for number in range(3):
        cut = student_from(model, [other for other in range(3) if other != number])
        squares = sum(float((cut(**one).logits - model(**one).logits).square().sum()) for one in batches)
        assert errors[number] == pytest.approx(squares / 5, rel=1e-4)


def test_outputs_that_are_not_finite_are_refused() -> None:
    model = bert()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        skipping_errors(model, layers_of(model), [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])
