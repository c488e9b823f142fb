"""Spending bytes on a model in place: what is rounded, what stays, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import QuantizationArguments, QuantizationCallback
from hf_compress.layers import SCHEMES, quantize_layers
from hf_compress.layers.lora import merge_in_forward
from hf_compress.layers.turning import compressed_layers
from hf_compress.quantize import least_bytes, spend

MakeBert = Callable[..., BertForSequenceClassification]
BATCHES = [{"input_ids": torch.arange(40).reshape(4, 10) % 29}]
LIMIT = 60_000


@pytest.fixture
def model(make_bert: MakeBert) -> BertForSequenceClassification:
    model = make_bert(vocab_size=400, hidden_size=64, intermediate_size=128)
    quantize_layers(model, SCHEMES["int8"], steps=True)
    return model


def test_every_weight_becomes_a_multiple_of_its_step(model: BertForSequenceClassification) -> None:
    spent = spend(model, BATCHES, LIMIT)
    assert 0.95 * LIMIT < spent.bytes <= LIMIT
    for name, layer in compressed_layers(model).items():
        assert layer.step is not None and bool((layer.step > 0).all()), name
        multiples = layer.weight / layer.step
        assert torch.equal(multiples, multiples.round()), name
        assert float(multiples.detach().abs().max()) <= 127


def test_the_constant_alone_gives_the_same_weights(make_bert: MakeBert, model: BertForSequenceClassification) -> None:
    spent = spend(model, BATCHES, LIMIT)
    again = make_bert(vocab_size=400, hidden_size=64, intermediate_size=128)
    quantize_layers(again, SCHEMES["int8"], steps=True)
    assert spend(again, BATCHES, None, constant=spent.constant).bytes == spent.bytes
    theirs = dict(again.named_parameters())
    assert all(torch.equal(one, theirs[name]) for name, one in model.named_parameters())


def test_zeros_stay_where_they_are(model: BertForSequenceClassification) -> None:
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight[weight.abs() < weight.abs().median()] = 0
    pruned = weight == 0
    spend(model, BATCHES, LIMIT)
    assert not weight[pruned].any()


def test_excluded_layers_stay_in_floating_point(make_bert: MakeBert) -> None:
    model = make_bert(vocab_size=400, hidden_size=64, intermediate_size=128)
    quantize_layers(model, SCHEMES["int8"], ["query"], steps=True)
    query = model.bert.encoder.layer[0].attention.self.query.weight.clone()
    spend(model, BATCHES, 90_000, exclude=["query"])
    assert torch.equal(model.bert.encoder.layer[0].attention.self.query.weight, query)


def test_beside_an_adapter_weights_stay_and_steps_are_chosen(make_bert: MakeBert) -> None:
    plain = make_bert(vocab_size=400, hidden_size=64, intermediate_size=128)
    model = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], lora_dropout=0.0))
    quantize_layers(model, SCHEMES["int8"], steps=True)
    merge_in_forward(model)
    before = {name: one.clone() for name, one in model.named_parameters()}
    spend(model, BATCHES, LIMIT)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    assert all(bool((layer.step > 0).all()) for layer in compressed_layers(model).values() if layer.step is not None)


def test_a_model_that_is_not_finite_is_refused(model: BertForSequenceClassification) -> None:
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        spend(model, BATCHES, LIMIT)


def test_fewer_bytes_than_the_rest_takes_are_refused(model: BertForSequenceClassification) -> None:
    with pytest.raises(ValueError, match="cannot be rounded into"):
        spend(model, BATCHES, 5_000)
    assert least_bytes(model, [], {}) > 5_000


def test_a_trainer_without_training_rows_is_refused(make_bert: MakeBert, tmp_path: object) -> None:
    callback = QuantizationCallback(QuantizationArguments(quant_scheme="int8"), budget=LIMIT)
    settings = TrainingArguments(str(tmp_path), max_steps=4, report_to="none")
    trainer = Trainer(make_bert(), settings, callbacks=[callback])
    with pytest.raises(ValueError, match="no `train_dataloader`"):
        callback.on_train_begin(settings, trainer.state, trainer.control, model=trainer.model)
