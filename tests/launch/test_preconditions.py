"""What `compress` refuses before training, because nothing could be saved after it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import QuantizationArguments, Recipe, compress

MakeBert = Callable[..., BertForSequenceClassification]


def trainer(model: torch.nn.Module, folder: Path) -> Trainer:
    rows = Dataset.from_list([{"input_ids": [2, 5, 3], "label": 0}] * 4)
    arguments = TrainingArguments(str(folder), max_steps=2, report_to="none", use_cpu=True)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def refused(model: torch.nn.Module, folder: Path, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        compress(trainer(model, folder), Recipe(quantization=QuantizationArguments(quant_scheme="int8")))
    assert "\n" not in str(caught.value)


def test_a_start_that_is_not_finite_is_no_divergence(make_bert: MakeBert, tmp_path: Path) -> None:
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = math.nan
    refused(model, tmp_path, r"model's weights are not finite, for example `bert.encoder.layer.1.output.dense.weight`")


def test_a_replaced_head_is_refused(make_bert: MakeBert, tmp_path: Path) -> None:
    model = make_bert()
    model.classifier = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, 2))  # type: ignore[assignment]
    refused(model, tmp_path, r"has classifier\.0\.bias, .* and lacks classifier\.bias, .*6 parameters.*own")


def test_layers_that_only_the_configuration_has_are_refused(make_bert: MakeBert, tmp_path: Path) -> None:
    model = make_bert()
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    refused(model, tmp_path, r"lacks bert\.encoder\.layer\.1\..*16 parameters.*`config.num_hidden_layers`")
    model.config.num_hidden_layers = 1
    compress(trainer(model, tmp_path), Recipe(quantization=QuantizationArguments(quant_scheme="int8")))
