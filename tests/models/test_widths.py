"""Linear layers get fewer outputs and inputs, and their model still runs: heads keep their width."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from hf_compress.models.widths import declared_widths, forget_widths, keep, resize, width_of, widths_of
from tests.invariants.test_models import CONFIGS

FFN, OUT = "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"
IDS = torch.arange(16).reshape(2, 8)


def test_a_resized_model_has_the_widths_and_runs(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    assert widths_of(model) == {}
    resize(model, {FFN: [24, 32], OUT: [32, 24]})
    assert widths_of(model) == {FFN: [24, 32], OUT: [32, 24]}
    assert declared_widths(model) == {FFN: (64, 32), OUT: (32, 64)}
    layer = model.get_submodule(FFN)
    assert layer.out_features == 24 and layer.weight.shape == (24, 32) and layer.bias.shape == (24,)
    assert model(IDS).logits.shape == (2, 2)
    forget_widths(model)
    assert widths_of(model) == {}


def test_widths_are_counted_from_what_the_configuration_says(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    resize(model, {FFN: [24, 32]})
    keep(model, {FFN: ([3, 5, 7], range(32))})
    assert widths_of(model) == {FFN: [3, 32]} and declared_widths(model)[FFN] == (64, 32)


def test_kept_values_are_those_of_the_chosen_rows_and_columns(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    layer = model.get_submodule(FFN)
    weight, bias = layer.weight, layer.bias
    weight.requires_grad_(False)
    keep(model, {FFN: ([1, 8], [0, 30])})
    assert torch.equal(layer.weight, weight[[1, 8]][:, [0, 30]]) and torch.equal(layer.bias, bias[[1, 8]])
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    assert layer.weight is not weight and weight.shape == (64, 32)


def test_transposed_layers_count_outputs_first() -> None:
    model = AutoModel.from_config(CONFIGS["gpt2"]())
    name = "h.0.mlp.c_fc"
    assert width_of(model.get_submodule(name)) == (128, 32)
    resize(model, {name: [20, 32], "h.0.mlp.c_proj": [32, 20]})
    layer = model.get_submodule(name)
    assert layer.weight.shape == (32, 20) and layer.nf == 20 and layer.nx == 32
    assert model(IDS).last_hidden_state.shape == (2, 8, 32)


@pytest.mark.parametrize(
    ("family", "attention", "layers", "attributes"),
    [
        ("bert", "encoder.layer.0.attention.self", ["query", "key", "value"], ["num_attention_heads"]),
        ("deberta-v2", "encoder.layer.0.attention.self", ["query_proj", "key_proj"], ["num_attention_heads"]),
        ("distilbert", "transformer.layer.0.attention", ["q_lin", "k_lin", "v_lin"], ["n_heads"]),
    ],
)
def test_attributes_that_count_heads_follow(
    family: str, attention: str, layers: list[str], attributes: list[str]
) -> None:
    model = AutoModel.from_config(CONFIGS[family]())
    resize(model, {f"{attention}.{layer}": [16, 32] for layer in layers})
    assert {vars(model.get_submodule(attention))[name] for name in attributes} == {1}


def test_the_split_of_gpt2_follows_its_fused_layer() -> None:
    model = AutoModel.from_config(CONFIGS["gpt2"]())
    resize(model, {"h.0.attn.c_attn": [48, 32], "h.0.attn.c_proj": [32, 16]})
    assert model.h[0].attn.split_size == 16 and model.h[0].attn.num_heads == 1
    assert model(IDS).last_hidden_state.shape == (2, 8, 32)


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({"nowhere": [1, 1]}, "no linear layer"),
        ({"bert.embeddings.word_embeddings": [1, 1]}, "no linear layer"),
        ({"bert": [1, 1]}, "no linear layer"),
        ({"": [1, 1]}, "no linear layer"),
        ({FFN: [65, 32]}, "at most 64 and 32"),
        ({FFN: [64, 33]}, "at most 64 and 32"),
        ({FFN: [0, 32]}, "at most 64 and 32"),
        ({"bert.encoder.layer.0.attention.self.query": [17, 32]}, "do not fit"),
        (
            {f"bert.encoder.layer.0.attention.self.{one}": [width, 32] for one, width in (("query", 16), ("key", 8))},
            "do not fit",
        ),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: Any, said: str, make_bert: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match=said):
        resize(make_bert(), widths)
