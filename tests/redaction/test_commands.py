"""Secrets and the author's absolute paths are in no file that others read."""

import shlex
from pathlib import Path

import pytest

from hf_compress import DistillationArguments, Recipe
from hf_compress.redaction import redact_arguments, redact_command

TOKEN = "hf_" + "aB3" * 8


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
        (["--model_args", '{"hub":{"token":"x1"},"n":2}'], ["--model_args", '{"hub": {"token": "REDACTED"}, "n": 2}']),
        (["--model_args", '{"text_key":"a"}'], ["--model_args", '{"text_key":"a"}']),
        (["--hubToken", "x 1"], ["--hubToken", "REDACTED"]),
        (["--hub-token=x=1;2"], ["--hub-token=REDACTED"]),
        (["HF_TOKEN=x;1", "python", "train.py"], ["HF_TOKEN=REDACTED", "python", "train.py"]),
        (["model.api_key=x1", "seed=2"], ["model.api_key=REDACTED", "seed=2"]),
        (["-H", "Authorization: Bearer x1"], ["-H", "Authorization: REDACTED"]),
        (["--token", "x1", "out/compressed", "me/x"], ["--token", "REDACTED", "out/compressed", "me/x"]),
        (["--api_keys", "x1", "x2", "--seed", "3"], ["--api_keys", "REDACTED", "REDACTED", "--seed", "3"]),
        (["--use_auth_token", "True"], ["--use_auth_token", "True"]),
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


def test_absolute_paths_become_relative_or_their_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, other = tmp_path / "work", tmp_path / "other" / "teacher"
    work.mkdir()
    monkeypatch.chdir(work)
    given = ["train.py", "--teacher", str(other), f"--output_dir={work}/runs/x", f'{{"a": "{other}"}}', "bert/base"]
    expected = ["train.py", "--teacher", "teacher", "--output_dir=runs/x", '{"a": "teacher"}', "bert/base"]
    assert redact_arguments(given) == expected
    assert redact_command(shlex.join(given)) == shlex.join(expected)
    assert redact_arguments(given, keep_paths=True) == given


def test_a_shared_recipe_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    place = tmp_path / "me"
    recipe = Recipe(
        DistillationArguments(
            str(place / "teacher"), distill_cache=str(place / "cache"), distill_extra=[f"{place}/texts:test"]
        )
    )
    shared = recipe.shareable()
    assert shared.distillation.distill_extra == ["texts:test"]
    assert (shared.distillation.distill_teacher, shared.distillation.distill_cache) == ("teacher", "cache")
    assert recipe.distillation.distill_teacher == str(tmp_path / "me" / "teacher")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("HF_TOKEN=x1 python train.py && echo done", "HF_TOKEN=REDACTED python train.py '&&' echo done"),
        ("python train.py && echo done", "python train.py && echo done"),
        (r"python C:\Users\alice\train.py --seed 1", "python train.py --seed 1"),
        ("python '/home/alice b/train.py'", "python train.py"),
        ("python train.py --note 'open", "python train.py --note 'open"),
        ("python train.py --token=x1 'open", "python train.py --token=REDACTED 'open"),
    ],
)
def test_a_whole_command_is_redacted(given: str, expected: str) -> None:
    assert redact_command(given) == expected
