"""The GLUE tasks and their metrics, offline. `evaluate.load("glue")` would download a script from the Hub."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from transformers import EvalPrediction

from hf_compress.extras import extra

with extra("glue", "A GLUE metric"):
    import evaluate
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _correlation(measure: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(references: np.ndarray, predictions: np.ndarray) -> float:
        # Undefined for a constant, such as the answers of a model that learned nothing. Matthews' correlation is then
        # zero, and so are these; NaN is left to the models that diverged.
        if np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(measure(references, predictions).statistic)

    return correlation


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearmanr": _correlation(spearmanr),
}
# What a number, rather than a class, is scored by.
REGRESSION = ("pearson", "spearmanr")


@dataclass(frozen=True)
class GlueTask:
    """A task's columns, splits and metrics; its label names come with the dataset.

    `metrics` names entries of `SCORES`, the first one being the score that stands for the task.
    """

    sentences: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    test: str = "test"

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    @property
    def regression(self) -> bool:
        return self.main_metric in REGRESSION


TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(("sentence",), ("matthews_correlation", "accuracy")),
    "sst2": GlueTask(("sentence",)),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("accuracy", "f1")),
    "stsb": GlueTask(("sentence1", "sentence2"), REGRESSION),
    "qqp": GlueTask(("question1", "question2"), ("accuracy", "f1")),
    "mnli": GlueTask(("premise", "hypothesis"), validation="validation_matched", test="test_matched"),
    "qnli": GlueTask(("question", "sentence")),
    "rte": GlueTask(("sentence1", "sentence2")),
}


class GlueMetric(evaluate.Metric):
    """The scores of one GLUE task, by name, as an `evaluate.Metric`: the best is 1, and correlations lie in [-1, 1].

    Predictions and references are class indices (the positive class of F1 is 1), or numbers for a regression. A
    correlation with a constant is 0.

    Args:
        metrics: names from `SCORES`, such as `TASKS["mrpc"].metrics`.
        **kwargs: those of `evaluate.Metric`. In one process nothing is written to disk; with `num_process` > 1 the
            processes meet in files of `cache_dir`, and process 0 alone gets the scores, the others None.

    Raises:
        ValueError: an unknown metric.
    """

    def __init__(self, metrics: Sequence[str] = ("accuracy",), **kwargs: Any) -> None:
        unknown = sorted(set(metrics) - set(SCORES))
        if unknown or not metrics:
            raise ValueError(f"`metrics` must name some of {', '.join(SCORES)}, got {', '.join(unknown) or 'none'}.")
        self.metrics = tuple(metrics)
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(config_name="-".join(self.metrics), **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64" if self.metrics[0] in REGRESSION else "int64")
        return evaluate.MetricInfo(
            description=f"GLUE: {', '.join(self.metrics)}.",
            citation="Wang et al., 2019: GLUE, https://arxiv.org/abs/1804.07461",
            inputs_description="predictions and references: class indices, or numbers for a regression.",
            features=datasets.Features({"predictions": number, "references": number}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {name: float(SCORES[name](references, predictions)) for name in self.metrics}


def compute_metrics(metrics: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for `Trainer`: the scores of the highest logit, or of the number itself in a regression.

    Trainer hands over the predictions of all processes, gathered, so that one metric in memory is enough.

    Raises:
        ValueError: an unknown metric.
    """
    metric = GlueMetric(metrics)

    def scores(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        # A model that also returns hidden states or the like puts its logits first.
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        answers = logits.reshape(len(logits)) if metrics[0] in REGRESSION else logits.argmax(axis=-1)
        result = metric.compute(predictions=answers, references=np.asarray(prediction.label_ids))
        assert result is not None, "a metric in one process has a result"
        return result

    return scores
