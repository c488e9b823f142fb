"""Example batches: every kind of model computes finite logits from the inputs that its head names."""

import functools
import inspect
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    ASTConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CLIPConfig,
    ConvNextConfig,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

from hf_compress.models import HEAD_KINDS, find_head
from hf_compress.models.kinds import UNSHIFTED

BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}
VIT = {key: value for key, value in BERT.items() if key not in ("vocab_size", "max_position_embeddings")}
WAVE = {**VIT, "conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
WAVE |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
BART = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
WHISPER = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
WHISPER |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8, "max_source_positions": 10}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
CLIP = {"vision_config": {**VIT, "image_size": 8, "patch_size": 4, "projection_dim": 8}}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0, "eos_token_id": 1}

TEXT = ["input_ids", "attention_mask"]
CASES = [
    (AutoModelForSequenceClassification, BertConfig(**BERT), [*TEXT, "token_type_ids"]),
    (AutoModelForSequenceClassification, RobertaConfig(**BERT, type_vocab_size=1), TEXT),
    (AutoModelForSequenceClassification, GPT2Config(**GPT2), TEXT),
    (AutoModelForSequenceClassification, BartConfig(**BART), TEXT),
    (AutoModelForQuestionAnswering, DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2), TEXT),
    (AutoModelForMultipleChoice, BertConfig(**BERT), [*TEXT, "token_type_ids"]),
    (AutoModelForCausalLM, GPT2Config(**GPT2), TEXT),
    (AutoModelForSeq2SeqLM, T5Config(**T5, decoder_start_token_id=0), [*TEXT, "decoder_input_ids"]),
    (AutoModelForImageClassification, ViTConfig(**VIT, image_size=8, patch_size=4), ["pixel_values"]),
    (AutoModelForImageClassification, ViTConfig(**VIT, image_size=[8, 12], patch_size=4), ["pixel_values"]),
    (AutoModelForImageClassification, ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4), ["pixel_values"]),
    (AutoModelForImageClassification, ResNetConfig(depths=[1], hidden_sizes=[8]), ["pixel_values"]),
    (AutoModelForImageClassification, CLIPConfig(**CLIP), ["pixel_values"]),
    (AutoModelForAudioClassification, Wav2Vec2Config(**WAVE), ["input_values", "attention_mask"]),
    (AutoModelForAudioClassification, ASTConfig(**VIT, max_length=32, num_mel_bins=16), ["input_values"]),
    (AutoModelForAudioClassification, WhisperConfig(**WHISPER), ["input_features"]),
    (
        AutoModelForAudioClassification,
        Wav2Vec2BertConfig(**VIT, feature_projection_input_dim=8, output_hidden_size=16),
        ["input_features", "attention_mask"],
    ),
]


@pytest.mark.parametrize(("auto_class", "config", "names"), CASES, ids=lambda value: getattr(value, "model_type", ""))
def test_an_example_batch_is_what_the_model_reads(auto_class: Any, config: Any, names: list[str]) -> None:
    model = auto_class.from_config(config).eval()
    head = find_head(model)
    batch = head.example_batch(model, rows=3, length=6, seed=1)
    assert list(batch) == head.inputs(model) == names
    assert head.rows(batch) == 3
    assert head.takes_text == ("input_ids" in batch)
    with torch.no_grad():
        assert all(logits.isfinite().all() and len(logits) == 3 for logits in head.logits(model(**batch)))


def test_sounds_are_padded_as_texts_are() -> None:
    model = AutoModelForAudioClassification.from_config(Wav2Vec2Config(**WAVE, apply_spec_augment=False)).eval()
    head = find_head(model)
    for length in (1, 6):
        batch = head.example_batch(model, rows=2, length=length)
        own = int(batch["attention_mask"][1].sum())
        assert batch["attention_mask"][0].all() and not batch["input_values"][1, own:].any()
        assert 0 < own <= batch["input_values"].shape[1] // (1 if length == 1 else 2)
        with torch.no_grad():
            alone = model(**batch).logits[1]
            unmasked = model(batch["input_values"]).logits[1]
        assert alone.isfinite().all() and (length == 1) == torch.equal(alone, unmasked)


def test_an_example_batch_follows_its_seed(tiny_bert: Any) -> None:
    head = find_head(tiny_bert)
    first, same, other = (head.example_batch(tiny_bert, seed=seed)["input_ids"] for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_decorated_forward_does_not_change_the_head() -> None:
    class Decorated(GPT2LMHeadModel):
        @functools.wraps(GPT2LMHeadModel.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Hidden(GPT2LMHeadModel):
        forward = functools.partialmethod(GPT2LMHeadModel.forward)

    plain = find_head(GPT2LMHeadModel(GPT2Config(**GPT2)))
    assert find_head(Decorated(GPT2Config(**GPT2))) == find_head(Hidden(GPT2Config(**GPT2))) == plain


def test_the_list_of_models_that_do_not_shift_is_complete() -> None:
    classes = [getattr(transformers, name) for name in HEAD_KINDS["causal"].architectures()]
    sources = {cls.__name__: inspect.getsource(inspect.unwrap(cls.forward)) for cls in classes}
    assert {name for name, source in sources.items() if "self.loss_function(" not in source} == UNSHIFTED


@pytest.mark.parametrize(("name", "shifts"), [("GPT2LMHeadModel", True), ("BartForCausalLM", False)])
def test_only_listed_models_leave_the_shift_to_others(name: str, shifts: bool) -> None:
    config = GPT2Config(**GPT2) if shifts else BartConfig(**BART)
    model = getattr(transformers, name)(config).eval()
    ids = torch.tensor([[5, 9, 7]])
    outputs = model(input_ids=ids, labels=ids)
    own, following = outputs.logits[0], outputs.logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(*((following, ids[0, 1:]) if shifts else (own, ids[0])))
    torch.testing.assert_close(outputs.loss, expected)
    assert (name in UNSHIFTED) != shifts
