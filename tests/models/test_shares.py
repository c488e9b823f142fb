"""How much of a model a method touches, counted by hand on tiny models."""

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    Wav2Vec2Config,
)

from hf_compress.models import prunable, quantizable
from hf_compress.models.shares import Piece, Shares, shares_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(vocab_size=29, max_position_embeddings=16, **SIZES))


def wave() -> Any:
    convolutions = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    return AutoModelForAudioClassification.from_config(Wav2Vec2Config(**SIZES, **convolutions, **positions))


def test_a_bert_is_all_touched_but_its_head_and_vectors() -> None:
    model = bert()
    matrices = 4 * 32 * 32 + 2 * 32 * 64 + 32 * 32  # Attention, feed-forward and pooler.
    embeddings, every = (29 + 16 + 2) * 32, sum(one.numel() for one in model.parameters())
    pruned, quantized = shares_of(model, "pruned", prunable(model)), shares_of(model, "quantized", quantizable(model))
    assert pruned == Shares(matrices, 4 * matrices, every, 4 * every)
    assert quantized == Shares(matrices + embeddings, 4 * (matrices + embeddings), every, 4 * every)
    assert quantized.rest("quantized") == ["the head, biases and norms"]
    assert pruned.rest("pruned") == ["embeddings, the head, biases and norms"]


def test_excluded_layers_are_named_the_largest_first() -> None:
    model = bert()
    shares = shares_of(model, "quantized", quantizable(model, ["attention", "intermediate"]))
    names = ["intermediate.dense", *(f"attention.{one}" for one in ("self.query", "self.key", "self.value"))]
    names = [f"bert.encoder.layer.0.{name}.weight" for name in [*names, "attention.output.dense"]]
    assert list(shares.others.items()) == [(name, 2048 if "inter" in name else 1024) for name in names]
    assert shares.rest("quantized")[1:] == [
        f"{names[0]} (2,048 weights)",
        *(f"{n} (1,024 weights)" for n in names[1:3]),
        "2 more",
    ]


def test_convolutions_count_and_a_weight_normed_one_is_named() -> None:
    model = wave()
    for method, targets in (("pruned", prunable(model)), ("quantized", quantizable(model))):
        shares = shares_of(model, method, targets)  # type: ignore[arg-type]
        left = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1"
        assert shares.convolutions == 2 and shares.others == {left: 32 * 16 * 4}


def test_parameters_outside_of_layers_are_named() -> None:
    model = AutoModelForImageClassification.from_config(ViTConfig(**SIZES, image_size=8, patch_size=4))
    shares = shares_of(model, "quantized", quantizable(model))
    assert shares.convolutions == 1
    assert list(shares.others) == ["vit.embeddings.position_embeddings", "vit.embeddings.cls_token"]


def test_an_adapter_counts_as_the_model_that_it_is_merged_into() -> None:
    plain = shares_of(model := bert(), "quantized", quantizable(model))
    adapted = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    assert shares_of(adapted, "quantized", quantizable(adapted)) == plain


@pytest.mark.parametrize("weights", [0, 999, 1000, 50_000])
def test_what_is_a_thousandth_of_all_weights_is_named(weights: int) -> None:
    pieces = [
        Piece("a.weight", (1_000_000 - weights, 1), 4, "encoder", True),
        Piece("b.weight", (weights, 1), 4, "encoder", False),
        Piece("bias", (0,), 0, "encoder", False),
    ]
    assert Shares.of("pruned", pieces).others == ({} if weights < 1000 else {"b.weight": weights})
