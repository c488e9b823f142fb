"""A tiny grid is trained through the command, from a local copy of the data."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import ClassLabel, Dataset
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_compress.report.report import Report
from hf_compress.study.run.results import read_results
from hf_compress_cli import app

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def place(
    tiny_bert: BertForSequenceClassification,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_sentences: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working directory, with a model, SST-2 in the Hub's layout, and a grid."""
    monkeypatch.chdir(tmp_path)
    tiny_bert.save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    rows = tiny_sentences.cast_column("label", ClassLabel(names=["negative", "positive"]))
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "glue" / "sst2" / f"{split}-0.parquet")
    (tmp_path / "glue" / "README.md").write_text(
        "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
        "  - {split: train, path: sst2/train-*}\n  - {split: validation, path: sst2/validation-*}\n---\n"
    )
    grid = {
        "models": [{"name": "bert", "path": "bert", "layers": [1]}],
        "tasks": [{"name": "sst2", "train_rows": 30, "eval_extra": 30}],
        "methods": ["dense", "kd+mp+int8"],
        "teacher": "bert",
        "recipe": {"prune_every": 1},
        "training": {
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "num_train_epochs": 2,
            "train_sampling_strategy": "group_by_length",
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(grid))
    return tmp_path


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the libraries' messages: the command silences them for the rest of the process."""
    monkeypatch.setattr("hf_compress.study.run.program.quiet", lambda: None)


def study(*arguments: str) -> str:
    result = runner.invoke(app, ["study", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_grid_becomes_reports_without_a_path_of_this_machine(place: Path) -> None:
    dry = study("tiny.yaml", "--data", "glue", "--out", "out", "--dry-run")
    assert "2 cells, 2 to do on 2 dense models" in dry
    study("tiny.yaml", "--data", "glue", "--out", "out")
    assert "2 results written" in study("collect", "out", "results.jsonl.zst")
    results = {result.cell.methods: result for result in read_results(place / "results.jsonl.zst")}
    assert set(results) == {"dense", "kd+mp+int8"}
    for result in results.values():
        report = Report.from_dict(result.report)
        assert (report.task, report.seed, report.dataset.train_rows) == ("sst2", 0, 30)
        assert report.dense is not None and report.parity == 0.0
        assert str(place) not in json.dumps(result.to_dict())
        assert report.extra is not None and report.extra.dense is not None
        seen = {
            "main": (report.dataset.eval_rows, report.compressed),
            "extra": (report.extra.rows, report.extra.compressed),
        }
        for name, (rows, scores) in seen.items():
            outputs = result.answers[name].outputs()
            assert outputs.rows == rows
            assert (outputs.labels == outputs.predicted).mean() == pytest.approx(scores["accuracy"])
    small = Report.from_dict(results["kd+mp+int8"].report)
    assert small.teacher is not None and small.recipe.distillation.distill_teacher == "bert"
    assert small.recipe.distillation.distill_cache is None
    assert small.achieved_sparsity == pytest.approx(0.6, abs=0.001)
    assert small.size.packed_bytes < small.size.dense_bytes / 2
    assert Report.from_dict(results["dense"].report).teacher is None
    assert not list((place / "out").glob("*/model")) and not list((place / "out").glob("*/work"))
    again = study("tiny.yaml", "--data", "glue", "--out", "out", "--dry-run")
    assert "2 cells, 0 to do" in again


def test_a_study_compares_layers_and_takes_further_texts(place: Path) -> None:
    (place / "texts.txt").write_text("the film was warm\na dull song\n")
    grid = yaml.safe_load((place / "tiny.yaml").read_text())
    grid["recipe"] = {"distill_layer_loss": ["hidden=1"], "distill_extra": [str(place / "texts.txt")]}
    grid |= {"methods": ["kd"], "training": {"max_steps": 2}}
    (place / "tiny.yaml").write_text(yaml.safe_dump(grid))
    study("tiny.yaml", "--data", "glue", "--out", "out")
    study("collect", "out", "results.jsonl.zst")
    (result,) = read_results(place / "results.jsonl.zst")
    report = Report.from_dict(result.report)
    assert report.recipe.distillation.distill_layer_loss == ["hidden=1"]
    assert report.recipe.distillation.distill_extra == ["texts.txt"]
    assert report.teacher_rows == {"texts.txt": 2}


def test_bad_training_arguments_are_refused_at_once(place: Path) -> None:
    grid = yaml.safe_load((place / "tiny.yaml").read_text())
    grid["training"]["optim"] = "adamm"
    (place / "tiny.yaml").write_text(yaml.safe_dump(grid))
    result = runner.invoke(app, ["study", "tiny.yaml", "--data", "glue", "--out", "out"])
    assert result.exit_code == 1 and "adamm" in result.output
    assert not list((place / "out").glob("*/error.txt"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--jobs", "0"], "`--jobs`"),
        (["--threads", "-1"], "`--threads`"),
        (["--jobs", "2", "--ray", "auto"], "cannot be combined"),
        (["--cells", "3/2"], "`--cells`"),
        (["--results", "none.jsonl"], "none.jsonl"),
    ],
)
def test_options_are_refused_in_one_line(place: Path, arguments: list[str], named: str) -> None:
    result = runner.invoke(app, ["study", "tiny.yaml", "--data", "glue", "--out", "out", *arguments])
    assert result.exit_code == 1 and result.output.startswith("Error: ") and named in result.output


def test_a_plan_needs_no_hub(place: Path) -> None:
    paper = Path(__file__).parents[2] / "examples" / "study" / "paper.yaml"
    assert "2880 cells, 2880 to do" in study(str(paper), "--out", "out", "--dry-run")


def test_a_damaged_teacher_cache_is_replaced(place: Path) -> None:
    """Kinds of damage: tests/distill/test_cache.py."""
    arguments = ("tiny.yaml", "--data", "glue", "--out", "out")
    study(*arguments)
    (key,) = (path.parent.name for path in place.glob("out/*/cell.json") if '"kd+mp+int8"' in path.read_text())
    before = (place / "out" / key / "report.json").read_text()
    files = [path for path in (place / "out" / "teachers").iterdir() if path.suffix == ".arrow"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (place / "out" / key / "report.json").unlink()
    study(*arguments, "--retry-failed")
    assert not (place / "out" / key / "error.txt").exists()
    assert Report.from_dict(json.loads((place / "out" / key / "report.json").read_text())).compressed == (
        Report.from_dict(json.loads(before)).compressed
    )
