"""Packed file, report and card come first; each further format is a step that succeeds or is recorded as failed."""

import errno
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedModel, Trainer
from typer.testing import CliRunner

from hf_compress import Recipe, finish, save_compressed
from hf_compress.launch.claim import release
from hf_compress.launch.format_steps import FormatSteps
from hf_compress.launch.result import UNFINISHED
from hf_compress.report import check_contents
from hf_compress.report.card import is_current
from hf_compress.report.report import Report
from hf_compress_cli import app
from tests import made_up_formats
from tests.invariants.harness import PRUNE, in_a_process, in_two_processes, trained
from tests.made_up_formats import raising, read_something_else, register


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer after a training with pruning."""
    return trained(tmp_path_factory.mktemp("run"), [PRUNE], max_steps=4)


@pytest.fixture
def run(once: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """The same trainer, with an empty output folder."""
    monkeypatch.setattr(once.args, "output_dir", str(tmp_path / "out"))
    yield once
    release(tmp_path / "out")


def check(folder: Path) -> Report:
    """Return the report of a finished folder whose files and card are those of the report."""
    report = Report.load(folder)
    assert not check_contents(folder, report) and is_current(folder)
    return report


@pytest.fixture
def model(tiny_bert: BertForSequenceClassification, tmp_path: Path) -> Path:
    """A compressed folder without report."""
    return save_compressed(tiny_bert, tmp_path / "compressed", Recipe())


class OddError(Exception):
    """Stands for the classes of a runtime that are no built-in exceptions, as those of ONNX Runtime."""


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/full")
FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "parity": ({"read": read_something_else}, "computes something else than the checkpoint"),
    "writer": ({"write": raising(RuntimeError("no kernel\nfor Loop"))}, "no kernel for Loop (RuntimeError)"),
    "unknown model": ({"write": raising(KeyError("rotary"))}, "'rotary' (KeyError)"),
    "runtime": ({"read": raising(OddError("bad graph"))}, "bad graph (OddError)"),
    "library": ({"require": raising(ImportError("Run: pip install pickled"))}, "Run: pip install pickled"),
    "full disk": ({"write": raising(FULL)}, "full: No space left on device"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_kind_of_failure_is_one_sentence(
    failure: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, said = FAILURES[failure]
    register(monkeypatch, "broken", errors=(__name__,), **parts)
    register(monkeypatch, "whole")
    failed = FormatSteps(model, tmp_path / "scratch").add(["broken", "whole"])
    assert failed.keys() == {"broken"} and said in failed["broken"] and "\n" not in failed["broken"]
    assert (model / "whole" / "weights.pt").is_file(), "the others go on"
    assert not (model / "broken").exists() and not (tmp_path / "scratch").exists()


def test_a_format_that_fails_takes_nothing_with_it(
    run: Trainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register(monkeypatch, "broken", read=read_something_else)
    register(monkeypatch, "whole")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    report = finish(run, formats=["broken", "whole"], command="train.py")
    output = Path(run.args.output_dir)
    assert report is not None and check(output / "compressed") == report
    assert report.failed_formats.keys() == {"broken"}
    assert "computes something else than the checkpoint" in report.failed_formats["broken"]
    assert report.formats.keys() == {"whole"} and report.formats["whole"].scores
    assert "`broken` could not be written" in caplog.text and f"`hf-compress finish {output}`" in caplog.text


@pytest.mark.slow
def test_finish_tries_a_failed_format_again(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "broken", read=read_something_else)
    finish(run, formats=["broken"])
    output = Path(run.args.output_dir)
    again = CliRunner().invoke(app, ["finish", str(output)])
    assert again.exit_code == 1
    assert "Could not write the format broken" in again.stdout and "hf-compress finish" in again.stderr
    assert Report.load(output / "compressed").failed_formats.keys() == {"broken"}
    register(monkeypatch, "broken")
    mended = CliRunner().invoke(app, ["finish", str(output)])
    assert mended.exit_code == 0 and "Wrote the format broken" in mended.stdout
    report = check(output / "compressed")
    assert not report.failed_formats and report.formats["broken"].scores == {}, "scores need the run's script"
    assert not (output / UNFINISHED).exists()
    assert "Nothing is left to do" in CliRunner().invoke(app, ["finish", str(output)]).stdout


def test_a_runtime_that_fails_while_scoring_is_recorded(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.config, self.calls = model, model.config, 0

        def forward(self, **inputs: Any) -> Any:
            self.calls += 1
            if inputs.get("labels") is not None:  # The trainer's evaluation; parity is checked without labels.
                raise RuntimeError("out of memory")
            return self.model(**inputs)

    register(monkeypatch, "broken", read=lambda path, reference: Failing(made_up_formats.read(path, reference)))
    report = finish(run, formats=["broken"])
    assert report is not None and report.failed_formats == {"broken": "out of memory (RuntimeError)"}
    assert not (Path(run.args.output_dir) / "compressed" / "broken").exists()


@pytest.mark.slow
def test_finish_scores_a_format_where_rows_are_known(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/verify` tests the scoring itself, which needs rows and preprocessing in the report."""
    register(monkeypatch, "broken", write=raising(RuntimeError("no kernel")))
    finish(run, formats=["broken"])
    register(monkeypatch, "broken")
    scored = SimpleNamespace(name="16 rows", scores={"loss": 0.5})
    monkeypatch.setattr("hf_compress.launch.completion.score_folder", lambda *_, **__: scored)
    said = CliRunner().invoke(app, ["finish", run.args.output_dir])
    assert said.exit_code == 0 and "Scored the format broken on 16 rows" in said.stdout
    assert check(Path(run.args.output_dir) / "compressed").formats["broken"].scores == {"loss": 0.5}


@pytest.mark.slow
def test_a_bug_in_a_format_is_no_failure_of_it(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody declared keeps its traceback, and the result is in place nevertheless."""
    register(monkeypatch, "broken", write=raising(OddError("nobody declared it")))
    with pytest.raises(OddError):
        finish(run, formats=["broken"])
    output = Path(run.args.output_dir)
    assert check(output / "compressed").failed_formats == {}
    release(output)
    register(monkeypatch, "broken")
    assert CliRunner().invoke(app, ["finish", str(output)]).exit_code == 0
    assert check(output / "compressed").formats.keys() == {"broken"}


def test_without_a_report_a_failed_format_is_still_tried(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "eval_dataset", None)
    register(monkeypatch, "broken", write=raising(RuntimeError("no kernel")))
    assert finish(run, formats=["broken"]) is None
    output = Path(run.args.output_dir)
    assert (output / "compressed" / "model.safetensors").is_file()
    register(monkeypatch, "broken")
    assert CliRunner().invoke(app, ["finish", str(output)]).exit_code == 0
    assert (output / "compressed" / "broken" / "weights.pt").is_file() and not (output / UNFINISHED).exists()


MOMENTS = {
    "while it is written": {"write": lambda folder, path: os.kill(os.getpid(), signal.SIGKILL)},
    "while it is read": {"read": lambda path, reference: os.kill(os.getpid(), signal.SIGKILL)},
}


def _finish_killed(folder: str, moment: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        register(patch, "broken", **MOMENTS[moment])
        finish(trained(folder, [PRUNE], max_steps=4), formats=["broken"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_during_a_format_leaves_the_result(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_a_process(_finish_killed, str(tmp_path / "out"), moment) == -signal.SIGKILL
    register(monkeypatch, "broken")
    assert not check(tmp_path / "out" / "compressed").formats
    assert CliRunner().invoke(app, ["finish", str(tmp_path / "out")]).exit_code == 0
    assert check(tmp_path / "out" / "compressed").formats.keys() == {"broken"}
    assert not (tmp_path / "out" / UNFINISHED).exists()


def _finish_together(folder: str, failing: str) -> None:
    """Finish on two processes with a format that fails on one of them only."""

    def read(path: Path, reference: PreTrainedModel) -> nn.Module:
        model = made_up_formats.read(path, reference)
        rank, forward = torch.distributed.get_rank(), model.forward

        def fail(**inputs: Any) -> Any:
            if inputs.get("labels") is not None and rank == 1:
                raise RuntimeError("only here")
            return forward(**inputs)

        if failing == "reader" and rank == 1:
            raise RuntimeError("only here")
        if failing == "runtime":
            model.forward = fail  # type: ignore[method-assign]
        return model

    with pytest.MonkeyPatch.context() as patch:
        write = raising(RuntimeError("only here")) if failing == "writer" else made_up_formats.write
        register(patch, "broken", read=read, write=write)
        register(patch, "whole")
        report = finish(trained(folder, [PRUNE], max_steps=4), formats=["broken", "whole"])
    assert report is not None and report.failed_formats == {"broken": "only here (RuntimeError)"}
    assert report.formats.keys() == {"whole"}


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["writer", "reader", "runtime"])
def test_processes_agree_on_a_format_that_fails_on_one(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_two_processes(_finish_together, str(tmp_path / "out"), failing) == [0, 0]
    for name in ("broken", "whole"):
        register(monkeypatch, name)
    assert check(tmp_path / "out" / "compressed").formats.keys() == {"whole"}
