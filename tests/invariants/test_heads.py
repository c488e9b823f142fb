"""Every kind of head goes through all three methods, to disk and back, and every other is refused before training."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2DoubleHeadsModel,
    T5Config,
    TrainingArguments,
    ViTConfig,
    Wav2Vec2Config,
)

from hf_compress.distill import DistillationArguments, DistillationTrainer, Seq2SeqDistillationTrainer
from hf_compress.models.heads import find_head

VOCABULARY, TOKENS, CHOICES = 40, 8, 3
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}


def bert(**changes: Any) -> BertConfig:
    return BertConfig(**SIZES, **changes)


def gpt2() -> GPT2Config:
    return GPT2Config(**GPT2, bos_token_id=1, eos_token_id=1)


def t5() -> T5Config:
    return T5Config(**T5, pad_token_id=0, decoder_start_token_id=0)


VIT = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}


def vit(**changes: Any) -> ViTConfig:
    return ViTConfig(**VIT, image_size=8, patch_size=4, **changes)


def wav2vec2(**changes: Any) -> Wav2Vec2Config:
    convolutions = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    return Wav2Vec2Config(**VIT, **convolutions, **positions, apply_spec_augment=False, **changes)


@dataclass(frozen=True)
class Case:
    """A head by its name, the shape of its logits for three rows, and its modules at the top of the model."""

    name: str
    auto_class: Any
    shape: tuple[int, ...]
    config: Any = field(default_factory=bert)
    head: tuple[str, ...] = ("classifier",)


CASES = [
    Case("sequence classification", AutoModelForSequenceClassification, (3, 4), bert(num_labels=4)),
    Case("regression", AutoModelForSequenceClassification, (3, 1), bert(num_labels=1)),
    Case(
        "multi-label classification",
        AutoModelForSequenceClassification,
        (3, 4),
        bert(num_labels=4, problem_type="multi_label_classification"),
    ),
    Case("token classification", AutoModelForTokenClassification, (3, TOKENS, 5), bert(num_labels=5)),
    Case("question answering", AutoModelForQuestionAnswering, (3, TOKENS), head=("qa_outputs",)),
    Case("question answering", AutoModelForQuestionAnswering, (3, TOKENS), t5(), head=("qa_outputs",)),
    Case("multiple choice", AutoModelForMultipleChoice, (3, CHOICES)),
    Case("masked language modelling", AutoModelForMaskedLM, (3, TOKENS, VOCABULARY), head=("cls",)),
    Case("causal language modelling", AutoModelForCausalLM, (3, TOKENS, VOCABULARY), gpt2(), head=("lm_head",)),
    Case(
        "sequence-to-sequence language modelling",
        AutoModelForSeq2SeqLM,
        (3, TOKENS, VOCABULARY),
        t5(),
        head=("lm_head",),
    ),
    Case("image classification", AutoModelForImageClassification, (3, 4), vit(num_labels=4)),
    Case("image regression", AutoModelForImageClassification, (3, 1), vit(num_labels=1)),
    Case(
        "audio classification",
        AutoModelForAudioClassification,
        (3, 4),
        wav2vec2(num_labels=4),
        head=("projector", "classifier"),
    ),
]


def rows_for(case: Case) -> list[dict[str, torch.Tensor]]:
    """Eight rows of random tokens, every other one padded, with the labels that the head takes."""
    if case.auto_class in (AutoModelForImageClassification, AutoModelForAudioClassification):
        return seen_or_heard(case)
    rows = []
    for index in range(8):
        shape = (CHOICES, TOKENS) if case.name == "multiple choice" else (TOKENS,)
        ids, mask = torch.randint(4, VOCABULARY, shape), torch.ones(shape, dtype=torch.long)
        if index % 2:
            ids[..., -2:], mask[..., -2:] = 0, 0
        labels: dict[str, torch.Tensor]
        match case.name:
            case "question answering":
                labels = {"start_positions": torch.tensor(index % 4), "end_positions": torch.tensor(index % 4 + 1)}
            case "regression":
                labels = {"labels": torch.tensor(index / 8)}
            case "multi-label classification":
                labels = {"labels": torch.tensor([index % 2, index % 3 == 0, 1, 0]).float()}
            case "token classification":
                # Of the padding some have labels, which must not count, and of the rest one has none.
                labels = {"labels": (ids % 5).index_fill(0, torch.tensor([0]), -100)}
            case "sequence classification" | "multiple choice":
                labels = {"labels": torch.tensor(index % 3)}
            case "masked language modelling":
                labels = {"labels": ids.masked_fill(torch.arange(TOKENS) % 3 > 0, -100)}
            case _:
                labels = {"labels": ids.masked_fill(mask == 0, -100)}
        inputs = {"input_ids": ids, "attention_mask": mask}
        rows.append(inputs | labels)
    return rows


def seen_or_heard(case: Case) -> list[dict[str, torch.Tensor]]:
    """Eight rows of random pixels or samples with labels."""
    model = case.auto_class.from_config(case.config)
    values = find_head(model).example_batch(model, rows=8)
    labels = torch.arange(8) / 8 if case.name == "image regression" else torch.arange(8) % 3
    return [{name: value[row] for name, value in (values | {"labels": labels}).items()} for row in range(8)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.config.model_type}".replace(" ", "-"))
def test_a_head_survives_all_methods_saving_and_loading(case: Case, round_trip: Any) -> None:
    model = case.auto_class.from_config(case.config)
    head = find_head(model)
    assert (head.name, head.auto_class) == (case.name, case.auto_class)
    seq2seq = case.auto_class is AutoModelForSeq2SeqLM
    trip = round_trip(
        model, rows_for(case), trainer_class=Seq2SeqDistillationTrainer if seq2seq else DistillationTrainer
    )
    trip.check()
    assert len(trip.after) == (2 if case.name == "question answering" else 1)
    assert all(logits.shape == case.shape for logits in trip.after)
    of_head = {facts.name for facts in trip.facts if facts.name.split(".")[0] in case.head}
    assert {facts.name for facts in trip.facts if facts.part == "head"} == of_head
    assert not {name.split(".")[0] for name in trip.pruned | trip.quantized} & set(case.head)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: BertModel(bert()), "BertModel has no known head"),
        (lambda: BertForNextSentencePrediction(bert()), "BertForNextSentencePrediction has no known head"),
        (lambda: BertForPreTraining(bert()), "BertForPreTraining has no known head"),
        (lambda: GPT2DoubleHeadsModel(gpt2()), "GPT2DoubleHeadsModel has no known head"),
    ],
    ids=["none", "next-sentence", "pre-training", "double"],
)
def test_a_head_that_is_not_known_is_refused_before_training(build: Any, said: str, tmp_path: Any) -> None:
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    with pytest.raises(ValueError, match=said):
        DistillationTrainer(build(), settings, distillation=DistillationArguments(distill_teacher="self"))
