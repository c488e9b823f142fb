"""Teacher-only rows for heads that answer tokens, and heads for which there are none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_compress.distill import DistillationArguments, DistillationTrainer
from hf_compress.distill.teacher_only import COLUMN
from hf_compress.models.heads import find_head
from tests.tiny import NO_DROPOUT, SIZES

TAGS = 3


def two(kind: type[PreTrainedModel], **settings: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a student and a teacher in float64."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(kind(BertConfig(**SIZES | NO_DROPOUT | settings)).double())
    return models[0], models[1]


@pytest.fixture
def tagged(tiny_sentences: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """16 rows with a tag for each word, and -100 at special tokens and at every fourth word."""
    rows = []
    for sentence in tiny_sentences.select(range(16))["sentence"]:
        row = dict(tiny_tokenizer(sentence))
        inner = [-100 if place % 4 == 3 else token % TAGS for place, token in enumerate(row["input_ids"][1:-1])]
        rows.append(row | {"labels": [-100, *inner, -100]})
    return Dataset.from_list(rows)


@pytest.fixture
def asked(tiny_sentences: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """16 questions with a context that has the answer, of one length: padding is part of the models' own loss."""
    contexts = list(tiny_sentences.select(range(16))["sentence"])
    fixed: dict[str, Any] = {"padding": "max_length", "max_length": 16, "return_token_type_ids": True}
    tokens = tiny_tokenizer(["was the film dull"] * 16, contexts, **fixed)
    places = {"start_positions": [8] * 16, "end_positions": [9] * 16}
    return Dataset.from_dict(dict(tokens) | places)


def trainer_of(
    models: tuple[PreTrainedModel, PreTrainedModel],
    data: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    options: dict[str, Any] | None = None,
    collator: Any = None,
    **settings: Any,
) -> Any:
    defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no"}
    return DistillationTrainer(
        models[0],
        TrainingArguments(str(folder), report_to="none", use_cpu=True, **defaults | settings),
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=collator,
        teacher=models[1],
        distillation=DistillationArguments(**{"distill_augment": 2} | (options or {})),
    )


def mixed(trainer: Any, rows: list[int]) -> dict[str, Tensor]:
    loader = trainer.get_train_dataloader()
    return dict(loader.collate_fn([loader.dataset[row] for row in rows]))


def loss_of(trainer: Any, inputs: dict[str, Tensor]) -> Tensor:
    total = trainer._total([inputs])
    loss: Tensor = trainer.compute_loss(trainer.model.train(), dict(inputs), num_items_in_batch=total)
    return loss


def test_a_tagger_learns_every_word_of_teacher_only_rows(
    tagged: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    collator = DataCollatorForTokenClassification(tiny_tokenizer)
    trainer = trainer_of(
        two(BertForTokenClassification, num_labels=TAGS), tagged, tiny_tokenizer, tmp_path, collator=collator
    )
    inputs = mixed(trainer, [0, 5, 20, 41])
    labels, mask = inputs["labels"], inputs["attention_mask"].bool()
    special = torch.isin(inputs["input_ids"], torch.tensor([tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id]))
    seen = {name: value for name, value in inputs.items() if name not in (COLUMN, "labels")}
    student, teacher = trainer.model.train()(**seen).logits, trainer.teacher(**seen).logits
    taught = labels != -100
    taught[2:] = (mask & ~special)[2:]
    distances = 4 * functional.kl_div(
        (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    label_loss = functional.cross_entropy(student[:2].flatten(0, 1), labels[:2].flatten())
    torch.testing.assert_close(loss_of(trainer, inputs), 0.9 * distances[taught].mean() + 0.1 * label_loss)


def test_tags_stay_at_their_words(tagged: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    models = two(BertForTokenClassification, num_labels=TAGS)
    enlarged, _ = trainer_of(models, tagged, tiny_tokenizer, tmp_path)._enlarged(tagged, None)
    new = [row for row in enlarged if row[COLUMN]]
    for number, row in enumerate(new):
        old = tagged[number // 2]
        assert row["attention_mask"] == old["attention_mask"]
        assert row["labels"] == [-100, *[0] * (len(old["labels"]) - 2), -100]
    assert any(row["input_ids"] != tagged[number // 2]["input_ids"] for number, row in enumerate(new))


def test_a_question_keeps_its_context(asked: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = trainer_of(two(BertForQuestionAnswering), asked, tiny_tokenizer, tmp_path)
    enlarged, _ = trainer._enlarged(asked, None)
    for number, row in enumerate(row for row in enlarged if row[COLUMN]):
        old = asked[number // 2]
        assert row["token_type_ids"] == old["token_type_ids"]
        assert (row["start_positions"], row["end_positions"]) == (0, 0)
        for now, then in zip(row["input_ids"], old["input_ids"], strict=True):
            assert (now == then) or then not in tiny_tokenizer.all_special_ids


def test_answers_of_teacher_only_rows_have_no_label(
    asked: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    collator = DataCollatorWithPadding(tiny_tokenizer)
    trainer = trainer_of(two(BertForQuestionAnswering), asked, tiny_tokenizer, tmp_path, collator=collator)
    inputs = mixed(trainer, [0, 5, 20, 41])
    places = ("start_positions", "end_positions")
    seen = {name: value for name, value in inputs.items() if name not in (COLUMN, *places)}
    student, teacher = trainer.model.train()(**seen), trainer.teacher(**seen)
    distances, labels = [], []
    for name, place in zip(("start_logits", "end_logits"), places, strict=True):
        ours, theirs = (one[name].masked_fill(seen["attention_mask"] == 0, -1e30) for one in (student, teacher))
        pair = ((ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1))
        distances.append(4 * functional.kl_div(*pair, reduction="none", log_target=True).sum(-1).mean())
        labels.append(functional.cross_entropy(student[name][:2], inputs[place][:2]))
    expected = 0.9 * (distances[0] + distances[1]) / 2 + 0.1 * (labels[0] + labels[1]) / 2
    torch.testing.assert_close(loss_of(trainer, inputs), expected)


@pytest.mark.parametrize("task", ["tags", "answers"])
def test_accumulation_equals_one_batch_for_tokens(
    task: str, tagged: Dataset, asked: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lines = []
    for size, accumulation in ((12, 1), (3, 4)):
        tags = task == "tags"
        models = two(BertForTokenClassification, num_labels=TAGS) if tags else two(BertForQuestionAnswering)
        run = trainer_of(
            models,
            tagged if tags else asked,
            tiny_tokenizer,
            tmp_path,
            collator=DataCollatorForTokenClassification(tiny_tokenizer) if tags else None,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        names = ("loss", "distill_loss", "label_loss", "grad_norm")
        lines.append([[line[name] for name in names] for line in run.state.log_history if "loss" in line])
    for one, four in zip(*lines, strict=True):
        assert four == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("file", ["words.jsonl", "texts.txt"])
def test_extra_texts_of_a_tagger_may_be_words(
    file: str, tagged: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "words.jsonl").write_text('{"words": ["a", "warm", "song"]}\n{"words": ["stale"]}')
    (tmp_path / "texts.txt").write_text("a warm song\nstale")
    options = {"distill_extra": [str(tmp_path / file)], "distill_augment": 0}
    models = two(BertForTokenClassification, num_labels=TAGS)
    enlarged, _ = trainer_of(models, tagged, tiny_tokenizer, tmp_path, options)._enlarged(tagged, None)
    first = next(row for row in enlarged if row[COLUMN])
    assert first["input_ids"] == tiny_tokenizer("a warm song")["input_ids"]
    assert first["labels"] == [-100, 0, 0, 0, -100]


def test_heads_without_texts_to_label_are_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    image = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    for build in (
        lambda: BertForMultipleChoice(BertConfig(**SIZES)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=29, n_embd=8, n_layer=1, n_head=1)),
        lambda: ViTForImageClassification(image),
    ):
        student, teacher = build(), build()
        with pytest.raises(ValueError, match=f"this model does {find_head(student).name}. Leave the options out"):
            trainer_of((student, teacher), Dataset.from_dict({"labels": [0]}), tiny_tokenizer, tmp_path)
