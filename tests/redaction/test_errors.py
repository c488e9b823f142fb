"""What we print and keep about a failure holds no secret."""

import sys
from pathlib import Path

import pytest
import typer

from hf_compress.launch import launcher
from hf_compress_cli.errors import clean_errors

TOKEN = "hf_" + "aB3" * 8
FAILURES = {
    "an exception": "raise RuntimeError(f'401 for https://hub/x?token={token}')",
    "an exit": "raise SystemExit(f'refused: {token}')",
    "a cause": "try:\n    raise KeyError(token)\nexcept KeyError as error:\n    raise ValueError('no') from error",
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("argument", [f"--hub_token={TOKEN}", "--hub_token=planted by hand"])
def test_a_failing_script_prints_no_token(
    failure: str, argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"import sys\ntoken = sys.argv[-1].partition('=')[2]\n{failure}\n", "utf-8")
    monkeypatch.setattr(sys, "argv", ["hf-compress", "run", str(script), argument])
    assert launcher.main([str(script), "--prune_sparsity", "0.5", argument]) == 1
    shown = capsys.readouterr().err
    assert "REDACTED" in shown
    assert argument.partition("=")[2] not in shown
    assert ("train.py" in shown) == (failure != FAILURES["an exit"])


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError])
def test_a_failing_command_prints_no_token(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), clean_errors():
        raise kind(f"401 for https://hub/x?token={TOKEN}")
    shown = capsys.readouterr().err
    assert shown == "Error: 401 for https://hub/x?token=REDACTED\n"
