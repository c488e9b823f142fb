"""The advice meets its limits, names its sources, and refuses what the study cannot answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from transformers import BertConfig
from typer.testing import CliRunner

from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.analysis.panel import Point, panel
from hf_compress.study.analysis.suggestion import Weights, suggest
from hf_compress.study.report import advice
from hf_compress_cli import app

Make = Callable[..., list[Measurement]]
runner = CliRunner(env={"COLUMNS": "160"})


def test_the_best_small_enough_recipe_is_suggested(make_measurements: Make) -> None:
    measurements = make_measurements(noise=0.0)
    advice = suggest(measurements, "synthetic-6", "sst2", max_bytes=20e6)
    assert (advice.point.model, advice.point.combination) == ("synthetic-6", "kd+mp+int8")
    assert advice.size <= 20e6 and advice.difference.value == pytest.approx(-0.7)
    assert advice.flags == ["--distill_teacher FINE-TUNED-SYNTHETIC", "--prune_sparsity 0.6", "--quant_scheme int8"]
    assert suggest(measurements, "synthetic-6", "sst2", max_bytes=91e6).point.combination == "kd"


def test_the_smallest_good_enough_recipe_is_suggested(make_measurements: Make) -> None:
    measurements = make_measurements(noise=0.0)
    assert suggest(measurements, "synthetic-6", "sst2", max_drop=0.5).point.combination == "kd+int8"
    assert suggest(measurements, "synthetic-6", "sst2", max_drop=0.7).point.combination == "kd+mp+int8"
    cut = suggest(measurements, "synthetic-6", "sst2", max_drop=3.8)
    assert (cut.point.model, cut.point.combination) == ("synthetic-3", "kd+mp+int8"), "14.1 MB with -3.7 points"
    assert cut.flags[0] == "--distill_student_layers 3"


def test_both_limits_hold_together(make_measurements: Make) -> None:
    measurements = make_measurements(noise=0.0)
    assert suggest(measurements, "synthetic-6", "sst2", max_bytes=17e6, max_drop=1.0).point.combination == "kd+mp+int8"
    with pytest.raises(
        ValueError, match=r"No cell of the study meets these limits for synthetic-6. The smallest is synthetic-1"
    ):
        suggest(measurements, "synthetic-6", "sst2", max_bytes=10e6, max_drop=0.1)


def test_the_interval_is_students_t_with_pooled_seeds(make_measurements: Make) -> None:
    measurements = make_measurements(seeds={3: 4}, noise=1.0)
    advice = suggest(measurements, "synthetic-3", "cola", max_bytes=14.5e6, max_drop=50)
    scores = {
        name: [o.score for o in measurements if (o.task, o.model, o.combination) == ("cola", "synthetic-3", name)]
        for name in {o.combination for o in measurements}
    }
    pooled = np.sqrt(np.mean([np.var(values, ddof=1) for values in scores.values()]))
    difference = np.mean(scores[advice.point.combination]) - np.mean(scores["dense"])
    reach = stats.t.ppf(0.975, 8 * 3) * pooled * np.sqrt(1 / 4 + 1 / 4)
    assert advice.difference.value == pytest.approx(difference)
    assert advice.difference.interval == pytest.approx((difference - reach, difference + reach))
    assert len(advice.cells) == 8 and advice.over == "seeds"


def test_one_seed_gives_a_number_and_no_interval(make_measurements: Make) -> None:
    advice = suggest(make_measurements(), "synthetic-3", "cola", max_drop=50)
    assert advice.difference.interval is None and advice.over == "not enough seeds"


def test_another_task_uses_all_tasks_and_a_wider_interval(make_measurements: Make) -> None:
    measurements = make_measurements(seeds={3: 3}, noise=1.0)
    other = suggest(measurements, "synthetic-3", "reviews", max_bytes=14.5e6)
    assert other.tasks == ("cola", "mrpc", "sst2") and not other.task_known and other.over == "another task"
    whole = panel(measurements)
    places = [whole.column(point) for point in (other.point, Point("synthetic-3", "dense", 0.0))]
    differences = whole.scores[:, places[0]] - whole.scores[:, places[1]]
    reach = stats.t.ppf(0.975, 2) * np.std(differences, ddof=1) * np.sqrt(4 / 3)
    assert other.difference.interval == pytest.approx((differences.mean() - reach, differences.mean() + reach))
    few = suggest(make_measurements(tasks=("cola",)), "synthetic-3", "reviews", max_drop=50)
    assert few.difference.interval is None and few.over == "not enough tasks"


def test_a_family_stands_for_its_largest_model(make_measurements: Make) -> None:
    advice = suggest(make_measurements(noise=0.0), "synthetic", "sst2", max_drop=0.5)
    assert advice.compared_to == "synthetic-6" and advice.flags[0] == "--distill_student_layers 6"


def test_an_unknown_model_uses_the_nearest_in_size(make_measurements: Make) -> None:
    measurements = make_measurements(noise=0.0)
    advice = suggest(measurements, "else", "sst2", max_drop=0.7, weights=Weights(24_000_000, 10_000_000))
    assert advice.compared_to == "synthetic-6" and advice.layers is None
    assert advice.size == pytest.approx(24_000_000 + 0.4 * 10_000_000, rel=2e-3)
    assert advice.dense_size == 4 * 34_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "synthetic-6"], "Give a limit: `--max-size 10MB`"),
        (["--model", "synthetic-6", "--max-size", "small"], "`--max-size` must be a number of bytes, kB, MB or GB"),
        (["--model", "synthetic-6", "--max-drop", "-1"], "`--max-drop` must be 0 or more; got -1"),
        (["--model", "synthetic-6", "--max-drop", "nan"], "`--max-drop` must be 0 or more; got nan"),
        (["--model", "synthetic-6", "--max-drop", "inf"], "`--max-drop` must be 0 or more; got inf"),
        (["--model", "synthetic-6", "--max-size", "1e999"], "`--max-size` must be a number of bytes, kB, MB or GB"),
        (["--model", "synthetic-6", "--max-size", "٣MB"], "`--max-size` must be a number of bytes, kB, MB or GB"),
        (
            ["--model", "some/where", "--max-drop", "1"],
            "`--model` must be a model of the study (synthetic, synthetic-1",
        ),
    ],
)
def test_an_invalid_limit_is_refused_in_one_message(
    make_results: Callable[..., Path], arguments: list[str], message: str
) -> None:
    result = runner.invoke(app, ["study", "suggest", "--task", "sst2", "--results", str(make_results()), *arguments])
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output


def test_the_command_prints_the_recipe_and_what_to_expect(make_results: Callable[..., Path], tmp_path: Path) -> None:
    results = str(make_results(seeds={6: 3}))
    asked = [
        "study",
        "suggest",
        "--model",
        "synthetic-6",
        "--task",
        "sst2",
        "--max-size",
        "20 MB",
        "--results",
        results,
    ]
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "try first: kd+mp+int8 (60 % of the linear layers' weights zero)" in result.stdout
    assert "--prune_sparsity 0.6 --quant_scheme int8" in result.stdout
    assert "95 %:" in result.stdout and "sst2-6-0-kd+mp+int8-0.6" in result.stdout
    BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2).save_pretrained(tmp_path / "mine")
    asked[3], asked[5] = str(tmp_path / "mine"), "reviews"
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "The study does not have the task reviews" in result.stdout and "stands for this model" in result.stdout


def test_sizes_are_read_in_decimal_units() -> None:
    words = ("10MB", "800 kB", "1.5e6", "2GB", "7b")
    assert [advice.size_in_bytes(word) for word in words] == [10e6, 800e3, 1.5e6, 2e9, 7]


def test_the_study_that_comes_with_the_package_answers() -> None:
    measurements = read_measurements(advice.shipped())
    largest = max(measurements, key=lambda measurement: measurement.dense_bytes)
    result = runner.invoke(
        app, ["study", "suggest", "--model", largest.model, "--task", largest.task, "--max-drop", "50"]
    )
    assert result.exit_code == 0, result.output
    assert "--quant_scheme int8" in result.stdout
