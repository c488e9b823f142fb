"""Every metric, on any resample of the rows, is that of scikit-learn or SciPy on the repeated rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hf_compress.report.entities import entities
from hf_compress.report.metrics import Metric, find_metric, mean_of
from hf_compress.report.outputs import Outputs
from hf_compress.report.tally import Tally, hits

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

ROWS = 60
RANDOM = np.random.default_rng(0)
WEIGHTS = np.stack([np.ones(ROWS), *(np.bincount(RANDOM.integers(ROWS, size=ROWS), minlength=ROWS) for _ in range(4))])
TAGS = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))


def classes(count: int) -> Outputs:
    labels = RANDOM.integers(count, size=ROWS)
    logits = RANDOM.normal(size=(ROWS, count)).astype(np.float32)
    logits[np.arange(ROWS), labels] += 1
    return Outputs("classes", labels, logits.argmax(1), logits=logits)


def numbers() -> Outputs:
    labels = RANDOM.integers(6, size=ROWS).astype(float)
    return Outputs("numbers", labels, labels + RANDOM.normal(size=ROWS).round(1))


def flags() -> Outputs:
    labels, logits = RANDOM.integers(2, size=(ROWS, 4)), RANDOM.normal(size=(ROWS, 4))
    logits += labels
    return Outputs("flags", labels.astype(np.int8), (logits > 0).astype(np.int8), logits=logits.astype(np.float32))


def tokens() -> Outputs:
    lengths = RANDOM.integers(1, 9, size=ROWS)
    labels = RANDOM.integers(len(TAGS), size=lengths.sum())
    wrong = RANDOM.random(len(labels)) < 0.2
    predicted = np.where(wrong, RANDOM.integers(len(TAGS), size=len(labels)), labels)
    return Outputs("tokens", labels, predicted, lengths=lengths)


TWO, FOUR, REAL, FLAGS, TOKENS = classes(2), classes(4), numbers(), flags(), tokens()


def repeated(outputs: Outputs, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of a resample, as a script would score it."""
    rows = np.repeat(np.arange(ROWS), weights.astype(int))
    if outputs.lengths is None:
        return outputs.labels[rows], outputs.predicted[rows]
    ends = np.cumsum(outputs.lengths)
    places = np.concatenate([np.arange(ends[row] - outputs.lengths[row], ends[row]) for row in rows])
    return outputs.labels[places], outputs.predicted[places]


def averaged(function: Callable[..., float], average: str) -> Callable[..., float]:
    return lambda labels, predicted: function(labels, predicted, average=average, zero_division=0)


ORACLES: list[tuple[str, Outputs, Callable[..., float]]] = [
    ("accuracy", TWO, metrics.accuracy_score),
    ("eval_acc", FOUR, metrics.accuracy_score),
    ("subset_accuracy", FLAGS, metrics.accuracy_score),
    ("token_accuracy", TOKENS, metrics.accuracy_score),
    ("balanced_accuracy", FOUR, metrics.balanced_accuracy_score),
    ("hamming_score", FLAGS, lambda labels, predicted: 1 - metrics.hamming_loss(labels, predicted)),
    ("matthews_correlation", TWO, metrics.matthews_corrcoef),
    ("mcc", FOUR, metrics.matthews_corrcoef),
    ("cohen_kappa", FOUR, metrics.cohen_kappa_score),
    ("pearson", REAL, lambda labels, predicted: stats.pearsonr(labels, predicted).statistic),
    ("spearmanr", REAL, lambda labels, predicted: stats.spearmanr(labels, predicted).statistic),
    ("mse", REAL, metrics.mean_squared_error),
    ("rmse", REAL, metrics.root_mean_squared_error),
    ("mae", REAL, metrics.mean_absolute_error),
    ("r2", REAL, metrics.r2_score),
]
for word, function in (
    ("f1", metrics.f1_score),
    ("precision", metrics.precision_score),
    ("recall", metrics.recall_score),
):
    ORACLES.append((word, TWO, averaged(function, "binary")))
    for average in ("macro", "micro", "weighted"):
        ORACLES += [(f"{average}_{word}", outputs, averaged(function, average)) for outputs in (FOUR, FLAGS, TOKENS)]


def found(name: str, outputs: Outputs, **scores: float) -> tuple[Metric, float, Tally]:
    tally = Tally(outputs, TAGS, scores)
    metric = find_metric(name, [tally])
    assert metric is not None, name
    return *metric, tally


@pytest.mark.parametrize(("name", "outputs", "oracle"), ORACLES, ids=[f"{o[0]} {o[1].kind}" for o in ORACLES])
def test_a_metric_is_the_oracle_s_on_every_resample(name: str, outputs: Outputs, oracle: Callable[..., float]) -> None:
    expected = [float(oracle(*repeated(outputs, weights))) for weights in WEIGHTS]
    metric, scale, tally = found(name, outputs, **{name: expected[0]})
    scorer = metric.scorer(tally)
    assert scorer is not None and scale == 1
    assert scorer(WEIGHTS) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("outputs", [TWO, FOUR, FLAGS, REAL], ids=lambda outputs: outputs.kind)
def test_the_loss_is_that_of_torch(outputs: Outputs) -> None:
    import torch

    losses = {"flags": "binary_cross_entropy_with_logits", "numbers": "mse_loss", "classes": "cross_entropy"}
    given = outputs.predicted if outputs.logits is None else outputs.logits
    labels = torch.tensor(outputs.labels)
    labels = labels if outputs.kind == "classes" else labels.to(torch.tensor(given).dtype)
    reported = float(getattr(torch.nn.functional, losses[outputs.kind])(torch.tensor(given), labels))
    metric, _, tally = found("loss", outputs, loss=reported)
    scorer = metric.scorer(tally)
    assert scorer is not None
    assert scorer(np.ones((1, ROWS))) == pytest.approx([reported], rel=1e-6)


# After seqeval's documentation and the CoNLL script: the tags, and type, first and last token of each entity.
TAGGED: list[tuple[str, list[tuple[str, int, int]]]] = [
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("O O B-MISC I-MISC I-MISC I-MISC O", [("MISC", 2, 5)]),
    ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
    ("B-A I-A E-A S-A S-B O", [("A", 0, 2), ("A", 3, 3), ("B", 4, 4)]),
    ("O O", []),
    ("", []),
]


@pytest.mark.parametrize(("tags", "expected"), TAGGED)
def test_entities_are_those_of_the_conll_script(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert list(entities(tags.split())) == expected


def test_the_area_under_the_curve_is_scikit_learn_s() -> None:
    assert TWO.logits is not None
    scores = (TWO.logits[:, 1] - TWO.logits[:, 0]).round(1)  # Ties count half.
    outputs = Outputs("classes", TWO.labels, TWO.predicted, logits=np.stack([0 * scores, scores], 1))
    rows = [np.repeat(np.arange(ROWS), weights.astype(int)) for weights in WEIGHTS]
    expected = [metrics.roc_auc_score(TWO.labels[chosen], scores[chosen]) for chosen in rows]
    metric, _, tally = found("roc_auc", outputs, roc_auc=expected[0])
    scorer = metric.scorer(tally)
    assert scorer is not None and scorer(WEIGHTS) == pytest.approx(expected)


def test_f1_of_tags_counts_entities_and_not_tokens() -> None:
    """Row 1 has one entity right; row 2 has one of two, and a wrong one."""
    labels, predicted = np.array([1, 2, 0, 1, 0, 3]), np.array([1, 2, 0, 1, 3, 0])
    outputs = Outputs("tokens", labels, predicted, lengths=np.array([3, 3]))
    metric, _, tally = found("overall_f1", outputs, overall_f1=2 * 2 / (3 + 3))
    scorer = metric.scorer(tally)
    assert metric.counts_entities and scorer is not None
    assert tally.entities is not None and tally.entities.sum(-1).tolist() == [[1, 1, 1], [1, 2, 2]]
    assert scorer(np.array([[1, 1], [2, 0], [0, 2]])) == pytest.approx([2 / 3, 1, 1 / 2])


def test_a_metric_that_is_not_reproduced_is_not_found() -> None:
    right = float(metrics.accuracy_score(TWO.labels, TWO.predicted))
    assert find_metric("accuracy", [Tally(TWO, {}, {"accuracy": right + 1e-4})]) is None
    assert find_metric("my_score", [Tally(TWO, {}, {"my_score": right})]) is None
    # One metric must explain both models: here the second is scored by something else.
    both = [Tally(TWO, {}, {"accuracy": right}), Tally(TWO, {}, {"accuracy": right / 2})]
    assert find_metric("accuracy", both) is None


def test_percentages_are_found_with_their_scale() -> None:
    score = 100 * float(metrics.f1_score(TWO.labels, TWO.predicted))
    assert found("f1", TWO, f1=score)[1] == 100


def test_a_combined_score_is_the_mean_of_the_others() -> None:
    f1, accuracy = metrics.f1_score(TWO.labels, TWO.predicted), metrics.accuracy_score(TWO.labels, TWO.predicted)
    tally = Tally(TWO, {}, {"f1": f1, "accuracy": accuracy, "combined_score": (f1 + accuracy) / 2})
    parts = [find_metric(name, [tally]) for name in ("f1", "accuracy")]
    mean = mean_of([part for part in parts if part is not None])
    assert mean.reproduces("combined_score", tally, 1.0)
    assert not mean.reproduces("accuracy", tally, 1.0)


def test_a_correlation_in_float32_is_reproduced() -> None:
    """A model that has learned nothing predicts almost the same for all rows, where float32 loses most digits."""
    random = np.random.default_rng(0)
    labels, predicted = random.random(600, np.float32) * 5, 2.458 + 0.004 * random.normal(size=600).astype(np.float32)
    reported = float(stats.pearsonr(labels, predicted).statistic)
    exact = float(stats.pearsonr(labels.astype(float), predicted.astype(float)).statistic)
    assert reported != exact
    outputs = Outputs("numbers", labels.astype(float), predicted.astype(float))
    assert find_metric("pearson", [Tally(outputs, {}, {"pearson": reported})]) is not None


@pytest.mark.parametrize("name", ["pearson", "spearmanr"])
def test_a_constant_has_no_correlation(name: str) -> None:
    constant = Outputs("numbers", REAL.labels, np.full(ROWS, 0.1))
    metric, _, tally = found(name, constant, **{name: 0.0})
    scorer = metric.scorer(tally)
    assert scorer is not None
    assert scorer(WEIGHTS).tolist() == [0.0] * len(WEIGHTS)


def test_hits_of_flags_need_all_flags_and_of_tokens_add_up() -> None:
    assert hits(FLAGS).tolist() == (FLAGS.labels == FLAGS.predicted).all(1).astype(int).tolist()
    outputs = Outputs("tokens", np.array([0, 1, 1]), np.array([0, 1, 0]), lengths=np.array([2, 0, 1]))
    assert hits(outputs).tolist() == [2, 0, 0]


def make(**changes: Any) -> Outputs:
    return Outputs(**{"kind": "classes", "labels": np.array([0]), "predicted": np.array([1])} | changes)


def test_outputs_know_their_rows_and_units() -> None:
    assert (make().rows, make().units) == (1, "rows")
    assert (TOKENS.rows, TOKENS.units) == (ROWS, "tokens")
