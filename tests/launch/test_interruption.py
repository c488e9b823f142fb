"""A run under the launcher that is killed, or fails, while it finishes its result: the same command goes on."""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from hf_compress import hub
from hf_compress.launch import launcher
from hf_compress.launch.result import UNFINISHED
from hf_compress.report.report import Report
from tests.invariants.harness import in_a_process

SCRIPT = str(Path(__file__).parents[1] / "launched" / "train_text.py")
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


@pytest.fixture
def command(
    tiny_bert: BertForSequenceClassification, tiny_tokenizer: PreTrainedTokenizerFast, tiny_sentences: Dataset,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[str]]:  # fmt: skip
    """A function that gives a command line, with the output folder `tmp_path`/NAME."""
    tiny_bert.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    tiny_sentences.to_csv(tmp_path / "rows.csv")
    monkeypatch.chdir(Path(SCRIPT).parent)  # The metric of the script is there.

    def make(name: str) -> list[str]:
        files = f"--train_file {tmp_path}/rows.csv --validation_file {tmp_path}/rows.csv"
        small = "--do_train --do_eval --max_steps 6 --save_steps 6 --per_device_train_batch_size 8 --use_cpu"
        ours = "--prune_sparsity 0.5 --prune_every 1 --quant_scheme int8"
        line = f"--model_name_or_path {tmp_path}/model {files} --output_dir {tmp_path / name} {small} {ours}"
        return [SCRIPT, *line.split(), "--disable_tqdm", "true", "--report_to", "none"]

    return make


def launched(argv: list[str], moment: int) -> None:
    """Run the launcher in this process, and kill the process the `moment`-th time it touches the unfinished result."""
    sys.argv = ["hf-compress", "run", *argv]
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in EVENTS and UNFINISHED in str(args[0]):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    status = launcher.main(argv)
    # The number of moments of a run that was not killed is told by its exit code.
    os._exit(min(count, 250) if moment < 0 else status)


@pytest.mark.slow
@pytest.mark.parametrize(
    "share",
    [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97],
)
def test_a_run_killed_in_finish_goes_on_where_it_was(
    share: float, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    moments = in_a_process(launched, command("whole"), -1)
    assert moments is not None and moments > 20
    assert in_a_process(launched, command("killed"), max(1, round(share * moments))) == -signal.SIGKILL
    folder = tmp_path / "killed" / "compressed"
    assert not folder.exists() or hub.check(folder)
    if not folder.exists():
        assert in_a_process(launched, [*command("killed"), "--resume_from_checkpoint", "last"], 0) == 0
    whole = tmp_path / "whole" / "compressed"
    assert hub.check(folder).compressed == Report.load(whole).compressed
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_failed_evaluation_can_be_repeated(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def failing(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug in the script's metrics")

    with monkeypatch.context() as patch:
        patch.setattr("hf_compress.launch.reporting.measure", failing)
        with pytest.raises(KeyError):
            launcher.main(command("out"))
    said = capsys.readouterr().err
    assert "Training is over, but its result could not be finished. Run it again: `" in said
    assert "--resume_from_checkpoint last`. It does not train again." in said
    assert not (tmp_path / "out" / "compressed").exists()
    assert launcher.main([*command("out"), "--resume_from_checkpoint", "last"]) == 0
    hub.check(tmp_path / "out" / "compressed")
    assert not (tmp_path / "out" / UNFINISHED).exists()


# Where the disk is full: at the first file, among the weights, behind them. One is enough before a push.
@pytest.mark.parametrize("limit", [3000, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (100, 20_000))])
def test_a_full_disk_is_one_message_and_can_be_repeated(
    limit: int, command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """No file may have more bytes than `limit`, from the end of training on."""
    finish, kept = launcher.finish, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*args: Any, **kwargs: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, kept[1]))
        try:
            return finish(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, kept)

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "finish", limited)
        assert launcher.main(command("out")) == 1
    assert "File too large" in capsys.readouterr().err
    assert not (tmp_path / "out" / "compressed").exists()
    assert launcher.main([*command("out"), "--resume_from_checkpoint", "last"]) == 0
    hub.check(tmp_path / "out" / "compressed")


def test_last_starts_anew_without_a_checkpoint(command: Callable[..., list[str]], tmp_path: Path) -> None:
    assert launcher.main([*command("out"), "--resume_from_checkpoint", "last"]) == 0
    hub.check(tmp_path / "out" / "compressed")


@pytest.mark.parametrize(
    ("handed", "given", "resumed"),
    [
        ("last", None, True),
        (True, None, True),
        (None, "last", True),
        (None, "true", True),
        (None, "elsewhere", None),
        ("elsewhere", "last", "elsewhere"),
        (False, "last", False),
        (None, None, None),
    ],
)
def test_last_means_the_last_complete_checkpoint(
    handed: str | bool | None, given: str | None, resumed: str | bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "last_complete_checkpoint", lambda folder: f"{folder}/checkpoint-6")
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir="out", resume_from_checkpoint=given))
    assert launcher._checkpoint(trainer, handed) == ("out/checkpoint-6" if resumed is True else resumed)  # type: ignore[arg-type]
