"""The result of a run appears whole or not at all, and an interrupted finish is completed or repeated."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from hf_compress import Recipe, compress, finish, hub
from hf_compress.launch import complete
from hf_compress.launch import result as results
from hf_compress.launch.claim import claim, release
from hf_compress.launch.result import UNFINISHED, Result
from hf_compress.prune.arguments import PruningArguments
from hf_compress.report.report import Report
from hf_compress_cli import app
from tests.invariants.harness import in_a_process
from tests.made_up_formats import register

RECIPE = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_every=1))


class Stopped(BaseException):
    """Stands for what ends a process at some point of `finish`; no code handles it."""


@pytest.fixture
def trained(
    tiny_bert: BertForSequenceClassification, tiny_tokenizer: PreTrainedTokenizerFast, tiny_dataset: Dataset,
    tmp_path: Path,
) -> Trainer:  # fmt: skip
    """A trainer whose training with compression is over, in the output folder `tmp_path`/out."""
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=6, use_cpu=True, report_to="none", disable_tqdm=True, save_steps=6
    )
    trainer = Trainer(
        tiny_bert, arguments, train_dataset=tiny_dataset, eval_dataset=tiny_dataset, processing_class=tiny_tokenizer
    )
    compress(trainer, RECIPE).train()
    return trainer


def stop_at(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Let `finish` stop when it calls `where`."""

    def stopped(*args: Any, **kwargs: Any) -> None:
        raise Stopped(where)

    monkeypatch.setattr(where, stopped)


POINTS = {
    "save": "hf_compress.launch.run.save_compressed",
    "evaluation": "hf_compress.launch.reporting.measure",
    "report": "hf_compress.report.report.Report.save",
    "card": "hf_compress.launch.result.save_card",
    "format": "hf_compress.launch.format_steps.FormatSteps._write",
    "scores of a format": "hf_compress.launch.format_steps.FormatSteps._facts",
    "move of a format": "hf_compress.launch.format_steps.FormatSteps._move",
    "record of a format": "hf_compress.launch.format_steps.FormatSteps._record",
    "push": "hf_compress.launch.result.push",
}


UNPLACED = ("save", "evaluation", "report", "card")
SLOW = ["card", *(point for point in POINTS if point not in (*UNPLACED, "push"))]


def interrupt(trainer: Trainer, at: str, **options: Any) -> None:
    """Call `finish` and let it stop at one of `POINTS`."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, POINTS[at])
        with pytest.raises(Stopped):
            finish(trainer, **options)


@pytest.mark.parametrize("point", UNPLACED)
def test_a_result_appears_whole_or_not_at_all(point: str, trained: Trainer) -> None:
    interrupt(trained, at=point)
    folder = Path(trained.args.output_dir) / "compressed"
    assert not folder.exists()
    report = finish(trained)
    assert hub.check(folder) == report, "finish can be repeated"
    assert not (folder.parent / UNFINISHED).exists()


@pytest.mark.parametrize(
    "point",
    [
        "push",
        *(pytest.param(point, marks=pytest.mark.slow) for point in POINTS if point not in (*UNPLACED[:3], "push")),
    ],
)
def test_finish_completes_from_the_folder_alone(point: str, trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "pickled")
    interrupt(trained, at=point, hub_id="me/small", formats=["pickled"])
    pushed: list[tuple[Path, str]] = []
    monkeypatch.setattr(results, "push", lambda folder, hub_id, **_: pushed.append((folder, hub_id)) or "address")
    output = Path(trained.args.output_dir)
    result = CliRunner().invoke(app, ["finish", str(output)])
    assert result.exit_code == 0, result.output
    done = ["Moved the result"] if point == "card" else []
    done += [] if point == "push" else ["Wrote the format pickled", "Did not score the format pickled"]
    done.append("Published at")
    assert all(step.startswith(said) for step, said in zip(result.stdout.splitlines(), done, strict=True))
    assert pushed == [(output / "compressed", "me/small")]
    assert hub.check(output / "compressed").formats.keys() == {"pickled"}
    assert not (output / UNFINISHED).exists()
    assert "Nothing is left to do" in CliRunner().invoke(app, ["finish", str(output)]).stdout


@pytest.mark.parametrize("point", ["save", "evaluation", "report"])
def test_finish_names_the_command_that_measures_missing_scores(point: str, trained: Trainer) -> None:
    interrupt(trained, at=point, command="hf-compress run train.py")
    output = Path(trained.args.output_dir)
    refused = CliRunner().invoke(app, ["finish", str(output)])
    assert refused.exit_code == 1
    assert "`hf-compress run train.py --resume_from_checkpoint last`" in refused.stderr
    shutil.rmtree(output / "checkpoint-6")
    assert "so this trains again" in CliRunner().invoke(app, ["finish", str(output)]).stderr
    assert not (output / "compressed").exists()


def test_a_half_written_report_counts_as_missing(trained: Trainer) -> None:
    interrupt(trained, at="card")
    aside = Result(trained.args.output_dir).aside
    (aside / "report.json").write_text("")
    with pytest.raises(ValueError, match="has no scores yet"):
        complete(trained.args.output_dir)


def test_a_model_without_scores_can_be_kept(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(trained, at="evaluation", hub_id="me/small")
    stop_at(monkeypatch, POINTS["push"])
    output = Path(trained.args.output_dir)
    result = CliRunner().invoke(app, ["finish", str(output), "--without-report"])
    assert result.exit_code == 0, result.output
    assert AutoModelForSequenceClassification.from_pretrained(output / "compressed").bert is not None
    assert not {"report.json", "README.md"} & {path.name for path in (output / "compressed").iterdir()}


def test_finish_renews_a_card_that_is_not_of_this_report(trained: Trainer) -> None:
    finish(trained)
    folder = Path(trained.args.output_dir) / "compressed"
    (folder / "README.md").write_text("")
    assert "Wrote the card" in CliRunner().invoke(app, ["finish", str(folder.parent)]).stdout
    assert hub.check(folder) == Report.load(folder)


@pytest.mark.parametrize("made", [lambda path: None, Path.mkdir, Path.touch])
def test_finish_refuses_a_folder_without_a_run(made: Callable[[Path], None], tmp_path: Path) -> None:
    made(tmp_path / "out")
    result = CliRunner().invoke(app, ["finish", str(tmp_path / "out")])
    assert result.exit_code == 1 and "must be the `--output_dir` of a run" in result.stderr


def test_a_second_finish_does_not_touch_the_result(trained: Trainer) -> None:
    finish(trained)
    folder = Path(trained.args.output_dir) / "compressed"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="already holds a result"):
        finish(trained)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_plan_of_a_result_holds_no_token(trained: Trainer) -> None:
    trained.args.hub_token = "hf_secret"
    interrupt(trained, at="evaluation")
    plan = json.loads((Result(trained.args.output_dir).aside.parent / "plan.json").read_text())
    assert "hf_secret" not in str(plan)


@contextmanager
def claimed_by_another(folder: Path) -> Iterator[None]:
    """Hold a claim on `folder` as another process would: locks belong to the opened folder."""
    opened = os.open(folder, os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(opened)


def test_a_second_run_into_a_folder_is_refused_at_its_start(
    tiny_bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    trainer = Trainer(tiny_bert, TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"))
    with claimed_by_another(tmp_path / "out"), pytest.raises(ValueError, match="is in use by another run"):
        compress(trainer, RECIPE)
    assert not list((tmp_path / "out").iterdir()), "a claim leaves no file behind"
    compress(trainer, RECIPE)
    release(tmp_path / "out")


def test_an_unfinished_result_of_a_live_run_is_left_alone(trained: Trainer) -> None:
    interrupt(trained, at="card")
    output = Path(trained.args.output_dir)
    release(output)
    with claimed_by_another(output):
        result = CliRunner().invoke(app, ["finish", str(output)])
        with pytest.raises(ValueError, match="is in use by another run"):
            finish(trained)
    assert result.exit_code == 1 and "is in use by another run" in result.stderr
    assert CliRunner().invoke(app, ["finish", str(output)]).exit_code == 0


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    assert in_a_process(claim, str(tmp_path)) == 0
    claim(tmp_path)
    claim(tmp_path)  # Of the same process.
    release(tmp_path)
    release(tmp_path)


@pytest.mark.parametrize("leftover", ["link", "file", "folder"])
def test_leftovers_are_replaced_and_links_not_followed(leftover: str, trained: Trainer, tmp_path: Path) -> None:
    unfinished = Path(trained.args.output_dir) / UNFINISHED
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    if leftover == "link":
        unfinished.symlink_to(tmp_path / "precious")
    elif leftover == "file":
        unfinished.write_text("")
    else:
        (unfinished / "compressed").mkdir(parents=True)
        (unfinished / "compressed" / "model.safetensors").write_text("half")
    report = finish(trained)
    assert hub.check(Path(trained.args.output_dir) / "compressed") == report
    assert [path.read_text() for path in (tmp_path / "precious").iterdir()] == ["kept"]
    assert not unfinished.exists() and not unfinished.is_symlink()


def test_a_linked_output_folder_receives_the_result(trained: Trainer, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    trained.args.output_dir = str(tmp_path / "link")
    report = finish(trained)
    assert hub.check(tmp_path / "disk" / "compressed") == report


def test_a_link_in_place_of_the_result_is_refused(trained: Trainer, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (Path(trained.args.output_dir) / "compressed").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="already holds a result"):
        finish(trained)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_broken_plan_is_one_sentence(trained: Trainer) -> None:
    interrupt(trained, at="card")
    plan = Path(trained.args.output_dir) / UNFINISHED / "plan.json"
    for text in ("", "[]", '{"command": 1}', "{" * 5000):
        plan.write_text(text)
        result = CliRunner().invoke(app, ["finish", trained.args.output_dir])
        assert result.exit_code == 1 and "plan.json" in result.stderr and len(result.stderr) < 500
