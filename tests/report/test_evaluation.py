"""Scores are those of the script's own evaluation, for every head, format and number of processes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from hf_compress import Recipe, compress, finish, save_compressed, write_formats
from hf_compress.distill import DistillationArguments
from hf_compress.export import FORMATS
from hf_compress.models import find_head
from hf_compress.quantize import QuantizationArguments
from hf_compress.report import evaluation
from hf_compress.report.evaluation import Origin, dense_scores, evaluating, of_first_process
from tests.invariants.harness import in_two_processes

ROWS, LENGTH, LABELS = 6, 8, 3
TEXT = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
IMAGE = {name: TEXT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
HEADS: dict[str, tuple[Any, Any]] = {
    "sequence": (AutoModelForSequenceClassification, BertConfig(**TEXT, num_labels=LABELS)),
    "token": (AutoModelForTokenClassification, BertConfig(**TEXT, num_labels=LABELS)),
    "question": (AutoModelForQuestionAnswering, BertConfig(**TEXT)),
    "choice": (AutoModelForMultipleChoice, BertConfig(**TEXT)),
    "masked": (AutoModelForMaskedLM, BertConfig(**TEXT)),
    "causal": (AutoModelForCausalLM, LlamaConfig(**TEXT)),
    "image": (AutoModelForImageClassification, ViTConfig(**IMAGE, image_size=8, patch_size=4, num_labels=LABELS)),
}
RECIPE = Recipe(quantization=QuantizationArguments("int8", quant_begin=0.0, quant_freeze=0.5))
WRITTEN = [name for name, kind in FORMATS.items() if kind.write is not None and not kind.refusal(RECIPE)]


def rows_for(kind: str, model: Any) -> list[dict[str, Any]]:
    """Rows with labels, as a script's training set has them."""
    head = find_head(model)
    batch = head.example_batch(model, rows=ROWS, length=LENGTH)
    batch = {name: torch.ones_like(value) if name.endswith("mask") else value for name, value in batch.items()}
    if kind == "question":
        labels = {"start_positions": torch.ones(ROWS).long(), "end_positions": torch.ones(ROWS).long()}
    elif kind in ("token", "masked", "causal"):
        labels = {"labels": torch.ones(ROWS, LENGTH).long()}
    else:
        labels = {"labels": torch.ones(ROWS).long()}
    return [{name: value[row] for name, value in (batch | labels).items()} for row in range(ROWS)]


def shapes(predictions: Any) -> Any:
    return [shapes(part) for part in predictions] if isinstance(predictions, tuple) else predictions.shape


def check_predictions(kind: str, formats: list[str], folder: Path) -> None:
    """With and without labels, the graphs of a trained model give the predictions that the model gives."""
    torch.manual_seed(0)
    auto_class, config = HEADS[kind]
    model = auto_class.from_config(config)
    rows = rows_for(kind, model)
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=4, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=RECIPE.callbacks())
    trainer.train()
    small = save_compressed(trainer.model, folder / "small", RECIPE)
    formats = [name for name in formats if not FORMATS[name].unfit(trainer.model)]
    assert "onnx" in formats
    write_formats(small, formats)
    names = find_head(model).inputs(model)
    unlabelled = [{name: row[name] for name in names} for row in rows]
    for given in (rows, unlabelled):
        expected = trainer.predict(given).predictions
        for name in formats:
            other = FORMATS[name].read(small / FORMATS[name].path, trainer.model)
            with evaluating(trainer, other):
                found = trainer.predict(given).predictions
            assert shapes(found) == shapes(expected), f"{name}: {shapes(found)} for {shapes(expected)}"


@pytest.mark.slow
def test_graphs_answer_questions_as_the_model_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    check_predictions("question", ["onnx"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_every_format_predicts_in_the_form_of_the_model(kind: str, tmp_path: Path) -> None:
    for package in ("onnxruntime", "openvino", "compressed_tensors"):
        pytest.importorskip(package)
    check_predictions(kind, WRITTEN, tmp_path)


def test_scores_are_those_of_process_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "broadcast_object_list", lambda objects: [{"f1": 0.5}, True])
    assert of_first_process(dict) == {"f1": 0.5}
    monkeypatch.setattr(evaluation, "broadcast_object_list", lambda objects: [None, False])
    with pytest.raises(RuntimeError, match="failed on process 0"):
        of_first_process(dict)


class ScoresOnFirst(Trainer):
    """Computes its scores as run_qa.py does: on process 0 only."""

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        return {f"{metric_key_prefix}_f1": 80.0} if self.args.should_save else {}


def finish_in_a_process(folder: Path, model: Path, rows: list[dict[str, Any]]) -> None:
    arguments = TrainingArguments(
        str(folder), max_steps=2, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = ScoresOnFirst(
        BertForSequenceClassification.from_pretrained(model), arguments, train_dataset=rows, eval_dataset=rows
    )
    compress(trainer, Recipe(DistillationArguments(distill_teacher="self")))
    trainer.train()
    report = finish(trainer)
    assert report is not None
    (folder / f"scores-{os.environ['RANK']}.json").write_text(
        json.dumps([report.dense, report.teacher, report.compressed])
    )


@pytest.mark.slow
def test_two_processes_share_the_scores_of_process_0(
    make_bert: Callable[..., BertForSequenceClassification], tmp_path: Path
) -> None:
    make_bert().save_pretrained(tmp_path / "model")
    rows = rows_for("sequence", make_bert())
    rows = [row | {"labels": torch.tensor(index % 2)} for index, row in enumerate(rows)]
    assert in_two_processes(finish_in_a_process, tmp_path / "run", tmp_path / "model", rows) == [0, 0]
    scores = [json.loads((tmp_path / "run" / f"scores-{rank}.json").read_text()) for rank in range(2)]
    assert scores[0] == scores[1] == [{"f1": 80.0}] * 3


@pytest.fixture
def trained(make_bert: Callable[..., BertForSequenceClassification], tmp_path: Path) -> Trainer:
    """A Trainer whose output folder is the folder of its model, as some scripts are used."""
    make_bert().save_pretrained(tmp_path / "model")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    rows = [row | {"labels": torch.tensor(i % 2)} for i, row in enumerate(rows_for("sequence", model))]
    arguments = TrainingArguments(
        str(tmp_path / "model"), max_steps=3, learning_rate=1e-2, report_to="none", save_strategy="no", use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    compress(trainer, Recipe(quantization=QuantizationArguments("int8-weight")))
    trainer.train()
    return trainer


def test_an_overwritten_model_is_no_dense_baseline(trained: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    trained.save_model()
    report = finish(trained)
    assert report is not None and report.dense is None
    assert "have changed since the training started" in caplog.text


def test_an_unchanged_model_is_the_dense_baseline(
    trained: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    report = finish(trained)
    assert report is not None and report.dense is not None
    assert report.dense["loss"] != report.compressed["loss"]


def test_a_relative_origin_is_found_from_another_folder(
    trained: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    origin = Origin.of(BertForSequenceClassification.from_pretrained("model"))
    monkeypatch.chdir("/")
    assert dense_scores(trained, origin, {}) is not None
