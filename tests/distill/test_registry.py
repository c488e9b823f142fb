"""A loss added to the registry alone trains, resumes, is saved and is described in the card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import BertForSequenceClassification, EvalPrediction, HfArgumentParser, TrainingArguments

from hf_compress import Recipe, save_compressed
from hf_compress.distill import LAYER_LOSSES, LOSSES, DistillationArguments, DistillationTrainer, LayerLoss, Loss
from hf_compress.models import find_head
from hf_compress.report.card import render
from hf_compress.report.measuring import measure
from hf_compress.report.report import DatasetFacts

STEPS = 4


def mae(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return (student - teacher).abs().mean(-1)


def first_token(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return (student[:, 0] - teacher[:, 0]).square().mean(-1)


WORDS = {"help": "test distance", "card": "the {temperature:g}-tempered test distance", "citation": "@misc{test2026}"}
ADDED = {
    "mae": Loss("mae", mae, mae, **WORDS),
    "exclusive": Loss("exclusive", mae, None, **WORDS),
}
LAYER_WORDS = WORDS | {"card": "the 2-tempered test distance"}
ADDED_TO_LAYERS = LayerLoss("first", first_token, "hidden", **LAYER_WORDS)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, loss in ADDED.items():
        monkeypatch.setitem(LOSSES, name, loss)
    monkeypatch.setitem(LAYER_LOSSES, "first", ADDED_TO_LAYERS)


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
            distillation=options(loss),
            train_dataset=data,
            eval_dataset=tiny_dataset.select(range(16)),
            compute_metrics=accuracy,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def options(loss: str, **more: Any) -> DistillationArguments:
    """Options with an added loss on logits, or on layers."""
    chosen = {"distill_loss": loss} if loss in LOSSES else {"distill_layer_loss": [f"{loss}=1"]}
    return DistillationArguments(**chosen, **more)


def logged(trainer: DistillationTrainer, loss: str) -> list[float]:
    name = "distill_loss" if loss in LOSSES else f"{loss}_loss"
    return [line[name] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", [*ADDED, "first"])
def test_an_added_loss_trains_and_is_saved(name: str, train: Any, tmp_path: Path) -> None:
    trainer = train(name)
    losses = logged(trainer, name)
    assert len(losses) == STEPS and losses[-1] < losses[0]
    recipe = Recipe(options(name, distill_teacher="some/teacher"))
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    reloaded, inputs = (
        type(trainer.model).from_pretrained(folder),
        find_head(trainer.model).example_batch(trainer.model),
    )
    assert torch.equal(reloaded.eval()(**inputs).logits, trainer.model.eval()(**inputs).logits)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", [*ADDED, "first"])
def test_an_added_loss_is_described_in_the_card(name: str, train: Any, tmp_path: Path) -> None:
    trainer = train(name)
    recipe = Recipe(options(name, distill_teacher="some/teacher"))
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    facts = DatasetFacts("words", None, "train", 64, "train", 16)
    known = {"base_model": "/dense", "task": "kindness", "dataset": facts, "dense": {"eval_accuracy": 0.5}}
    report = measure(trainer, folder, recipe, main_metric="accuracy", **known)
    card = render(report)
    assert "the 2-tempered test distance" in card and "@misc{test2026}" in card


@pytest.mark.parametrize("name", ["mae", "first"])
def test_a_run_with_an_added_loss_resumes_exactly(name: str, train: Any, tmp_path: Path) -> None:
    whole = logged(train(name, "whole"), name)
    train(name, "half", save_strategy="steps", save_steps=2)
    for path in (tmp_path / "half").glob(f"checkpoint-{STEPS}/*"):
        path.unlink()
    (tmp_path / "half" / f"checkpoint-{STEPS}").rmdir()
    assert logged(train(name, "half", resume=True), name) == whole


def independent(data: Dataset) -> Dataset:
    return data.map(lambda row: {"labels": [float(row["labels"]), 1.0]}, remove_columns=["labels"])


@pytest.mark.parametrize("name", ["mae", "first"])
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
        distillation=options(name),
        train_dataset=data,
    )


def test_the_flag_and_its_checks_follow_the_registry() -> None:
    parser = HfArgumentParser(DistillationArguments)
    (parsed,) = parser.parse_args_into_dataclasses(["--distill_loss", "mae", "--distill_layer_loss", "first=2"])
    assert parsed.loss is LOSSES["mae"]
    assert parsed.layer_losses == [(ADDED_TO_LAYERS, 2.0)]
    for loss in list(LOSSES.values())[:3]:
        assert loss.help in DistillationArguments.__dataclass_fields__["distill_loss"].metadata["help"]


def test_only_known_parts_of_layers_are_legal() -> None:
    with pytest.raises(ValueError, match="must be one of 'hidden', .*, got 'logits'"):
        LayerLoss("wrong", first_token, "logits", **WORDS)
