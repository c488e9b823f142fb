"""A run with a limit ends in a verdict, keeps a regression, pushes it nowhere, and exits with 3."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_compress import PruningArguments, QuantizationArguments, Recipe, Report, compress, exit_status, finish
from hf_compress.hub import check
from hf_compress.launch import launcher
from hf_compress.launch.result import Result
from hf_compress.report import read_predictions
from hf_compress.report.gate import ACCEPT, REGRESSION
from tests.invariants.harness import in_two_processes
from tests.tiny import NO_DROPOUT, bert

ROOT = Path(__file__).parents[2]
PRUNED = Recipe(pruning=PruningArguments(prune_sparsity=0.9), quantization=QuantizationArguments("int8"))
FAR = 0.3
SMALL = "--max_steps 4 --per_device_train_batch_size 8 --use_cpu --save_strategy no --disable_tqdm true"
SMALL += " --report_to none --do_train --do_eval"


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trained_bert(model: BertForSequenceClassification, rows: Dataset, folder: Path) -> Path:
    """Train `model` on the rows, which it learns, and save it: the dense model."""
    arguments = TrainingArguments(
        str(folder / "dense-run"),
        max_steps=60,
        learning_rate=5e-3,
        per_device_train_batch_size=16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(folder / "dense"))
    return folder / "dense"


def trainer_of(dense: Path, rows: Dataset, folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 4,
            "learning_rate": 1e-6,
            "per_device_train_batch_size": 8,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        },
    )
    model = BertForSequenceClassification.from_pretrained(dense)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    return Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=accuracy,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )


@pytest.fixture(scope="module")
def dense(
    tiny_dataset: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a tiny BERT that has learned the sentences, and its tokenizer."""
    folder = trained_bert(bert(**NO_DROPOUT), tiny_dataset, tmp_path_factory.mktemp("gate"))
    tiny_tokenizer.save_pretrained(folder)
    return folder


def compressed(dense: Path, rows: Dataset, folder: Path, recipe: Recipe, max_drop: float, **settings: Any) -> Report:
    trainer = compress(trainer_of(dense, rows, folder, **settings), recipe, max_drop=max_drop)
    trainer.train()
    report = finish(trainer)
    assert report is not None
    return report


@pytest.fixture(scope="module")
def lost(dense: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A run whose steps are so large that the model forgets the sentences: its report and its folder."""
    folder = tmp_path_factory.mktemp("lost")
    return compressed(dense, tiny_dataset, folder, PRUNED, 5.0, learning_rate=FAR), folder


def test_a_model_that_lost_too_much_is_kept_and_judged(lost: tuple[Report, Path]) -> None:
    report, output = lost
    assert report.dense is not None and report.dense["accuracy"] == 1
    assert report.compressed["accuracy"] < 0.9
    assert (report.max_drop, report.verdict, exit_status(report)) == (5.0, REGRESSION, 3)
    folder = output / "compressed"
    assert Report.load(folder) == report
    assert Result(output).plan() is None, "nothing is left to do"
    with pytest.raises(ValueError, match=r"--regression-too"):
        check(folder)
    assert check(folder, regression_too=True) == report


def test_differences_are_those_of_the_rows_of_both_models(lost: tuple[Report, Path]) -> None:
    report, output = lost
    columns = read_predictions(output / "compressed")
    assert columns["row"].tolist() == list(range(64))
    assert columns["label"].tolist() == [index % 2 for index in range(64)]
    right = {model: columns[model] == columns["label"] for model in ("dense", "compressed")}
    assert report.dense is not None and right["dense"].mean() == report.dense["accuracy"]
    assert right["compressed"].mean() == report.compressed["accuracy"]
    difference = report.comparison["accuracy"]
    assert difference.value == pytest.approx(right["compressed"].mean() - right["dense"].mean())
    assert difference.low < difference.value < difference.high <= 0
    assert difference.p_value is not None and difference.p_value < 0.05
    assert set(report.intervals) == set(report.comparison) == {"accuracy", "loss"}
    assert report.without_interval == {}
    logits = np.stack(columns["compressed_logits"]).astype(float)
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(64), columns["label"]]
    assert loss.mean() == pytest.approx(report.compressed["loss"], rel=1e-2)


@pytest.mark.slow
def test_a_model_within_the_limit_is_accepted(dense: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    int8 = Recipe(quantization=QuantizationArguments("int8"))
    report = compressed(dense, tiny_dataset, tmp_path, int8, 5.0)
    assert (report.verdict, exit_status(report)) == (ACCEPT, 0)
    assert report.reasons[0].endswith("A drop of at most 5 points is allowed.")
    assert check(tmp_path / "compressed") == report


def test_a_run_without_dense_model_is_refused_before_training(
    make_bert: Callable[..., BertForSequenceClassification], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    arguments = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    trainer = Trainer(make_bert(), arguments, train_dataset=tiny_dataset, eval_dataset=tiny_dataset)
    with pytest.raises(ValueError, match=r"`--compress_max_drop 1` needs a dense model"):
        compress(trainer, PRUNED, max_drop=1.0)
    compress(trainer, PRUNED, max_drop=1.0, dense={"accuracy": 0.9})


def launched(dense: Path, sentences: Dataset, folder: Path) -> list[str]:
    sentences.to_csv(folder / "rows.csv")
    files = ["--train_file", str(folder / "rows.csv"), "--validation_file", str(folder / "rows.csv")]
    options = ["--model_name_or_path", str(dense), *files, "--output_dir", str(folder / "out"), *SMALL.split()]
    return [*options, "--learning_rate", str(FAR), "--prune_sparsity", "0.9"]


@pytest.mark.slow
def test_the_launcher_exits_with_3_and_says_what_to_try(
    dense: Path,
    tiny_sentences: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT / "tests" / "launched")
    options = launched(dense, tiny_sentences, tmp_path)
    assert launcher.main(["train_text.py", *options, "--compress_max_drop", "1"]) == 3
    said = " ".join((caplog.text + "".join(capsys.readouterr())).split())
    assert "REGRESSION: The accuracy of the compressed model is" in said
    assert "Try distillation (`--distill_teacher self`)" in said
    assert Report.load(tmp_path / "out" / "compressed").verdict == REGRESSION


def test_a_limit_that_is_no_number_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    script = str(ROOT / "tests" / "launched" / "train_text.py")
    for value, message in (("-1", "0 or more; got -1.0"), ("nan", "0 or more; got nan"), ("much", "much")):
        assert launcher.main([script, "--prune_sparsity", "0.5", "--compress_max_drop", value]) == 2
        error = capsys.readouterr().err
        assert "--compress_max_drop" in error and message in error


@pytest.mark.slow
def test_the_example_exits_with_3(dense: Path, tiny_sentences: Dataset, tmp_path: Path) -> None:
    options = [*launched(dense, tiny_sentences, tmp_path), "--compress_max_drop", "1"]
    command = [sys.executable, str(ROOT / "examples" / "run_glue.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "REGRESSION: The accuracy" in done.stderr + done.stdout


def judge_in_a_process(dense: Path, rows: Dataset, folder: Path) -> None:
    trainer = compress(trainer_of(dense, rows, folder, learning_rate=FAR), PRUNED, max_drop=1.0)
    trainer.train()
    report = finish(trainer)
    assert report is not None
    found = [exit_status(report), report.verdict, report.comparison["accuracy"].value]
    (folder / f"verdict-{os.environ['RANK']}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_all_processes_hear_the_same_verdict(dense: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    rows = tiny_dataset.select(range(63))  # The last batch is filled up with rows that do not count.
    assert in_two_processes(judge_in_a_process, dense, rows, tmp_path / "run") == [0, 0]
    verdicts = [json.loads((tmp_path / "run" / f"verdict-{rank}.json").read_text()) for rank in range(2)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][:2] == [3, REGRESSION] and verdicts[0][2] < 0
    assert len(read_predictions(tmp_path / "run" / "compressed")["row"]) == 63
