"""Predictions are recorded for each row as the script scores them, whatever the Trainer does on the way."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    EvalPrediction,
    LlamaConfig,
    Trainer,
    TrainingArguments,
)

from hf_compress import Report
from hf_compress.models import find_head
from hf_compress.report.comparing import OTHER_ROWS, with_predictions
from hf_compress.report.outputs import Outputs, UnreadableError, read_outputs
from hf_compress.report.predictions import (
    COMPRESSED,
    DENSE,
    PREDICTIONS_NAME,
    Recorder,
    read_predictions,
    row_numbers,
    save_predictions,
)
from tests.invariants.harness import in_two_processes
from tests.tiny import SIZES, bert

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMA = {name: SIZES[name] for name in SIZES if name != "max_position_embeddings"}
BART = {"vocab_size": 29, "d_model": 8, "max_position_embeddings": 32} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 8))
}
HEADS: dict[str, tuple[Any, Any]] = {
    "sequence": (AutoModelForSequenceClassification, BertConfig(**SIZES, num_labels=3)),
    "regression": (AutoModelForSequenceClassification, BertConfig(**SIZES, num_labels=1, problem_type="regression")),
    "flags": (
        AutoModelForSequenceClassification,
        BertConfig(**SIZES, num_labels=3, problem_type="multi_label_classification"),
    ),
    "token": (AutoModelForTokenClassification, BertConfig(**SIZES, num_labels=3)),
    "question": (AutoModelForQuestionAnswering, BertConfig(**SIZES)),
    "choice": (AutoModelForMultipleChoice, BertConfig(**SIZES)),
    "masked": (AutoModelForMaskedLM, BertConfig(**SIZES)),
    "causal": (AutoModelForCausalLM, LlamaConfig(**LLAMA)),
    "seq2seq": (AutoModelForSeq2SeqLM, BartConfig(**BART)),
}
ROWS, LENGTH = 7, 6


def labels_for(kind: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    if kind == "question":
        return {f"{end}_positions": torch.randint(LENGTH, (ROWS,), generator=draw) for end in ("start", "end")}
    if kind in ("token", "masked", "causal", "seq2seq"):
        labels = torch.randint(3, (ROWS, LENGTH), generator=draw)
        labels[torch.rand(labels.shape, generator=draw) < 0.3] = -100
        return {"labels": labels}
    if kind == "regression":
        return {"labels": torch.rand(ROWS, generator=draw)}
    if kind == "flags":
        return {"labels": torch.randint(2, (ROWS, 3), generator=draw).float()}
    return {"labels": torch.randint(3, (ROWS,), generator=draw)}


class Run:
    """A Trainer of a head that is evaluated once, and what its script's `compute_metrics` saw."""

    def __init__(self, kind: str, folder: Path, **settings: Any) -> None:
        torch.manual_seed(0)
        build, config = HEADS[kind]
        model = build.from_config(config).eval()
        batch = find_head(model).example_batch(model, rows=ROWS, length=LENGTH) | labels_for(kind)
        batch = {name: torch.ones_like(value) if name == "attention_mask" else value for name, value in batch.items()}
        self.seen: list[EvalPrediction] = []
        arguments = TrainingArguments(
            str(folder),
            per_device_eval_batch_size=3,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            label_names=list(labels_for(kind)),
            **settings,
        )
        rows = [{name: value[row] for name, value in batch.items()} for row in range(ROWS)]
        self.trainer = Trainer(model, arguments, eval_dataset=rows, compute_metrics=self.score)  # type: ignore[arg-type]

    def score(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        self.seen.append(prediction)
        return {}

    def record(self) -> Recorder:
        recorder = Recorder()
        with recorder.recording(self.trainer, DENSE):
            self.trainer.evaluate()
        return recorder

    def outputs(self) -> Outputs:
        recorder = self.record()
        assert not recorder.obstacles
        return recorder.outputs[DENSE]


def same(one: Outputs, other: Outputs) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=False)
        if getattr(one, name) is not None
        else getattr(other, name) is None
        for name in ("labels", "predicted", "lengths")
    )


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_rows_that_were_grouped_by_length_are_in_order_again(kind: str, tmp_path: Path) -> None:
    whole, grouped = Run(kind, tmp_path).outputs(), Run(kind, tmp_path, train_sampling_strategy="group_by_length")
    make, orders = grouped.trainer._get_eval_sampler, []

    def shuffled(rows: Any) -> Any:
        orders.append(make(rows))
        orders[-1].lengths = [3, 1, 4, 1, 5, 9, 2]
        return orders[-1]

    grouped.trainer._get_eval_sampler = shuffled
    recorder = grouped.record()
    assert len(orders) == 1 and recorder.ordered == {DENSE}
    assert same(recorder.outputs[DENSE], whole)
    (seen,) = grouped.seen
    assert not np.array_equal(seen.label_ids[seen.label_ids != -100], whole.labels), "they were evaluated otherwise"
    assert grouped.trainer._get_eval_sampler is shuffled


EXPECTED: dict[str, Callable[[EvalPrediction], tuple[Any, Any]]] = {
    "sequence": lambda seen: (seen.label_ids, seen.predictions.argmax(-1)),
    "choice": lambda seen: (seen.label_ids, seen.predictions.argmax(-1)),
    "regression": lambda seen: (seen.label_ids, seen.predictions[:, 0]),
    "flags": lambda seen: (seen.label_ids, seen.predictions > 0),
    "token": lambda seen: (
        seen.label_ids[seen.label_ids != -100],
        seen.predictions.argmax(-1)[seen.label_ids != -100],
    ),
    "masked": lambda seen: EXPECTED["token"](seen),
    "causal": lambda seen: EXPECTED["token"](EvalPrediction(seen.predictions[:, :-1], seen.label_ids[:, 1:])),
    "question": lambda seen: (
        np.stack(seen.label_ids, 1),
        np.stack([logits.argmax(-1) for logits in seen.predictions[:2]], 1),
    ),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_rows_of_every_head_are_those_that_the_script_scores(kind: str, tmp_path: Path) -> None:
    run = Run(kind, tmp_path)
    outputs = run.outputs()
    (seen,) = run.seen
    labels, predicted = EXPECTED[kind](seen)
    assert outputs.rows == ROWS
    assert np.array_equal(outputs.labels, labels)
    assert np.array_equal(outputs.predicted, predicted)
    if kind == "token":
        assert outputs.lengths is not None
        assert outputs.lengths.tolist() == (seen.label_ids != -100).sum(1).tolist()
    run.seen.clear()
    run.trainer.evaluate()
    assert len(run.seen) == 1, "the script's own function is back"


@pytest.mark.parametrize("kind", ["sequence", "token", "regression"])
@pytest.mark.parametrize(
    "settings",
    [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}, {"eval_accumulation_steps": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_every_way_to_collect_batches_gives_the_same(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert same(Run(kind, tmp_path, **settings).outputs(), Run(kind, tmp_path).outputs())


@pytest.mark.parametrize("kind", ["sequence", "token", "causal"])
def test_a_script_may_reduce_logits_to_classes(kind: str, tmp_path: Path) -> None:
    run, whole = Run(kind, tmp_path), Run(kind, tmp_path).outputs()
    run.trainer.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
    outputs = run.outputs()
    assert same(outputs, whole) and outputs.logits is None


def test_a_script_that_changes_labels_in_place_changes_nothing(tmp_path: Path) -> None:
    run, whole = Run("token", tmp_path), Run("token", tmp_path).outputs()

    def score(prediction: EvalPrediction) -> dict[str, float]:
        prediction.label_ids[prediction.label_ids == -100] = 0  # type: ignore[index]
        return {}

    run.trainer.compute_metrics = score
    assert same(run.outputs(), whole)


def test_independent_labels_may_be_scored_as_probabilities(tmp_path: Path) -> None:
    run, whole = Run("flags", tmp_path), Run("flags", tmp_path).outputs()
    run.trainer.preprocess_logits_for_metrics = lambda logits, labels: logits.sigmoid()
    outputs = run.outputs()
    assert same(outputs, whole) and outputs.logits is None


def test_a_head_without_classes_says_why_it_has_no_rows(tmp_path: Path) -> None:
    assert "sequence-to-sequence" in Run("seq2seq", tmp_path).record().obstacles[DENSE]
    silent = Run("sequence", tmp_path)
    silent.trainer.compute_metrics = None
    assert "no `compute_metrics`" in silent.record().obstacles[DENSE]
    unused = Run("sequence", tmp_path, prediction_loss_only=True)
    assert "does not call `compute_metrics`" in unused.record().obstacles[DENSE]
    twice = Run("sequence", tmp_path)
    twice.trainer.eval_dataset = {"one": twice.trainer.eval_dataset, "two": twice.trainer.eval_dataset}
    assert "several sets" in twice.record().obstacles[DENSE]


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        ([{"id": "1", "prediction_text": "a film"}], [{"id": "1", "answers": {}}]),
        (np.zeros((2, 3)), np.array([0, -100])),
        (np.zeros((2, 3)), np.zeros((3,), int)),
        (np.array(["a", "b"]), np.array([0, 1])),
        (np.zeros((2, 3)), np.zeros((0,), int)),
        ([], []),
    ],
)
def test_what_has_no_rows_is_refused_in_a_sentence(predictions: Any, labels: Any) -> None:
    with pytest.raises(UnreadableError, match=r"^[A-Z].*\.$"):
        read_outputs(find_head(bert()), predictions, labels)


def classified(rows: int = 6, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 2)).astype(np.float32)
    return Outputs("classes", np.arange(rows) % 2, logits.argmax(1), logits=logits)


def data(outputs: Outputs) -> Dataset:
    return Dataset.from_dict({"label": outputs.labels.tolist(), "input_ids": [[1]] * outputs.rows})


def test_rows_have_their_index_in_the_split(tmp_path: Path) -> None:
    outputs = classified()
    trainer = Run("sequence", tmp_path).trainer
    assert row_numbers(trainer, data(outputs), outputs).tolist() == [0, 1, 2, 3, 4, 5]
    chosen = data(outputs).select([4, 1, 2])
    part = Outputs("classes", np.array([0, 1, 0]), np.array([0, 0, 0]))
    assert row_numbers(trainer, chosen, part).tolist() == [4, 1, 2]
    # What was found by trial is better: `map` forgets where rows came from.
    assert row_numbers(trainer, chosen, part, found=[14, 11, 12]).tolist() == [14, 11, 12]
    assert row_numbers(trainer, chosen, part, found=[14]).tolist() == [4, 1, 2]


def test_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    outputs, trainer = classified(), Run("sequence", tmp_path).trainer
    with pytest.raises(UnreadableError, match="not evaluated in the order"):
        row_numbers(trainer, data(outputs).select([1, 0, 2, 3, 4, 5]), outputs)
    with pytest.raises(UnreadableError, match="has 5 rows, and 6 were evaluated"):
        row_numbers(trainer, data(outputs).select(range(5)), outputs)
    with pytest.raises(UnreadableError, match="several sets"):
        row_numbers(trainer, {"one": data(outputs)}, outputs)
    grouped = Run("sequence", tmp_path, train_sampling_strategy="group_by_length").trainer
    with pytest.raises(UnreadableError, match="not evaluated in the order"):
        row_numbers(grouped, [{"input_ids": [1] * length} for length in range(1, 7)], outputs)


FORMS = {
    "classes": classified(),
    "numbers": Outputs("numbers", np.array([0.5, 2.0]), np.array([0.25, 1.0])),
    "flags": Outputs("flags", np.array([[0, 1], [1, 1]], np.int8), np.array([[0, 0], [1, 1]], np.int8)),
    "tokens": Outputs("tokens", np.array([0, 300, 2]), np.array([0, 1, 2]), lengths=np.array([2, 0, 1])),
    "spans": Outputs("spans", np.array([[0, 3], [1, 130]]), np.array([[0, 4], [1, 2]])),
}


@pytest.mark.parametrize("form", FORMS)
def test_predictions_come_back_from_their_file(form: str, tmp_path: Path) -> None:
    outputs = FORMS[form]
    row = np.arange(outputs.rows)[::-1]
    assert save_predictions(tmp_path, row, {DENSE: outputs, COMPRESSED: outputs}) == PREDICTIONS_NAME
    columns = read_predictions(tmp_path)
    assert list(columns)[:4] == ["row", "label", DENSE, COMPRESSED]
    assert columns["row"].tolist() == row.tolist()
    assert np.array_equal(np.concatenate([np.atleast_1d(v) for v in columns["label"]]), outputs.labels.reshape(-1))
    assert np.array_equal(np.concatenate([np.atleast_1d(v) for v in columns[DENSE]]), outputs.predicted.reshape(-1))
    if outputs.logits is not None:
        assert np.allclose(np.stack(columns["compressed_logits"]), outputs.logits, rtol=1e-3)
    if outputs.lengths is not None:
        assert [len(values) for values in columns["label"]] == outputs.lengths.tolist()


def test_the_file_of_predictions_is_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    outputs = Outputs("classes", random.integers(2, size=10_000), random.integers(2, size=10_000))
    save_predictions(tmp_path, np.arange(10_000), {DENSE: outputs, COMPRESSED: outputs})
    assert (tmp_path / PREDICTIONS_NAME).stat().st_size < 40_000


def test_a_broken_file_of_predictions_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no predictions\.parquet"):
        read_predictions(tmp_path)
    (tmp_path / PREDICTIONS_NAME).write_text("no parquet")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        read_predictions(tmp_path)


def test_models_on_different_rows_are_not_compared(tmp_path: Path) -> None:
    recorder, compressed = Recorder(), classified()
    recorder.outputs = {DENSE: replace(compressed, labels=1 - compressed.labels), COMPRESSED: compressed}
    trainer = Run("sequence", tmp_path).trainer
    accuracy = {"accuracy": float((compressed.labels == compressed.predicted).mean())}
    report = replace(Report.load(GOLDEN), compressed=accuracy, dense=accuracy, teacher=None)
    found = with_predictions(trainer, report, recorder, data(compressed), tmp_path)
    assert found.comparison == {} and list(found.intervals) == ["accuracy"]
    assert found.without_interval["accuracy"].endswith(OTHER_ROWS)
    assert DENSE not in read_predictions(tmp_path)


def evaluate_in_a_process(folder: Path) -> None:
    """Evaluate 7 rows in batches of 3 on each process, so that the last batch is padded with rows again."""
    outputs = Run("token", folder).outputs()
    values = [outputs.labels, outputs.predicted, outputs.lengths]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps([value.tolist() for value in values]))  # type: ignore[union-attr]


@pytest.mark.slow
def test_two_processes_record_what_one_does(tmp_path: Path) -> None:
    alone = Run("token", tmp_path).outputs()
    assert in_two_processes(evaluate_in_a_process, tmp_path) == [0, 0]
    for rank in range(2):
        labels, predicted, lengths = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (labels, lengths) == (alone.labels.tolist(), alone.lengths.tolist())  # type: ignore[union-attr]
        assert predicted == alone.predicted.tolist()
