"""Secrets and the author's absolute paths are in no file that others read."""

import shlex
from pathlib import Path

import pytest

from hf_compress import DistillationArguments, Recipe
from hf_compress.redaction import is_secret, redact_arguments, redact_command, redact_text, shorten_paths

TOKEN = "hf_" + "aB3" * 8


@pytest.mark.parametrize(
    "name", ["--hub_token", "--token", "--push-to-hub-token", "WANDB_API_KEY", "--apiKey", "password", "client.secret"]
)
def test_a_name_of_a_secret_is_recognised(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["--tokenizer_name", "--max_new_tokens", "--pad_token_id", "--key_column", "--monkey", "--keyword"]
)
def test_a_similar_name_is_not_a_secret(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--hub_token", "x1"], ["--hub_token", "REDACTED"]),
        (["--hub_token=x1", "--seed", "3"], ["--hub_token=REDACTED", "--seed", "3"]),
        (["--api-key", "x1", "--lr", "-1e-5"], ["--api-key", "REDACTED", "--lr", "-1e-5"]),
        (["--note", TOKEN], ["--note", "REDACTED"]),
        (["--note", f"see {TOKEN}."], ["--note", "see REDACTED."]),
        (["--data", "s3://me:pw@host/rows"], ["--data", "s3://REDACTED@host/rows"]),
        (["--url", "https://host/rows?token=x1&n=2"], ["--url", "https://host/rows?token=REDACTED&n=2"]),
        (["--model_args", '{"token": "x1", "n": 2}'], ["--model_args", '{"token": "REDACTED", "n": 2}']),
        (["--compress_hub_id", "me/model"], ["--compress_hub_id", "me/model"]),
        (
            ["--prune_exclude", "layer/[0-9]+", "--t", "hf_compress"],
            ["--prune_exclude", "layer/[0-9]+", "--t", "hf_compress"],
        ),
    ],
)
def test_secrets_leave_a_command_line(given: list[str], expected: list[str]) -> None:
    assert redact_arguments(given) == expected
    assert redact_arguments(given, keep_paths=True) == expected


def test_a_secret_of_the_environment_leaves_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redact_text("run 0123456789abcdef now") == "run REDACTED now"


def test_absolute_paths_become_relative_or_their_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, other = tmp_path / "work", tmp_path / "other" / "teacher"
    work.mkdir()
    monkeypatch.chdir(work)
    given = ["train.py", "--teacher", str(other), f"--output_dir={work}/runs/x", f'{{"a": "{other}"}}', "bert/base"]
    expected = ["train.py", "--teacher", "teacher", "--output_dir=runs/x", '{"a": "teacher"}', "bert/base"]
    assert redact_arguments(given) == expected
    assert redact_command(shlex.join(given)) == shlex.join(expected)
    assert redact_arguments(given, keep_paths=True) == given
    assert shorten_paths("https://host/tmp/x") == "https://host/tmp/x"


def test_a_shared_recipe_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    recipe = Recipe(
        DistillationArguments(str(tmp_path / "me" / "teacher"), distill_cache=str(tmp_path / "me" / "cache"))
    )
    shared = recipe.shareable()
    assert (shared.distillation.distill_teacher, shared.distillation.distill_cache) == ("teacher", "cache")
    assert recipe.distillation.distill_teacher == str(tmp_path / "me" / "teacher")
