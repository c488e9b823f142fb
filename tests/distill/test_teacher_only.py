"""Rows that only the teacher labels: how they count in both losses, and training with them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_compress.distill import DistillationArguments, DistillationMixin, DistillationTrainer
from hf_compress.distill.teacher_only import COLUMN
from tests.invariants.harness import same
from tests.tiny import SIZES, bert

LABELS: dict[str, Any] = {"one of two": 1, "regression": 0.5, "whole numbers": 3, "independent": [1.0, 0.0, 1.0]}
PROBLEMS = list(LABELS)


def labelled(data: Dataset, problem: str) -> Dataset:
    return data.remove_columns("labels").add_column("labels", [LABELS[problem]] * len(data))


def batch(trainer: Any, rows: list[int]) -> dict[str, Tensor]:
    """Return some rows of the enlarged training set as a batch."""
    loader = trainer.get_train_dataloader()
    return dict(loader.collate_fn([loader.dataset[row] for row in rows]))


def loss_of(trainer: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the loss of a batch that is a whole optimizer step."""
    loss: Tensor = trainer.compute_loss(
        trainer.model.train(), dict(inputs), num_items_in_batch=trainer._total([inputs])
    )
    return loss


def mean_by_hand(logits: Tensor, labels: Tensor, problem: str) -> Tensor:
    if problem == "one of two":
        return functional.cross_entropy(logits, labels)
    if problem in ("regression", "whole numbers"):
        return ((logits.flatten() - labels) ** 2).mean()
    return functional.binary_cross_entropy_with_logits(logits, labels)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_loss_is_a_mean_over_its_own_rows(problem: str, enlarging: Callable[..., Any], encoded: Dataset) -> None:
    trainer = enlarging(labelled(encoded, problem), problem)
    inputs = batch(trainer, [0, 3, 30, 31, 40])  # Two labelled rows, then three that are not.
    assert inputs[COLUMN].tolist() == [False, False, True, True, True]
    seen = {name: value for name, value in inputs.items() if name not in (COLUMN, "labels")}
    student, teacher = trainer.model.train()(**seen).logits, trainer.teacher(**seen).logits
    label_loss = mean_by_hand(student[:2], inputs["labels"][:2].to(inputs["labels"].dtype), problem)
    if problem in ("regression", "whole numbers"):
        distances = (student - teacher) ** 2
    elif problem == "independent":
        probability, own = (teacher / 2).sigmoid(), (student / 2).sigmoid()
        distances = 4 * torch.stack(
            [
                chance * (chance.log() - mine.log()) + (1 - chance) * ((1 - chance).log() - (1 - mine).log())
                for chance, mine in zip(probability, own, strict=True)
            ]
        )
    else:
        distances = 4 * functional.kl_div(
            (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), reduction="none", log_target=True
        ).sum(-1, keepdim=True)
    torch.testing.assert_close(loss_of(trainer, inputs), 0.6 * distances.mean() + 0.4 * label_loss)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_batch_without_labelled_rows_has_no_label_loss(
    problem: str, enlarging: Callable[..., Any], encoded: Dataset
) -> None:
    trainer = enlarging(labelled(encoded, problem), problem)
    inputs = batch(trainer, [30, 31])
    mixed = loss_of(trainer, inputs)
    trainer.distillation.distill_alpha = 1.0
    only = loss_of(trainer, inputs)
    torch.testing.assert_close(mixed, 0.6 * only)
    assert only > 0


@pytest.mark.parametrize("problem", PROBLEMS)
def test_placeholder_labels_have_no_influence(problem: str, enlarging: Callable[..., Any], encoded: Dataset) -> None:
    found = []
    for other in (False, True):
        trainer = enlarging(labelled(encoded, problem), problem)
        enlarged, _ = trainer._enlarged(trainer.train_dataset, trainer.data_collator)
        if other:
            changed = [row["labels"] if not row[COLUMN] else LABELS[problem] for row in enlarged]
            assert changed != enlarged["labels"]
            enlarged = enlarged.remove_columns("labels").add_column("labels", changed)
        trainer._enlarged_from = trainer.train_dataset, enlarged
        trainer.train()
        found.append(trainer.model.state_dict())
    assert same(*found)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_accumulation_equals_one_large_batch(problem: str, enlarging: Callable[..., Any], encoded: Dataset) -> None:
    runs = []
    for size, accumulation in ((16, 1), (4, 4)):
        runs.append(
            enlarging(
                labelled(encoded.select(range(18)), problem),
                problem,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
            )
        )
        runs[-1].train()
    names = ("loss", "distill_loss", "label_loss", "grad_norm")
    lines = [[[line[name] for name in names] for line in run.state.log_history if "loss" in line] for run in runs]
    for one, four in zip(*lines, strict=True):
        assert four == pytest.approx(one, rel=1e-6)


def test_training_without_labels_learns_from_the_teacher(enlarging: Callable[..., Any]) -> None:
    trainer = enlarging(options={"distill_alpha": 1.0}, max_steps=30, learning_rate=5e-3)
    trainer.train()
    losses = [line["distill_loss"] for line in trainer.state.log_history if "distill_loss" in line]
    assert losses[-1] < losses[0] / 5


def test_an_epoch_has_all_rows_once(enlarging: Callable[..., Any], encoded: Dataset) -> None:
    trainer = enlarging(max_steps=-1, num_train_epochs=1)
    trainer.train()
    assert trainer.state.global_step == 24 * 3 // 8
    assert trainer.further_rows == {"augmented": 48}
    assert trainer.train_dataset is encoded, "Trainer's own set stays as it was"
    assert "eval_loss" in trainer.evaluate()


def test_new_rows_are_padded_as_the_training_rows_are(
    enlarging: Callable[..., Any], tiny_dataset: Dataset, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    trainer = enlarging(tiny_dataset)
    enlarged, _ = trainer._enlarged(trainer.train_dataset, trainer.data_collator)
    new = enlarged.filter(lambda row: row[COLUMN])
    assert len(new) == 2 * len(tiny_dataset)
    for row, old in zip(new.select(range(0, len(new), 2)), tiny_dataset, strict=True):
        assert len(row["input_ids"]) == 10
        assert row["attention_mask"] == old["attention_mask"]
        own = sum(row["attention_mask"])
        assert row["input_ids"][own:] == [tiny_tokenizer.pad_token_id] * (10 - own)


def test_new_rows_are_read_from_their_file_again(
    enlarging: Callable[..., Any], encoded: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = enlarging()._enlarged(encoded, None)
    monkeypatch.setattr("hf_compress.distill.augmenting.Augmenter.new", None)
    same_rows = Dataset.from_list(encoded.to_list())
    again, _ = enlarging(same_rows)._enlarged(same_rows, None)
    assert again.to_list() == first.to_list()
    with pytest.raises(TypeError):
        enlarging(options={"distill_augment": 3})
    with pytest.raises(TypeError):
        enlarging(data_seed=1)


class Own(Trainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


class OwnDistilled(DistillationMixin, Own):
    pass


def test_a_loss_of_ones_own_sees_ignored_labels(enlarging: Callable[..., Any], encoded: Dataset) -> None:
    trainer = enlarging(trainer_class=OwnDistilled, gradient_accumulation_steps=2)
    trainer.train()
    with pytest.raises(ValueError, match="Own has a `compute_loss` of its own"):
        enlarging(labelled(encoded, "regression"), "regression", trainer_class=OwnDistilled)


def test_what_cannot_be_enlarged_is_refused(
    enlarging: Callable[..., Any], encoded: Dataset, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=r"must be a `datasets.Dataset`; got builtins.list"):
        enlarging(encoded.to_list())
    with pytest.raises(ValueError, match="column `teacher_only`, which the `train_dataset` already has"):
        enlarging(encoded.add_column(COLUMN, [True] * 24))
    with pytest.raises(ValueError, match="with `input_ids` and labels; got 24 rows with the columns input_ids"):
        enlarging(encoded.remove_columns("labels"))
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    options = DistillationArguments(distill_augment=1)
    with pytest.raises(ValueError, match="there is none. Give `--distill_teacher`"):
        DistillationTrainer(bert(), arguments, distillation=options)
    with pytest.raises(ValueError, match="Pass it as `processing_class`"):
        DistillationTrainer(bert(), arguments, teacher=bert(1), distillation=options)
    words = BertForMaskedLM(BertConfig(**SIZES))
    with pytest.raises(ValueError, match="this model does masked language modelling"):
        DistillationTrainer(
            words, arguments, teacher=copy.deepcopy(words), distillation=options, processing_class=tiny_tokenizer
        )
    for copies in (-1, 1001, 1.5, True):
        with pytest.raises(ValueError, match=f"`--distill_augment` must .* 0 to 1000; got {copies}"):
            DistillationArguments(distill_augment=copies)


def test_a_collator_that_packs_rows_is_refused(
    enlarging: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    padded = DataCollatorWithPadding(tiny_tokenizer)

    def packed(rows: Any) -> Any:
        return padded(rows[:1])

    with pytest.raises(ValueError, match=r"the data collator \(function\) made \[1\] of 8 rows"):
        enlarging(more={"data_collator": packed}).train()


def test_the_format_of_the_training_set_stays(enlarging: Callable[..., Any], encoded: Dataset) -> None:
    runs = [enlarging(data) for data in (encoded, encoded.with_format("torch"))]
    for run in runs:
        run.train()
    assert same(*(run.model.state_dict() for run in runs))
    assert runs[1].get_train_dataloader().dataset.format["type"] == "torch"


def test_columns_that_the_model_does_not_take_are_copied(
    enlarging: Callable[..., Any], tiny_sentences: Dataset, encoded: Dataset, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    padded = DataCollatorWithPadding(tiny_tokenizer)
    seen = []

    def collate(rows: Any) -> Any:
        seen.extend(row.pop("sentence") for row in rows)
        return padded(rows)

    data = encoded.add_column("sentence", list(tiny_sentences.select(range(24))["sentence"]))
    enlarging(data, remove_unused_columns=False, more={"data_collator": collate}, max_steps=9).train()
    assert set(seen) == set(data["sentence"])


def test_the_log_says_what_an_epoch_has(enlarging: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    enlarging(gradient_accumulation_steps=2).get_train_dataloader()
    enlarging(options={"distill_extra_share": 0.25}).get_train_dataloader()
    assert (
        "An epoch has 24 labelled rows and 48 that only the teacher labels (of 48 augmented): 5 steps." in caplog.text
    )
    assert (
        "An epoch has 24 labelled rows and 8 that only the teacher labels (of 48 augmented): 4 steps." in caplog.text
    )


def test_layers_are_compared_in_teacher_only_rows_too(enlarging: Callable[..., Any]) -> None:
    lines = []
    for size, accumulation in ((16, 1), (4, 4)):
        run = enlarging(
            options={"distill_layer_loss": ["hidden=1", "attention=0.5"]},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        names = ("loss", "hidden_loss", "attention_loss", "grad_norm")
        lines.append([[line[name] for name in names] for line in run.state.log_history if "loss" in line])
    for one, four in zip(*lines, strict=True):
        assert four == pytest.approx(one, rel=1e-5)
