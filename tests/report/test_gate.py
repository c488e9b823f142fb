"""The gate lets a model pass if it lost at most what is allowed and keeps what its run promised."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification, Trainer

from hf_compress.launch.preconditions import check_gate
from hf_compress.recipe import Recipe
from hf_compress.report.evaluation import Origin
from hf_compress.report.gate import (
    ACCEPT,
    REGRESSION,
    check_max_drop,
    drop,
    exit_status,
    judged,
    verdict,
    what_to_try,
)
from hf_compress.report.intervals import Interval
from hf_compress.report.report import Report
from tests.invariants.harness import make

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def report() -> Report:
    return replace(Report.load(GOLDEN), teacher=None)


def scored(report: Report, dense: float | None, compressed: float, name: str = "accuracy", **changes: Any) -> Report:
    given = None if dense is None else {name: dense}
    return replace(report, main_metric=name, dense=given, compressed={name: compressed}, comparison={}, **changes)


@pytest.mark.parametrize(
    ("name", "dense", "compressed", "points"),
    [
        ("accuracy", 0.91, 0.90, 1.0),
        ("accuracy", 0.90, 0.91, -1.0),
        ("f1", 91.0, 90.0, 1.0),
        ("matthews_correlation", 0.5, -0.1, 60.0),
        ("loss", 0.4, 0.5, 0.1),
        ("perplexity", 12.0, 11.0, -1.0),
        ("wer", 0.10, 0.12, 2.0),
    ],
)
def test_a_drop_is_in_points_and_positive_if_worse(
    report: Report, name: str, dense: float, compressed: float, points: float
) -> None:
    assert drop(scored(report, dense, compressed, name)) == pytest.approx(points)


def test_a_run_may_say_that_lower_is_better(report: Report) -> None:
    distance = scored(report, 0.20, 0.25, "distance")
    assert drop(distance) == pytest.approx(-5)
    assert drop(replace(distance, greater_is_better=False)) == pytest.approx(5)
    assert verdict(replace(distance, greater_is_better=False), 1.0)[0] == REGRESSION


def test_the_limit_itself_is_allowed_and_more_is_not(report: Report) -> None:
    assert verdict(scored(report, 0.91, 0.90), 1.0)[0] == ACCEPT
    assert verdict(scored(report, 0.91, 0.8999), 1.0)[0] == REGRESSION
    assert verdict(scored(report, 0.91, 0.91), 0.0)[0] == ACCEPT
    assert verdict(scored(report, 0.91, 0.9099), 0.0)[0] == REGRESSION
    assert verdict(scored(report, 0.4, 0.45, "loss"), 0.1)[0] == ACCEPT
    assert verdict(scored(report, 0.4, 0.55, "loss"), 0.1)[0] == REGRESSION


def test_the_verdict_says_drop_interval_and_limit(report: Report) -> None:
    interval = Interval(-0.0135, -0.021, -0.006, 0.95, "paired bootstrap", "rows", 872)
    report = replace(scored(report, 0.8532, 0.8397), comparison={"accuracy": interval})
    assert verdict(report, 1.0)[1] == [
        "The accuracy of the compressed model is 1.35 points below that of the dense model (95 % interval: -2.10 to "
        "-0.60 points). A drop of at most 1 point is allowed."
    ]
    assert verdict(scored(report, 0.4, 0.45, "loss"), 0.1)[1] == [
        "The loss of the compressed model is 0.05 above that of the dense model. A rise of at most 0.1 is allowed."
    ]
    assert "is equal to that of the dense model." in verdict(scored(report, 0.9, 0.9), 0.5)[1][0]


def test_the_golden_reasons_are_what_the_gate_says(report: Report) -> None:
    assert verdict(report, 1.0) == (report.verdict, report.reasons)


def test_a_drop_that_nobody_measured_is_a_regression(report: Report) -> None:
    word, reasons = verdict(scored(report, None, 0.9), 5.0)
    assert word == REGRESSION and "no dense model was scored" in reasons[0]


def test_a_missing_format_is_a_regression_of_its_own(report: Report) -> None:
    word, reasons = verdict(replace(report, failed_formats={"onnx": "Its logits differ by 0.3."}), 1.0)
    assert word == REGRESSION
    assert reasons[1:] == ["The format `onnx` was asked for and is missing: Its logits differ by 0.3."]


def test_missed_sparsity_and_missed_size_are_regressions(report: Report) -> None:
    word, reasons = verdict(replace(report, achieved_sparsity=0.523), 1.0)
    assert word == REGRESSION
    assert reasons[1:] == ["The recipe promises 60 % zeros, and the file has 52.3 %."]
    # Numbers of groups are rounded down: of 12 heads, 60 % are 7.
    heads = replace(report, promised_sparsity=7 / 12, achieved_sparsity=7 / 12)
    assert verdict(heads, 1.0)[0] == ACCEPT
    assert verdict(replace(heads, achieved_sparsity=0.5), 1.0)[0] == REGRESSION
    # Whole weights: of 1,024, 60 % are 614.4.
    assert verdict(replace(report, achieved_sparsity=614 / 1024), 1.0)[0] == ACCEPT
    small = Recipe.from_dict({**report.recipe.to_dict(), "budget": {"compress_budget_mb": 10.0}})
    word, reasons = verdict(replace(report, recipe=small), 1.0)
    assert word == REGRESSION
    assert reasons[1:] == ["The recipe promises a file of at most 10.0 MB, and it has 16.2 MB."]


def test_without_a_limit_there_is_no_verdict(report: Report) -> None:
    free = judged(replace(report, failed_formats={"onnx": "No."}), None)
    assert (free.max_drop, free.verdict, free.reasons) == (None, None, [])
    assert exit_status(free) == exit_status(None) == 0


def test_a_verdict_stands_in_the_report_and_the_exit_status(report: Report, tmp_path: Path) -> None:
    for limit, word, status in ((1.0, REGRESSION, 3), (5.0, ACCEPT, 0), (0.0, REGRESSION, 3)):
        found = judged(scored(report, 0.9, 0.88), limit)
        assert (found.max_drop, found.verdict, exit_status(found)) == (limit, word, status)
        found.save(tmp_path)
        assert Report.load(tmp_path) == found


@pytest.mark.parametrize("value", [-0.1, math.inf, -math.inf, math.nan])
def test_a_limit_that_is_no_number_of_points_is_refused(value: float, report: Report) -> None:
    with pytest.raises(ValueError, match=r"`--compress_max_drop` must be a finite number of points, 0 or more; got"):
        check_max_drop(value)
    with pytest.raises(ValueError, match="--compress_max_drop"):
        verdict(report, value)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            {"pruning": {"prune_sparsity": 0.6}},
            "Try distillation (`--distill_teacher self`), or more training (`--num_train_epochs 6`), or less sparsity "
            "(`--prune_sparsity 0.5`).",
        ),
        (
            {"distillation": {"distill_teacher": "self"}, "quantization": {"quant_scheme": "int4-weight"}},
            "Try more training (`--num_train_epochs 6`), or more bits (`--quant_scheme int8`).",
        ),
        (
            {"distillation": {"distill_teacher": "self"}, "quantization": {"quant_scheme": "int8"}},
            "Try more training (`--num_train_epochs 6`), or more bits (`--quant_scheme int8-weight`).",
        ),
        (
            {"distillation": {"distill_teacher": "self"}, "budget": {"compress_budget_mb": 8.0}},
            "Try more training (`--num_train_epochs 6`), or a larger file (`--compress_budget_mb 10`).",
        ),
        (
            {
                "distillation": {"distill_teacher": "self"},
                "pruning": {"prune_sparsity": 0.6},
                "quantization": {"quant_scheme": "int8", "quant_step": 0.02},  # As a finished run records it.
                "budget": {"compress_budget_mb": 8.0},
            },
            "Try more training (`--num_train_epochs 6`), or the same size without zeros (leave `--prune_sparsity` "
            "out), or a larger file (`--compress_budget_mb 10`).",
        ),
        (
            {
                "distillation": {"distill_teacher": "self"},
                "quantization": {"quant_scheme": "int8", "quant_step": 0.02},
            },
            "Try more training (`--num_train_epochs 6`), or finer steps (`--quant_step 0.016`).",
        ),
    ],
)
def test_what_to_try_follows_from_the_recipe(report: Report, recipe: dict[str, Any], expected: str) -> None:
    lost = scored(report, 0.9, 0.8, recipe=Recipe.from_dict(recipe), max_drop=1.0)
    assert what_to_try(lost) == expected


def test_what_to_try_follows_from_what_failed(report: Report) -> None:
    assert "without `onnx` in `--compress_formats`" in what_to_try(replace(report, failed_formats={"onnx": "No."}))
    assert "fine-tuned for the task" in what_to_try(scored(report, None, 0.9, max_drop=1.0))


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return make(tmp_path / "run")


def test_a_limit_needs_a_dense_model_before_training(
    trainer: Trainer, make_bert: Callable[..., BertForSequenceClassification], tmp_path: Path
) -> None:
    untrained = Origin.of(trainer.model)
    with pytest.raises(ValueError, match=r"`--compress_max_drop 1` needs a dense model .* its head is not trained"):
        check_gate(trainer, untrained, 1.0)
    check_gate(trainer, untrained, None)
    check_gate(trainer, untrained, 1.0, has_dense=True)
    make_bert().save_pretrained(tmp_path / "dense")
    check_gate(trainer, Origin.of(BertForSequenceClassification.from_pretrained(tmp_path / "dense")), 1.0)
    with pytest.raises(ValueError, match="must be a finite number"):
        check_gate(trainer, untrained, -1.0)
