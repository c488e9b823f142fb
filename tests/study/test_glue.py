"""The GLUE tasks and metrics."""

import multiprocessing
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle
from transformers import EvalPrediction

from hf_compress.study.grid.glue import SCORES, TASKS, GlueMetric, compute_metrics

# Twelve answers worked out by hand: 4 true positives, 3 true negatives, 2 false positives, 3 false negatives.
REFERENCES = [1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0]


def test_the_eight_tasks_of_the_paper_are_known_and_wnli_is_not() -> None:
    assert set(TASKS) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"}
    assert [name for name, task in TASKS.items() if task.regression] == ["stsb"]
    assert TASKS["mnli"].validation == "validation_matched"
    assert all(set(task.metrics) <= set(SCORES) for task in TASKS.values())


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("sst2", {"accuracy": 7 / 12}),
        ("mrpc", {"accuracy": 7 / 12, "f1": 8 / 13}),
        ("cola", {"accuracy": 7 / 12, "matthews_correlation": (4 * 3 - 2 * 3) / (6 * 7 * 5 * 6) ** 0.5}),
    ],
)
def test_classification_scores_are_those_of_the_confusion_matrix(task: str, expected: dict[str, float]) -> None:
    scores = GlueMetric(TASKS[task].metrics).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize("task", ["sst2", "mrpc", "cola", "qqp"])
def test_classification_scores_equal_those_of_scikit_learn(task: str, generator: np.random.Generator) -> None:
    references, predictions = generator.integers(0, 2, (2, 200))
    scores = GlueMetric(TASKS[task].metrics).compute(predictions=predictions, references=references)
    oracles = {
        "accuracy": oracle.accuracy_score,
        "f1": oracle.f1_score,
        "matthews_correlation": oracle.matthews_corrcoef,
    }
    assert scores == pytest.approx({name: oracles[name](references, predictions) for name in TASKS[task].metrics})


def test_correlations_are_those_of_values_and_of_ranks(generator: np.random.Generator) -> None:
    references = generator.uniform(0, 5, 100)
    predictions = references + generator.normal(0, 1, 100)
    scores = GlueMetric(TASKS["stsb"].metrics).compute(predictions=predictions, references=references)
    ranks = np.argsort(np.argsort(references)), np.argsort(np.argsort(predictions))
    assert scores is not None
    assert scores["pearson"] == pytest.approx(np.corrcoef(references, predictions)[0, 1])
    assert scores["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    monotonic = GlueMetric(TASKS["stsb"].metrics).compute(predictions=np.exp(references), references=references)
    assert monotonic is not None
    assert monotonic["spearmanr"] == pytest.approx(1.0)
    assert monotonic["pearson"] < 0.99


@pytest.mark.filterwarnings("error::scipy.stats.ConstantInputWarning")
def test_correlation_is_0_with_a_constant_and_nan_with_nan() -> None:
    metric = GlueMetric(TASKS["stsb"].metrics)
    constant = metric.compute(predictions=[2.5, 2.5, 2.5], references=[1.0, 2.0, 3.0])
    assert constant == {"pearson": 0.0, "spearmanr": 0.0}
    diverged = metric.compute(predictions=[2.5, float("nan"), 1.0], references=[1.0, 2.0, 3.0])
    assert diverged is not None
    assert np.isnan(diverged["pearson"])


def test_it_is_a_metric_of_evaluate_that_batches_can_be_added_to() -> None:
    metric = GlueMetric(TASKS["mrpc"].metrics)
    assert isinstance(metric, evaluate.Metric)
    for start in range(0, 12, 5):
        metric.add_batch(predictions=PREDICTIONS[start : start + 5], references=REFERENCES[start : start + 5])
    assert metric.compute() == pytest.approx({"accuracy": 7 / 12, "f1": 8 / 13})


def _half(process_id: int, cache_dir: str, queue: "multiprocessing.Queue[object]") -> None:
    metric = GlueMetric(
        TASKS["mrpc"].metrics, num_process=2, process_id=process_id, experiment_id="halves", cache_dir=cache_dir
    )
    mine = slice(process_id, None, 2)
    queue.put(metric.compute(predictions=PREDICTIONS[mine], references=REFERENCES[mine]))


def test_two_processes_score_their_halves_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[object] = context.Queue()
    processes = [context.Process(target=_half, args=(index, str(tmp_path), queue)) for index in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    (scores,) = [result for result in results if result is not None]
    assert scores == pytest.approx({"accuracy": 7 / 12, "f1": 8 / 13})


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"accuracy, f1, .*got bleu"):
        GlueMetric(("accuracy", "bleu"))
    with pytest.raises(ValueError, match="got none"):
        compute_metrics(())


def test_trainers_predictions_are_read_by_their_highest_logit() -> None:
    logits = np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 0.1, 0.2]])
    score = compute_metrics(TASKS["mnli"].metrics)
    labels = np.array([1, 0, 0])
    assert score(EvalPrediction(logits, labels)) == pytest.approx({"accuracy": 2 / 3})
    assert score(EvalPrediction((logits, np.zeros((3, 7))), labels)) == pytest.approx({"accuracy": 2 / 3})


def test_trainers_predictions_are_numbers_in_a_regression() -> None:
    labels = np.array([1.0, 2.0, 4.0, 3.0])
    logits = np.array([[0.0], [2.5], [3.0], [2.0]], dtype=np.float32)
    scores = compute_metrics(TASKS["stsb"].metrics)(EvalPrediction(logits, labels))
    assert scores["pearson"] == pytest.approx(stats.pearsonr(labels, logits[:, 0]).statistic)
    assert scores["spearmanr"] == pytest.approx(0.8)
