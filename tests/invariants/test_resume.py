"""A run that is killed at any moment and resumed ends with the bits of the uninterrupted one."""

import dataclasses
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState

from hf_compress import (
    DistillationArguments,
    PruningArguments,
    QuantizationArguments,
    Recipe,
    RecipeCallback,
    save_compressed,
)
from hf_compress.checkpoint.resume import is_complete, last_complete_checkpoint
from tests.invariants.harness import METHODS, NAMED, PRUNE, QUANT, SUBSETS, in_a_process, make, recipe, same, trained
from tests.tiny import bert

STEPS = 24
KILLED = -signal.SIGKILL
SCRIPT = Path(__file__).parents[2] / "examples" / "run_glue.py"

# --- dying -----------------------------------------------------------------------------------------------------------

# Moments to kill a process: events of the training, and files of which half is written.
EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_save")
WRITING = {
    "model.safetensors": (Trainer, "_save"),
    "optimizer.pt": (Trainer, "_save_optimizer_and_scheduler"),
    "rng_state.pth": (Trainer, "_save_rng_state"),
    "trainer_state.json": (TrainerState, "save_to_json"),
}
MOMENTS = (*EVENTS, *WRITING)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(moment: str, step: int, folder: Path) -> list[TrainerCallback]:
    """Return callbacks that kill this process at the first such moment from `step` on."""
    if moment in EVENTS:

        def kill(self: Any, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
            if state.global_step >= step:
                die()

        return [type("Killer", (TrainerCallback,), {moment: kill})()]
    owner, name = WRITING[moment]
    method = getattr(owner, name)

    def write_half(self: Any, *arguments: Any, **named: Any) -> None:
        method(self, *arguments, **named)
        state = self if isinstance(self, TrainerState) else self.state
        if state.global_step >= step:
            file = folder / f"checkpoint-{state.global_step}" / moment
            os.truncate(file, file.stat().st_size // 2)
            die()

    setattr(owner, name, write_half)
    return []


def train(folder: Path, methods: Sequence[str], death: tuple[str, int] | None, settings: dict[str, Any]) -> None:
    """Run in one process: resume where the process before was killed, and die at `death`."""
    killers = die_in(*death, folder) if death else []
    run = make(
        folder,
        methods,
        callbacks=killers,
        **{"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2} | settings,
    )
    run.train(resume_from_checkpoint=last_complete_checkpoint(folder))


def result(folder: Path, step: int = STEPS) -> dict[str, Any]:
    """Return weights, ranges, optimizer, scheduler, random state and history of the last checkpoint."""
    checkpoint = folder / f"checkpoint-{step}"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    for line in state["log_history"]:
        for name in [name for name in line if name.endswith(("_runtime", "_per_second"))]:
            del line[name]
    return {
        "weights": load_file(checkpoint / "model.safetensors"),
        "optimizer": torch.load(checkpoint / "optimizer.pt", weights_only=True),
        "schedule": torch.load(checkpoint / "scheduler.pt", weights_only=True),
        "random": torch.load(checkpoint / "rng_state.pth", weights_only=False)["cpu"],
        "history": state["log_history"],
    }


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("methods", SUBSETS, ids=NAMED)
def test_a_run_killed_ten_times_ends_with_uninterrupted_bits(methods: Sequence[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(train, whole, methods, None, {"max_steps": STEPS}) == 0
    draw = random.Random("+".join(methods))
    # Every moment once and one of them twice, in random order.
    moments = draw.sample([*MOMENTS, draw.choice(MOMENTS)], len(MOMENTS) + 1)
    steps = sorted(draw.sample(range(1, STEPS - 1), len(moments)))
    for death in zip(moments, steps, strict=True):
        assert in_a_process(train, killed, methods, death, {"max_steps": STEPS}) == KILLED, death
    assert in_a_process(train, killed, methods, None, {"max_steps": STEPS}) == 0
    assert same(result(killed), result(whole))
    zeros = [
        (weight == 0).float().mean() for name, weight in result(whole)["weights"].items() if "dense.weight" in name
    ]
    assert all(zeros) == (PRUNE in methods), "there was something to lose"
    assert any("input_range" in name for name in result(whole)["weights"]) == (QUANT in methods)


def test_a_run_killed_while_saving_resumes_a_checkpoint_earlier(tmp_path: Path) -> None:
    """The same test in seconds: all methods, killed once."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"max_steps": 6}
    assert in_a_process(train, whole, METHODS, None, settings) == 0
    assert in_a_process(train, killed, METHODS, ("optimizer.pt", 4), settings) == KILLED
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-2")
    assert in_a_process(train, killed, METHODS, None, settings) == 0
    assert same(result(killed, 6), result(whole, 6))


@pytest.mark.parametrize("methods", SUBSETS, ids=NAMED)
def test_a_run_killed_after_its_last_step_takes_no_further_one(methods: Sequence[str], tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 12}  # In the middle of an epoch of 8 steps.
    whole = trained(tmp_path, methods, **settings)
    resumed = make(tmp_path, methods, model=bert(seed=2), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert resumed.state.global_step == 12
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    save_compressed(resumed.model, tmp_path / "compressed", recipe(methods))


@pytest.mark.parametrize("methods", [(PRUNE,), (QUANT,), METHODS], ids="+".join)
def test_schedules_follow_epochs_as_they_follow_steps(methods: Sequence[str], tmp_path: Path) -> None:
    by_steps = trained(tmp_path, methods, max_steps=12)
    by_epochs = trained(tmp_path, methods, max_steps=-1, num_train_epochs=1.5)
    assert by_epochs.state.max_steps == 12
    assert same(dict(by_steps.model.state_dict()), dict(by_epochs.model.state_dict()))


def glue(folder: str, options: list[str], death: tuple[str, int] | None) -> None:
    """Run examples/run_glue.py, and die at `death`."""
    spec = importlib.util.spec_from_file_location("run_glue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["run_glue"] = script
    spec.loader.exec_module(script)
    if death:
        die_in(*death, Path(folder))
    sys.argv = [str(SCRIPT), *options]
    script.main()


@pytest.mark.slow
def test_the_script_goes_on_from_the_last_complete_checkpoint(
    make_bert: Callable[..., Any], tiny_tokenizer: Any, tiny_sentences: Any, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    make_bert().save_pretrained(start)
    tiny_tokenizer.save_pretrained(start)
    tiny_sentences.to_csv(tmp_path / "rows.csv")
    files = []
    for name, deaths in (("whole", []), ("killed", [("model.safetensors", 4), ("trainer_state.json", 8)])):
        options = (
            f"--model_name_or_path {start} --train_file {tmp_path}/rows.csv --validation_file {tmp_path}/rows.csv"
        )
        options += f" --output_dir {tmp_path / name} --do_train --max_steps 12 --save_steps 2 --use_cpu"
        options += " --per_device_train_batch_size 8 --disable_tqdm true --distill_teacher self --prune_sparsity 0.5"
        options += " --prune_every 2 --quant_scheme int8 --resume_from_checkpoint last"
        for death in (*deaths, None):
            code = in_a_process(glue, str(tmp_path / name), options.split(), death)
            assert code == (KILLED if death else 0)
        files.append((tmp_path / name / "compressed" / "model.safetensors").read_bytes())
    assert files[0] == files[1]


# --- half-written ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with checkpoints of steps 2 and 10; sorted by name, 10 comes first."""
    folder = tmp_path_factory.mktemp("saved")
    trained(folder, save_strategy="steps", save_steps=2, max_steps=2)
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-10")
    return folder


@pytest.fixture
def output(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "output")


def test_the_last_complete_checkpoint_has_the_latest_step(output: Path) -> None:
    (output / "checkpoint-12").write_text("a file")
    (output / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(output) == str(output / "checkpoint-10")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("left", [None, 0.0, 0.5, 0.99])
def test_a_checkpoint_with_a_missing_or_cut_file_is_skipped(
    name: str, left: float | None, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = output / "checkpoint-10" / name
    file.unlink() if left is None else os.truncate(file, int(left * file.stat().st_size))
    assert last_complete_checkpoint(output) == str(output / "checkpoint-2")
    shutil.rmtree(output / "checkpoint-2")
    assert last_complete_checkpoint(output) is None


def test_a_checkpoint_of_the_model_only_is_complete(output: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (output / "checkpoint-10" / name).unlink()
    assert is_complete(output / "checkpoint-10")


def test_a_checkpoint_in_shards_needs_all_of_them(output: Path) -> None:
    checkpoint = output / "checkpoint-10"
    (checkpoint / "model.safetensors").unlink()
    bert().save_pretrained(checkpoint, max_shard_size="10kB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert is_complete(checkpoint)
    shards[1].unlink()
    assert not is_complete(checkpoint)


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


# --- another recipe --------------------------------------------------------------------------------------------------

BEGUN = Recipe(
    DistillationArguments(distill_teacher="self"),
    PruningArguments(prune_sparsity=0.6, prune_every=1),
    QuantizationArguments(quant_scheme="int8"),
)
OTHERS = {
    "sparsity": (
        {"pruning": PruningArguments(prune_sparsity=0.8, prune_every=1)},
        "`--prune_sparsity` is 0.8, but was 0.6",
    ),
    "excluded": (
        {"pruning": PruningArguments(prune_sparsity=0.6, prune_every=1, prune_exclude=["pooler", "query"])},
        "`--prune_exclude` is pooler query, but was not given",
    ),
    "unquantized": ({"quantization": QuantizationArguments()}, "`--quant_scheme` is not given, but was int8"),
    "untaught": ({"distillation": DistillationArguments()}, "`--distill_teacher` is not given, but was self"),
    "dense": (
        {"pruning": PruningArguments(), "quantization": QuantizationArguments()},
        r"`--prune_sparsity` is 0.0, but was 0.6; .*`--quant_scheme` is not given, but was int8",
    ),
}


def resumed(folder: Path, plan: Recipe, **settings: Any) -> Trainer:
    """Run `plan`, resumed from the checkpoint in `folder` if there is one."""
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2} | settings
    run = make(folder, plan=plan, build={"distillation": plan.distillation}, **arguments)
    run.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of `BEGUN` that stopped after step 2."""
    folder = tmp_path_factory.mktemp("begun")
    resumed(folder, BEGUN)
    shutil.rmtree(folder / "checkpoint-4")
    return folder


@pytest.mark.parametrize("case", OTHERS)
def test_resuming_with_other_flags_is_refused_with_both_values(case: str, begun: Path) -> None:
    change, said = OTHERS[case]
    with pytest.raises(ValueError, match=rf"the checkpoint of step 2 .*{said}.*Resume with .* or start again"):
        resumed(begun, dataclasses.replace(BEGUN, **change))
    assert not (begun / "checkpoint-4").exists()


@pytest.mark.parametrize("restoring", [False, True])
def test_resuming_with_the_same_flags_goes_on(restoring: bool, begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "begun")
    run = resumed(folder, BEGUN, restore_callback_states_from_checkpoint=restoring)
    assert run.state.global_step == 4
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert Recipe.from_dict(state["stateful_callbacks"][RecipeCallback.RECORD]) == BEGUN


def test_a_plain_checkpoint_cannot_be_resumed_with_compression(output: Path) -> None:
    file = output / "checkpoint-10" / "trainer_state.json"
    state = json.loads(file.read_text())
    assert Recipe.from_dict(state["stateful_callbacks"].pop(RecipeCallback.RECORD)) == Recipe()
    file.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="the checkpoint of step 2 .*`--prune_sparsity` is 0.6, but was 0.0"):
        resumed(output, Recipe(pruning=PruningArguments(prune_sparsity=0.6, prune_every=1)))
    assert resumed(output, Recipe()).state.global_step == 4
