"""A format is compared by the spread of its logits, with the rounding noise of the very model as the yardstick."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

from hf_compress.export.parity import check_parity, load, parity_of, random_batches
from hf_compress.export.yardstick import rounded_otherwise
from tests.quantized import quantized

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
MODELS: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "plain": (BertForSequenceClassification, {}, "int8"),
    "deep": (BertForSequenceClassification, {"num_hidden_layers": 12}, "int8"),
    "wide": (BertForSequenceClassification, {"hidden_size": 256, "initializer_range": 0.06}, "int8"),
    "many classes": (BertForSequenceClassification, {"num_labels": 50}, "int8"),
    "regression": (BertForSequenceClassification, {"num_labels": 1}, "int8"),
    "tokens": (BertForTokenClassification, {"num_labels": 5}, "int8"),
    "words": (BertForMaskedLM, {}, "int8"),
    "ends": (BertForQuestionAnswering, {}, "int8"),
    "dynamic": (BertForSequenceClassification, {}, "int8-dynamic"),
    "weights": (BertForSequenceClassification, {}, "int4-weight"),
    "attention": (BertForSequenceClassification, {}, "int8-attention"),
    "float": (BertForSequenceClassification, {}, None),
}

Make = Callable[[str], PreTrainedModel]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function that gives one of `MODELS`, untrained, loaded from its compressed folder."""
    folders: dict[str, Path] = {}

    def loaded(name: str) -> PreTrainedModel:
        if name not in folders:
            model_class, changes, scheme = MODELS[name]
            torch.manual_seed(0)
            model = model_class(BertConfig(**SIZES | changes)).eval()
            folders[name] = quantized(model, tmp_path_factory.mktemp("parity") / "compressed", scheme)
        return load(folders[name])

    return loaded


class Other(nn.Module):
    """A format of a model: its logits are changed by `change`."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        for name in outputs:
            outputs[name] = self.change(outputs[name])
        return outputs


class Elsewhere(nn.Module):
    """A model in a runtime that rounds a little otherwise."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.seed = model, 100

    def forward(self, **inputs: Any) -> Any:
        self.seed += 1
        with rounded_otherwise(self.model, self.seed):
            return self.model(**inputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_runtime_that_rounds_otherwise_is_accepted(name: str, make: Make) -> None:
    model = make(name)
    parity = check_parity(model, Elsewhere(model), random_batches(model), "elsewhere")
    assert parity.difference > 0, "the runtime is not the model itself"


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_scale_in_one_layer_is_refused(name: str, make: Make) -> None:
    model, other = make(name), make(name)
    for layer in (other.bert.encoder.layer[0].output.dense, other.bert.encoder.layer[-1].attention.output.dense):
        right = layer.weight.data
        layer.weight.data = 2 * right
        with pytest.raises(ValueError, match="`wrong` computes something else than the checkpoint"):
            check_parity(model, other, random_batches(model), "wrong")
        layer.weight.data = right


def test_double_precision_is_accepted(make: Make) -> None:
    model = make("words")
    check_parity(model, make("words").double(), random_batches(model), "float64")


def test_a_common_offset_of_the_logits_hides_nothing(make: Make) -> None:
    model, other = make("float"), make("float")
    for one in (model, other):
        one.classifier.bias.data += 100
    check_parity(model, other, random_batches(model), "same")
    other.classifier.weight.data *= 1.05
    with pytest.raises(ValueError, match="logits deviate by 0.0.* of their spread"):
        check_parity(model, other, random_batches(model), "wrong")


def test_a_model_with_one_answer_to_everything_is_accepted(make: Make) -> None:
    model = make("plain")
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.fill_(0.3)
    check_parity(model, Other(model, lambda logits: logits * (1 + 1e-7)), random_batches(model), "elsewhere")


def test_one_wrong_answer_among_many_is_refused(make: Make) -> None:
    """It would be lost in a mean: the other rows are right, and rounding moves the logits of this model by as much."""
    model = make("dynamic")
    batches = [batch for _ in range(2) for batch in random_batches(model)]
    with torch.no_grad():
        model.classifier.bias.data[0] += 1.0  # Sure of class 0 in every row.
    calls = iter(range(100))

    def turned(logits: Tensor) -> Tensor:
        return logits.flip(-1) if next(calls) == 1 else logits

    with pytest.raises(ValueError, match="1 answers of which the checkpoint is sure differ"):
        check_parity(model, Other(model, turned), batches, "wrong")


def test_numbers_that_are_none_are_refused(make: Make) -> None:
    model = make("plain")
    with pytest.raises(ValueError, match="deviate by nan"):
        check_parity(model, Other(model, lambda logits: logits * torch.nan), random_batches(model), "broken")


def test_logits_of_another_shape_are_refused(make: Make) -> None:
    model = make("plain")
    with pytest.raises(ValueError, match="logits have another shape"):
        check_parity(model, Other(model, lambda logits: logits[:, :1]), random_batches(model), "broken")


def test_the_deviation_is_a_share_of_the_spread(make: Make) -> None:
    model = make("float")
    batches = list(random_batches(model))
    with torch.no_grad():
        rows = torch.cat([model(**batch).logits for batch in [*batches, {n: v[:1] for n, v in batches[0].items()}]])
    spread = (rows - rows.mean(0)).square().mean().sqrt()
    parity = parity_of(model, Other(model, lambda logits: logits + 0.5), batches)
    assert parity.deviation == pytest.approx(float(0.5 / spread), rel=1e-4)
    assert parity.difference == pytest.approx(0.5)
