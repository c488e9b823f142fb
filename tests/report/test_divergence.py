"""A model that has diverged gives no result: what is not finite becomes no number in any file."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, EvalPrediction, Trainer, TrainingArguments

from hf_compress import DatasetFacts, Recipe, Report, measure, save_compressed
from hf_compress.models import find_head
from hf_compress.report.evaluation import logit_difference

FACTS = DatasetFacts("words", None, "train", 16, "train", 16)
Make = Callable[..., Trainer]


@pytest.fixture
def make(make_bert: Callable[..., BertForSequenceClassification], tiny_dataset: Dataset, tmp_path: Path) -> Make:
    """A Trainer after one step, whose metrics are given."""

    def build(metrics: dict[str, float]) -> Trainer:
        rows = tiny_dataset.select(range(16))
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True
        )

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            return metrics

        trainer = Trainer(make_bert(), arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=compute)
        trainer.train()
        return trainer

    return build


def report_on(trainer: Trainer, folder: Path, **changes: Any) -> Report:
    facts = {"base_model": "b", "task": "t", "dataset": FACTS, "main_metric": "accuracy", "dense": None} | changes
    return measure(trainer, folder, Recipe(), **facts)


def test_weights_that_are_not_finite_give_no_result(make: Make, tmp_path: Path) -> None:
    trainer = make({"accuracy": 0.375})
    trainer.state.log_history.append({"step": 7, "grad_norm": math.nan})
    folder = save_compressed(trainer.model, tmp_path / "small", Recipe())
    with torch.no_grad():
        trainer.model.classifier.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="diverged") as error:
        report_on(trainer, folder)
    assert "Not finite in the trained model: classifier.weight." in str(error.value)
    assert "saved model" not in str(error.value)
    assert "The log first shows it in step 7: grad_norm = nan." in str(error.value)


def test_a_main_score_that_is_not_finite_gives_no_result(make: Make, tmp_path: Path) -> None:
    trainer = make({"accuracy": math.nan})
    folder = save_compressed(trainer.model, tmp_path / "small", Recipe())
    with pytest.raises(ValueError, match="no result: accuracy = nan"):
        report_on(trainer, folder)


def test_an_undefined_further_score_is_left_out(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make({"accuracy": 0.5, "mcc": math.nan})
    folder = save_compressed(trainer.model, tmp_path / "small", Recipe())
    dense = {"eval_accuracy": 0.5, "eval_mcc": math.inf}
    report = report_on(trainer, folder, dense=dense)
    assert report.compressed.keys() == {"accuracy", "loss"}
    assert report.dense == {"accuracy": 0.5}
    assert "scores of the compressed model are not finite and not in the report: mcc" in caplog.text
    assert "scores of the dense model are not finite and not in the report: mcc" in caplog.text


def test_a_diverged_baseline_is_left_out(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make({"accuracy": 0.5})
    folder = save_compressed(trainer.model, tmp_path / "small", Recipe())
    assert report_on(trainer, folder, dense={"eval_accuracy": math.nan}).dense is None
    assert "no scores of the dense model: its accuracy is nan" in caplog.text


def test_equal_infinite_logits_do_not_differ(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make({"accuracy": 0.5})
    head = find_head(trainer.model)
    with torch.no_grad():
        trainer.model.classifier.bias[0] = -math.inf
    assert logit_difference(trainer, trainer.model, head) == (0.0, 16)
