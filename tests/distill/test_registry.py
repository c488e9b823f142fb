"""A loss added to the registry alone trains, resumes, is saved and is described in the card."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import BertForSequenceClassification, EvalPrediction, HfArgumentParser, TrainingArguments

from hf_compress import Recipe, save_compressed
from hf_compress.distill import LOSSES, DistillationArguments, DistillationTrainer, Features, Loss
from hf_compress.models import find_head
from hf_compress.report.card import render
from hf_compress.report.measuring import measure
from hf_compress.report.report import DatasetFacts

STEPS = 4


def mae(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return (student - teacher).abs().mean(-1)


def last_hidden(student: Features, teacher: Features, temperature: float) -> Tensor:
    assert student.hidden_states is not None and teacher.hidden_states is not None
    squared = (student.hidden_states[-1] - teacher.hidden_states[-1]).square().mean(-1)
    return (squared * student.mask).sum(-1) / student.mask.sum(-1)


WORDS = {"help": "test distance", "card": "the {temperature:g}-tempered test distance", "citation": "@misc{test2026}"}
ADDED = {
    "mae": Loss("mae", mae, mae, **WORDS),
    "exclusive": Loss("exclusive", mae, None, **WORDS),
    "hidden": Loss("hidden", last_hidden, last_hidden, **WORDS, needs=("hidden_states",)),
}


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, loss in ADDED.items():
        monkeypatch.setitem(LOSSES, name, loss)


@pytest.fixture
def teacher(make_bert: Callable[..., BertForSequenceClassification]) -> BertForSequenceClassification:
    return make_bert(seed=1)


@pytest.fixture
def train(make_bert: Any, teacher: Any, tiny_dataset: Dataset, tmp_path: Path) -> Callable[..., DistillationTrainer]:
    """A function that trains a tiny BERT with a loss; keywords change the arguments of the Trainer."""

    def run(loss: str, folder: str = "run", resume: bool = False, **settings: Any) -> DistillationTrainer:
        settings = {
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "save_strategy": "no",
            "learning_rate": 3e-3,
        } | settings
        data = settings.pop("data", tiny_dataset)
        arguments = TrainingArguments(
            str(tmp_path / folder), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1, **settings
        )
        trainer = DistillationTrainer(
            make_bert(),
            arguments,
            teacher=teacher,
            distillation=DistillationArguments(distill_loss=loss),
            train_dataset=data,
            eval_dataset=tiny_dataset.select(range(16)),
            compute_metrics=accuracy,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def logged(trainer: DistillationTrainer) -> list[float]:
    return [line["distill_loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", ADDED)
def test_an_added_loss_trains_and_is_saved(name: str, train: Any, tmp_path: Path) -> None:
    trainer = train(name)
    losses = logged(trainer)
    assert len(losses) == STEPS and losses[-1] < losses[0]
    recipe = Recipe(DistillationArguments(distill_teacher="some/teacher", distill_loss=name))
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    reloaded, inputs = (
        type(trainer.model).from_pretrained(folder),
        find_head(trainer.model).example_batch(trainer.model),
    )
    assert torch.equal(reloaded.eval()(**inputs).logits, trainer.model.eval()(**inputs).logits)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", ADDED)
def test_an_added_loss_is_described_in_the_card(name: str, train: Any, tmp_path: Path) -> None:
    trainer = train(name)
    recipe = Recipe(DistillationArguments(distill_teacher="some/teacher", distill_loss=name))
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    facts = DatasetFacts("words", None, "train", 64, "train", 16)
    known = {"base_model": "/dense", "task": "kindness", "dataset": facts, "dense": {"eval_accuracy": 0.5}}
    report = measure(trainer, folder, recipe, main_metric="accuracy", **known)
    card = render(report)
    assert "the 2-tempered test distance" in card and "@misc{test2026}" in card


@pytest.mark.parametrize("name", ["mae", "hidden"])
def test_a_run_with_an_added_loss_resumes_exactly(name: str, train: Any, tmp_path: Path) -> None:
    whole = logged(train(name, "whole"))
    train(name, "half", save_strategy="steps", save_steps=2)
    for path in (tmp_path / "half").glob(f"checkpoint-{STEPS}/*"):
        path.unlink()
    (tmp_path / "half" / f"checkpoint-{STEPS}").rmdir()
    assert logged(train(name, "half", resume=True)) == whole


def independent(data: Dataset) -> Dataset:
    return data.map(lambda row: {"labels": [float(row["labels"]), 1.0]}, remove_columns=["labels"])


@pytest.mark.parametrize("name", ["mae", "hidden"])
def test_an_added_loss_learns_independent_labels(name: str, make_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    multi_label(name, make_bert, tmp_path, independent(tiny_dataset)).train()


def test_a_loss_without_independent_form_is_refused(make_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--distill_loss exclusive` has no form for independent labels"):
        multi_label("exclusive", make_bert, tmp_path, independent(tiny_dataset))


def multi_label(name: str, make_bert: Any, folder: Path, data: Dataset) -> DistillationTrainer:
    student, teacher = (make_bert(seed=seed, problem_type="multi_label_classification") for seed in (0, 1))
    return DistillationTrainer(
        student,
        TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2),
        teacher=teacher,
        distillation=DistillationArguments(distill_loss=name),
        train_dataset=data,
    )


def test_the_flag_and_its_checks_follow_the_registry() -> None:
    parser = HfArgumentParser(DistillationArguments)
    (options,) = parser.parse_args_into_dataclasses(["--distill_loss", "mae"])
    assert options.loss is LOSSES["mae"]
    for loss in list(LOSSES.values())[:3]:
        assert loss.help in DistillationArguments.__dataclass_fields__["distill_loss"].metadata["help"]


def test_a_loss_on_hidden_states_excludes_the_cache() -> None:
    with pytest.raises(ValueError, match="`--distill_cache` keeps the teacher's logits only"):
        DistillationArguments(distill_teacher="self", distill_loss="hidden", distill_cache="auto")


def test_only_known_needs_are_legal() -> None:
    with pytest.raises(ValueError, match="got 'logits'"):
        Loss("wrong", mae, None, **WORDS, needs=("logits",))


def test_hidden_states_are_asked_for_only_if_needed(train: Any, monkeypatch: Any) -> None:
    asked: dict[str, set[bool]] = {}
    forward = BertForSequenceClassification.forward

    @functools.wraps(forward)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.setdefault(self.training, set()).add(bool(kwargs.get("output_hidden_states")))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", watched)
    train("mae")
    assert asked == {True: {False}, False: {False}}
    asked.clear()
    trainer = train("hidden")
    assert asked == {True: {True}, False: {True}}, "the teacher is in evaluation mode"
    asked.clear()
    trainer.evaluate()
    assert asked == {False: {False}}


def test_a_hidden_loss_ignores_padding_and_weighs_batches(train: Any, make_bert: Any, teacher: Any) -> None:
    whole, parts = (
        logged(train("hidden", f"run{size}", per_device_train_batch_size=size, gradient_accumulation_steps=16 // size))
        for size in (16, 4)
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_attentions_that_a_model_does_not_return_are_named(train: Any, monkeypatch: Any) -> None:
    def maps(student: Features, teacher: Features, temperature: float) -> Tensor:
        raise AssertionError("nothing to compare")

    monkeypatch.setitem(LOSSES, "maps", Loss("maps", maps, maps, **WORDS, needs=("attentions",)))
    with pytest.raises(ValueError, match="needs `attentions`, which the student does not return"):
        train("maps")
