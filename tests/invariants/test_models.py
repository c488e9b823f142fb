"""Every supported architecture goes through all three methods, to disk and back, without losing a bit."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    TrainingArguments,
    XLMRobertaConfig,
)

from hf_compress.distill import DistillationTrainer, Seq2SeqDistillationTrainer
from hf_compress.models.layer_kinds import kind
from hf_compress.models.targets import prunable
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.callback import PruningCallback
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback

VOCABULARY, HIDDEN, TOKENS, PADDING = 40, 32, 8, 1
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": PADDING, "bos_token_id": 2, "eos_token_id": 3}
# One layer, except for ALBERT, which shares its own between two, and ModernBERT, whose kinds of attention alternate.
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
T5 = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": PADDING}
BART = {
    "d_model": HIDDEN,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 3,
    "scale_embedding": True,
}

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "bert": lambda **changes: BertConfig(**SPECIAL, **SIZES, **changes),
    "roberta": lambda **changes: RobertaConfig(**SPECIAL, **SIZES, type_vocab_size=1, **changes),
    "distilbert": lambda **changes: DistilBertConfig(
        **SPECIAL, dim=HIDDEN, n_layers=1, n_heads=2, hidden_dim=48, max_position_embeddings=16, **changes
    ),
    "albert": lambda **changes: AlbertConfig(
        **SPECIAL, **{**SIZES, "num_hidden_layers": 2}, embedding_size=16, **changes
    ),
    "electra": lambda **changes: ElectraConfig(**SPECIAL, **SIZES, embedding_size=16, **changes),
    "deberta-v2": lambda **changes: DebertaV2Config(
        **SPECIAL,
        **SIZES,
        # As in DeBERTa-v3's published configurations.
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        pooler_hidden_size=HIDDEN,
        **changes,
    ),
    "mpnet": lambda **changes: MPNetConfig(**SPECIAL, **SIZES, **changes),
    "xlm-roberta": lambda **changes: XLMRobertaConfig(**SPECIAL, **SIZES, type_vocab_size=1, **changes),
    "modernbert": lambda **changes: ModernBertConfig(
        **SPECIAL, **{**SIZES, "num_hidden_layers": 2}, cls_token_id=2, sep_token_id=3, local_attention=4, **changes
    ),
    "gpt2": lambda **changes: GPT2Config(**SPECIAL, n_embd=HIDDEN, n_layer=1, n_head=2, n_positions=16, **changes),
    "llama": lambda **changes: LlamaConfig(**SPECIAL, **SIZES, num_key_value_heads=1, **changes),
    "t5": lambda **changes: T5Config(**SPECIAL, **T5, **changes),
    # Beyond the list: its embeddings are subclasses with a forward of their own.
    "bart": lambda **changes: BartConfig(**SPECIAL, **BART, **changes),
    # Its embeddings of positions are in no file.
    "marian": lambda **changes: MarianConfig(**SPECIAL, **BART, **changes),
}

SEQUENCE, MASKED, CAUSAL, SEQ2SEQ = (
    AutoModelForSequenceClassification,
    AutoModelForMaskedLM,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)


@dataclass(frozen=True)
class Case:
    """An architecture with a head: which linear layers are the head, and what is stored of the vocabulary.

    `vocabulary` counts the stored matrices as long as the vocabulary: one if the output is tied to the input.
    """

    config: str
    auto_class: Any
    head: set[str]
    vocabulary: int = 1
    float_embeddings: set[str] = field(default_factory=set)
    changes: dict[str, Any] = field(default_factory=dict)
    scheme: str = "int8"
    bits: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        tied = [f"{name}={value}" for name, value in self.changes.items()]
        head = self.auto_class.__name__.removeprefix("AutoModelFor")
        return "-".join([self.config, head, *tied, self.scheme, *self.bits])


DENSE_THEN_OUT = {"classifier.dense", "classifier.out_proj"}
REL = {"deberta.encoder.rel_embeddings"}
UNTIED = {"tie_word_embeddings": False}
CASES = [
    Case("bert", SEQUENCE, {"classifier"}),
    Case("bert", MASKED, {"cls.predictions.transform.dense", "cls.predictions.decoder"}),
    Case("roberta", SEQUENCE, DENSE_THEN_OUT),
    Case("roberta", MASKED, {"lm_head.dense", "lm_head.decoder"}),
    Case("distilbert", SEQUENCE, {"pre_classifier", "classifier"}),
    Case("distilbert", MASKED, {"vocab_transform", "vocab_projector"}),
    Case("albert", SEQUENCE, {"classifier"}),
    Case("albert", MASKED, {"predictions.dense", "predictions.decoder"}),
    Case("electra", SEQUENCE, DENSE_THEN_OUT),
    Case("electra", MASKED, {"generator_predictions.dense", "generator_lm_head"}),
    Case("deberta-v2", SEQUENCE, {"pooler.dense", "classifier"}, float_embeddings=REL),
    Case(
        "deberta-v2",
        MASKED,
        {"cls.predictions.transform.dense", "cls.predictions.decoder"},
        float_embeddings=REL,
    ),
    Case("mpnet", SEQUENCE, DENSE_THEN_OUT),
    Case("mpnet", MASKED, {"lm_head.dense", "lm_head.decoder"}),
    Case("xlm-roberta", SEQUENCE, DENSE_THEN_OUT),
    Case("modernbert", SEQUENCE, {"head.dense", "classifier"}),
    Case("modernbert", MASKED, {"head.dense", "decoder"}),
    Case("gpt2", SEQUENCE, {"score"}),
    Case("gpt2", CAUSAL, {"lm_head"}),
    Case("llama", CAUSAL, {"lm_head"}, changes={"tie_word_embeddings": True}),
    Case("llama", CAUSAL, {"lm_head"}, changes=UNTIED, vocabulary=2),
    Case("llama", SEQUENCE, {"score"}),
    Case("t5", SEQ2SEQ, {"lm_head"}),
    Case("bart", SEQ2SEQ, {"lm_head"}),
    Case(
        "marian",
        SEQ2SEQ,
        {"lm_head"},
        float_embeddings={"model.encoder.embed_positions", "model.decoder.embed_positions"},
    ),
    *(
        Case(config, auto_class, head, scheme=scheme, bits=bits)
        for scheme, bits in (
            ("int8-dynamic", []),
            ("int4-weight", []),
            ("int8", [".=6", "wo|c_proj|query=4", "emb|wte=5"]),
        )
        for config, auto_class, head in (
            ("albert", SEQUENCE, {"classifier"}),
            ("gpt2", CAUSAL, {"lm_head"}),
            ("t5", SEQ2SEQ, {"lm_head"}),
        )
    ),
    Case("deberta-v2", SEQUENCE, {"pooler.dense", "classifier"}, float_embeddings=REL, scheme="int4-weight"),
]


def rows_for(auto_class: Any) -> list[dict[str, torch.Tensor]]:
    """Eight rows of random tokens, every other one padded, with the labels that the head takes."""
    rows = []
    for index in range(8):
        ids, mask = torch.randint(4, VOCABULARY, (TOKENS,)), torch.ones(TOKENS, dtype=torch.long)
        if index % 2:
            ids[-2:], mask[-2:] = PADDING, 0
        labels = torch.tensor(index % 2) if auto_class is SEQUENCE else ids.masked_fill(mask == 0, -100)
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def linear_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if kind(module) in ("linear", "conv1d")}


def embedding_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if kind(module) == "embedding"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_architecture_survives_all_methods_saving_and_loading(case: Case, round_trip: Any) -> None:
    model = case.auto_class.from_config(CONFIGS[case.config](**case.changes))
    trainer_class = Seq2SeqDistillationTrainer if case.auto_class is SEQ2SEQ else DistillationTrainer
    trip = round_trip(model, rows_for(case.auto_class), case.scheme, trainer_class, quant_bits=case.bits)
    trip.check()
    linear = linear_names(trip.reloaded)
    assert case.head <= linear
    assert trip.pruned == linear - case.head
    assert trip.quantized == trip.pruned | embedding_names(trip.reloaded) - case.float_embeddings
    stored = [facts for facts in trip.facts if len(facts.shape) == 2 and facts.shape[0] == VOCABULARY]
    assert len(stored) == case.vocabulary
    assert len({facts.name for facts in trip.facts}) == len(trip.facts)
    assert set(trip.reloaded.state_dict()) == set(trip.trained.state_dict())


HEADS = (
    SEQUENCE,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForMultipleChoice,
    MASKED,
    CAUSAL,
    SEQ2SEQ,
)
PAIRS = [
    (name, auto_class)
    for name, auto_class in itertools.product(CONFIGS, HEADS)
    if type(CONFIGS[name]()) in auto_class._model_mapping
]


@pytest.mark.parametrize(("name", "auto_class"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_the_body_is_what_the_architecture_has_without_a_head(name: str, auto_class: Any) -> None:
    with torch.device("meta"):
        headed, bare = auto_class.from_config(CONFIGS[name]()), AutoModel.from_config(CONFIGS[name]())
    prefix = "" if headed.base_model is headed else f"{headed.base_model_prefix}."
    body = {f"{prefix}{target.name}" for target in prunable(bare)}
    # Some heads do without the pooler, or without the encoder or decoder of the two.
    assert {target.name for target in prunable(headed)} == body & linear_names(headed) != set()


def arguments(tmp_path: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), max_steps=5, use_cpu=True, report_to="none", disable_tqdm=True)


class OnlyHead(PreTrainedModel):
    """A classifier without a body."""

    config_class = BertConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(HIDDEN, config.num_labels)
        self.post_init()


@pytest.mark.parametrize(
    ("callback", "option"),
    [
        (PruningCallback(PruningArguments(prune_sparsity=0.6, prune_every=1)), "prune_sparsity"),
        (QuantizationCallback(QuantizationArguments(quant_scheme="int8")), "quant_scheme"),
    ],
    ids=["pruning", "quantization"],
)
def test_a_model_with_nothing_to_compress_is_refused_first(callback: Any, option: str, tmp_path: Any) -> None:
    model = OnlyHead(CONFIGS["bert"]())
    with pytest.raises(ValueError, match=f"OnlyHead has no .*leave `--{option}` out"):
        DistillationTrainer(model, arguments(tmp_path), train_dataset=rows_for(SEQUENCE), callbacks=[callback]).train()


def test_a_head_that_bypasses_embeddings_needs_them_excluded(round_trip: Any) -> None:
    model = MASKED.from_config(CONFIGS["deberta-v2"](legacy=False))
    with pytest.raises(ValueError, match="Give `--quant_exclude word_embeddings`"):
        round_trip(model, rows_for(MASKED))
    trip = round_trip(model, rows_for(MASKED), quant_exclude=["word_embeddings"])
    trip.check()
    assert not [name for name in trip.quantized if "word_embeddings" in name]


def test_excluding_one_name_of_a_tied_weight_excludes_the_weight(round_trip: Any) -> None:
    model = SEQ2SEQ.from_config(CONFIGS["t5"]())
    trip = round_trip(model, rows_for(SEQ2SEQ), quant_exclude=["encoder.embed_tokens"])
    trip.check()
    assert not trip.quantized & {"shared", "encoder.embed_tokens", "decoder.embed_tokens"}


class Idle(BertForSequenceClassification):
    """A BERT with a layer that nothing calls."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.bert.unused = nn.Linear(HIDDEN, HIDDEN)


@pytest.mark.parametrize("scheme", ["int8", "int8-weight"])
def test_a_layer_that_is_never_called_stays_in_floating_point(scheme: str, round_trip: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", Idle.from_pretrained)
    monkeypatch.setattr("transformers.Idle", Idle, raising=False)
    trip = round_trip(Idle(CONFIGS["bert"]()), rows_for(SEQUENCE), scheme)
    trip.check()
    assert "bert.unused" in trip.pruned - trip.quantized
    assert {facts.name for facts in trip.facts if "unused" in facts.name} == {"bert.unused.weight", "bert.unused.bias"}


def test_every_architecture_is_one_that_auto_config_knows() -> None:
    for name, build in CONFIGS.items():
        assert type(AutoConfig.for_model(name)) is type(build())
