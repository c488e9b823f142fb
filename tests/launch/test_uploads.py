"""Only the finished folder goes to the Hub, whatever `push_to_hub` of Trainer's arguments and the script ask for."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments

from hf_compress import Recipe, compress, finish
from hf_compress.launch import run as runs
from hf_compress.prune.arguments import PruningArguments
from tests.invariants.harness import SETTINGS, in_two_processes, rows
from tests.tiny import bert

RECIPE = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_every=1))
UPLOADS = ("create_repo", "create_commit", "upload_folder", "upload_file", "super_squash_history")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """What the Hub is asked for after Trainer was built: checks of access, pushes of ours, and any other upload."""
    found: list[tuple[str, str, dict[str, Any]]] = []

    def note(what: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> str:
            found.append((what, str(args[-1]) if args else "", kwargs))
            return "https://hub/commit/1"

        return call

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: setattr(self, "hub_model_id", "me/small"))
    for name in UPLOADS:
        monkeypatch.setattr(HfApi, name, note(name))
    monkeypatch.setattr("hf_compress.launch.run.check_access", note("check"))
    monkeypatch.setattr("hf_compress.launch.result.push", note("push"))
    return found


def trainer(folder: Path, **settings: Any) -> Trainer:
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "push_to_hub": True}
    arguments = TrainingArguments(str(folder), **SETTINGS | changes | settings)
    return Trainer(bert(), arguments, train_dataset=rows(), eval_dataset=rows()[:16])


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_nothing_but_the_finished_folder_goes_up(
    strategy: str, asked: list[tuple[str, str, dict[str, Any]]], tmp_path: Path
) -> None:
    run = trainer(tmp_path / "out", hub_strategy=strategy, hub_model_id="me/small", hub_always_push=True)
    compress(run, RECIPE)
    run.train()
    run.save_model()
    run.push_to_hub()
    assert [what for what, *_ in asked] == ["check"]
    finish(run)
    assert [(what, where) for what, where, _ in asked] == [("check", "me/small"), ("push", "me/small")]


def test_trainer_s_settings_of_the_hub_are_followed(
    asked: list[tuple[str, str, dict[str, Any]]], tmp_path: Path
) -> None:
    settings = {"hub_private_repo": True, "hub_revision": "int8", "hub_token": "hf_of_the_user"}
    run = trainer(tmp_path / "small", **settings)
    compress(run, RECIPE)
    run.train()
    finish(run)
    told = {"private": True, "revision": "int8", "token": "hf_of_the_user"}
    assert asked == [("check", "small", told), ("push", "small", told)], "named as Trainer names it"


def test_a_repository_of_ours_goes_before_trainer_s(
    asked: list[tuple[str, str, dict[str, Any]]], tmp_path: Path
) -> None:
    run = trainer(tmp_path / "out", hub_model_id="me/small")
    compress(run, RECIPE, hub_id="me/other")
    run.train()
    finish(run)
    assert [where for _, where, _ in asked] == ["me/other", "me/other"]
    assert all(told["private"] is None for *_, told in asked), "the owner's default holds"


def test_without_a_push_the_hub_is_not_asked(asked: list[tuple[str, str, dict[str, Any]]], tmp_path: Path) -> None:
    run = trainer(tmp_path / "out", push_to_hub=False)
    compress(run, RECIPE)
    run.train()
    finish(run)
    assert not asked


def test_a_push_that_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    """Tests are offline, as a machine without a network."""
    run = trainer(tmp_path / "out", push_to_hub=False)
    with pytest.raises(ValueError, match="me/small"):
        compress(run, RECIPE, hub_id="me/small")
    with pytest.raises(ValueError, match="not a name"):
        compress(run, RECIPE, hub_id="not a name")


def _refused_together(folder: str) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no right to write")

    runs.check_access = refuse
    with pytest.raises(ValueError, match="no right to write"):
        compress(trainer(Path(folder), push_to_hub=False), RECIPE, hub_id="me/small")


@pytest.mark.slow
def test_every_process_hears_that_a_push_cannot_work(tmp_path: Path) -> None:
    assert in_two_processes(_refused_together, str(tmp_path / "out")) == [0, 0]
