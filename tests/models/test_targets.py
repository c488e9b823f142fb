"""What counts as body, head and embedding, for each shape of model."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
)

from hf_compress.models.layer_kinds import LAYER_KINDS, kind
from hf_compress.models.targets import part, prunable, quantizable, tied

BERT = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
}
LINEARS = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
ENCODER = {f"bert.encoder.layer.{layer}.{name}" for layer, name in itertools.product(range(2), LINEARS)}
EMBEDDINGS = {f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")}


def distilbert() -> PreTrainedModel:
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=12, dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=8)
    )


def gpt2() -> PreTrainedModel:
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=8, **tokens))


def t5() -> PreTrainedModel:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=12, **sizes, decoder_start_token_id=0))


def names(targets: list) -> set[str]:
    return {target.name for target in targets}


def test_linear_layers_of_berts_encoder_and_pooler_are_prunable(tiny_bert) -> None:
    assert names(prunable(tiny_bert)) == ENCODER | {"bert.pooler.dense"}


def test_embeddings_are_quantizable_too(tiny_bert) -> None:
    assert names(quantizable(tiny_bert)) == ENCODER | {"bert.pooler.dense"} | EMBEDDINGS


@pytest.mark.parametrize("model_class", [BertForTokenClassification, BertForQuestionAnswering, BertForMaskedLM])
def test_heads_are_never_touched(model_class: type[PreTrainedModel]) -> None:
    model = model_class(BertConfig(**BERT))
    assert names(prunable(model)) == ENCODER
    assert names(quantizable(model)) == ENCODER | EMBEDDINGS


@pytest.mark.parametrize(
    ("build", "heads"),
    [
        (distilbert, ["pre_classifier", "classifier"]),
        (lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)), ["classifier.dense", "classifier.out_proj"]),
        (gpt2, ["lm_head"]),
    ],
    ids=["distilbert", "roberta", "gpt2"],
)
def test_every_linear_layer_outside_the_head_is_prunable(
    build: Callable[[], PreTrainedModel], heads: list[str]
) -> None:
    model = build()
    linear = {name for name, module in model.named_modules() if kind(module) in ("linear", "conv1d")}
    assert set(heads) <= linear
    assert names(prunable(model)) == linear - set(heads)


def test_a_model_without_a_head_is_all_body() -> None:
    model = BertModel(BertConfig(**BERT))
    assert names(prunable(model)) == {name.removeprefix("bert.") for name in ENCODER} | {"pooler.dense"}


def test_an_encoder_and_its_decoder_are_both_body() -> None:
    model = t5()
    selected = names(prunable(model))
    assert {"encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.1.EncDecAttention.q"} <= selected
    assert "lm_head" not in selected


@pytest.mark.parametrize("head", ["qa_outputs", "classifier", "classification_head"])
def test_t5s_heads_are_heads_with_and_without_a_base(head: str) -> None:
    classes = {
        "qa_outputs": T5ForQuestionAnswering,
        "classifier": T5ForTokenClassification,
        "classification_head": T5ForSequenceClassification,
    }
    model = classes[head](t5().config)
    assert part(model, next(name for name, _ in model.named_parameters() if name.startswith(head))) == "head"
    assert not [name for name in names(quantizable(model)) if name.startswith(head)]


def test_the_pooler_of_a_headless_albert_is_body() -> None:
    sizes = {"vocab_size": 12, "embedding_size": 4, "hidden_size": 8, "intermediate_size": 16}
    assert "pooler" in names(prunable(AlbertModel(AlbertConfig(**sizes, num_attention_heads=2))))


def test_an_exclusion_covers_all_tied_names() -> None:
    assert not {"shared", "encoder.embed_tokens", "decoder.embed_tokens"} & names(quantizable(t5(), ["^shared$"]))


def test_layers_that_are_used_several_times_are_listed_once() -> None:
    sizes = {"vocab_size": 12, "embedding_size": 4, "hidden_size": 8, "intermediate_size": 16}
    albert = AlbertForSequenceClassification(AlbertConfig(**sizes, num_hidden_layers=3, num_attention_heads=2))
    assert len(prunable(albert)) == len({id(target.module) for target in prunable(albert)}) == 8


def test_every_embedding_that_shares_a_weight_is_listed() -> None:
    embeddings = [target for target in quantizable(t5()) if target.weight.shape == (12, 8)]
    assert {target.name for target in embeddings} == {"shared", "encoder.embed_tokens", "decoder.embed_tokens"}
    assert len({id(target.weight) for target in embeddings}) == 1


@pytest.mark.parametrize("layer", LAYER_KINDS)
def test_subclasses_are_of_the_kind_of_their_base(layer: type[nn.Module]) -> None:
    """Quantization turns layers into subclasses in place; pruning must still find them."""
    module = layer(4, 4, 1) if issubclass(layer, nn.Conv1d | nn.Conv2d) else layer(4, 4)
    module.__class__ = type("Turned", (layer,), {})
    assert kind(module) == LAYER_KINDS[layer]


def test_other_modules_are_of_no_kind() -> None:
    assert kind(nn.LayerNorm(4)) is None


def test_the_row_dimension_enumerates_outputs_or_vocabulary() -> None:
    targets = {target.name: target for target in quantizable(gpt2())}
    expanding = targets["transformer.h.0.mlp.c_fc"]
    assert (expanding.kind, expanding.weight.shape[expanding.row_dim]) == ("conv1d", 32)
    vocabulary = targets["transformer.wte"]
    assert (vocabulary.kind, vocabulary.weight.shape[vocabulary.row_dim]) == ("embedding", 12)
    bert = {target.name: target for target in quantizable(BertModel(BertConfig(**BERT)))}
    expanding = bert["encoder.layer.0.intermediate.dense"]
    assert (expanding.kind, expanding.weight.shape[expanding.row_dim]) == ("linear", 16)


def test_a_target_follows_its_module_to_another_weight(tiny_bert) -> None:
    target = prunable(tiny_bert)[0]
    target.module.weight = nn.Parameter(torch.zeros(2, 2))
    assert target.weight is target.module.weight


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["pooler"], ENCODER),
        ([r"encoder\.layer\.0\.", "pooler"], {name for name in ENCODER if ".layer.1." in name}),
        (["attention", "output", "pooler"], {name for name in ENCODER if "intermediate" in name}),
        (["^bert.encoder"], {"bert.pooler.dense"}),
    ],
)
def test_what_an_exclude_pattern_finds_in_a_name_is_left_out(patterns: list[str], left: set[str], tiny_bert) -> None:
    assert names(prunable(tiny_bert, patterns)) == left
    assert names(quantizable(tiny_bert, patterns)) == left | EMBEDDINGS


@pytest.mark.parametrize(("select", "option"), [(prunable, "prune_exclude"), (quantizable, "quant_exclude")])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("decoder", "matches none of the .* modules"),
        ("classifier", "matches none"),
        ("(", "is not a regular expression"),
    ],
)
def test_a_pattern_without_effect_is_refused(
    pattern: str, message: str, select: Callable, option: str, tiny_bert
) -> None:
    with pytest.raises(ValueError, match=rf"`--{option} .*` {message}"):
        select(tiny_bert, ["pooler", pattern])


def test_a_model_of_which_nothing_is_left_is_refused(tiny_bert) -> None:
    with pytest.raises(ValueError, match=r"has no linear layer or convolution.*`--prune_exclude`.*Exclude less"):
        prunable(tiny_bert, ["bert"])


def test_a_model_with_nothing_to_compress_is_refused() -> None:
    class Nothing(BertPreTrainedModel):
        def __init__(self, config: BertConfig) -> None:
            super().__init__(config)
            self.bert = nn.Identity()
            self.classifier = nn.Linear(8, 2)

    model = Nothing(BertConfig(**BERT))
    with pytest.raises(ValueError, match="Nothing has no linear layer or convolution to compress in its body"):
        prunable(model)
    with pytest.raises(ValueError, match="Nothing has no linear layer, convolution or embedding"):
        quantizable(model)


def test_a_head_tied_to_the_embeddings_is_found_by_its_weight() -> None:
    model = BertForMaskedLM(BertConfig(**BERT))
    (head,) = tied(model, quantizable(model))
    assert head.module is model.get_output_embeddings()
    assert head.shares_embedding
    assert head.kind == "linear"


def test_an_untied_head_is_nobodys_twin(tiny_bert) -> None:
    assert tied(tiny_bert, quantizable(tiny_bert)) == []
    model = BertForMaskedLM(BertConfig(**BERT, tie_word_embeddings=False))
    assert tied(model, quantizable(model)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert.embeddings.word_embeddings.weight", "embeddings"),
        ("bert.embeddings.position_embeddings.weight", "embeddings"),
        ("bert.encoder.layer.0.attention.self.query.weight", "encoder"),
        ("bert.encoder.layer.1.output.LayerNorm.bias", "encoder"),
        ("bert.pooler.dense.bias", "encoder"),
        ("classifier.weight", "head"),
        ("classifier.bias", "head"),
    ],
)
def test_every_parameter_belongs_to_embeddings_encoder_or_head(name: str, expected: str, tiny_bert) -> None:
    assert part(tiny_bert, name) == expected


@pytest.mark.parametrize("build", [distilbert, gpt2, t5, lambda: BertForMaskedLM(BertConfig(**BERT))])
def test_each_parameter_of_any_model_has_a_part(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    found = {name: part(model, name) for name, _ in model.named_parameters()}
    assert {"embeddings", "encoder"} <= set(found.values())
    assert all(found[f"{target.name}.weight"] == "encoder" for target in prunable(model))
