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
        # A correlation with a constant is undefined. A model that learned nothing predicts a constant: it scores 0, as
        # it does in Matthews' correlation. NaN is reserved for models that diverged.
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
# The metrics of a regression.
REGRESSION = ("pearson", "spearmanr")


@dataclass(frozen=True)
class GlueTask:
    """Columns, splits and metrics of a GLUE task. Its label names come with the dataset.

    Args:
        sentences: the columns with the texts.
        metrics: names from `SCORES`; the first one is the main metric of the task.
        validation: the split to evaluate on.
        test: the split without public labels.
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
    """An `evaluate.Metric` with the scores of one GLUE task. Scores are at most 1; correlations are in [-1, 1].

    Predictions and references are class indices, or numbers for a regression. F1 is that of class 1. A correlation
    with a constant is 0.

    Args:
        metrics: names from `SCORES`, for example `TASKS["mrpc"].metrics`.
        **kwargs: arguments of `evaluate.Metric`. A single process writes nothing to disk. With `num_process` > 1, the
            processes exchange predictions through files in `cache_dir`; process 0 gets the scores, the others get
            None.

    Raises:
        ValueError: a metric is unknown.

    Example:
        >>> from hf_compress.study.grid import GlueMetric
        >>> GlueMetric(("accuracy",)).compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
        {'accuracy': 0.75}
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
    """Return a `compute_metrics` function for `Trainer`.

    It scores the class with the highest logit, or the number itself in a regression. Trainer passes the gathered
    predictions of all processes, so one metric in memory is enough.

    Args:
        metrics: names from `SCORES`.

    Raises:
        ValueError: a metric is unknown.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> from hf_compress.study.grid import TASKS, compute_metrics
        >>> score = compute_metrics(TASKS["sst2"].metrics)
        >>> score(EvalPrediction(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
        {'accuracy': 0.5}
    """
    metric = GlueMetric(metrics)

    def scores(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        # A model that returns more than logits puts the logits first.
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        answers = logits.reshape(len(logits)) if metrics[0] in REGRESSION else logits.argmax(axis=-1)
        result = metric.compute(predictions=answers, references=np.asarray(prediction.label_ids))
        assert result is not None, "a metric in one process has a result"
        return result

    return scores
