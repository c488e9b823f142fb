"""Numbers of groups that stay: reached on schedule, chosen once for a speed-up, and the same in a resumed run."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_compress import PruningArguments, PruningCallback, Recipe, SpeedArguments, save_compressed
from hf_compress.callbacks import progress
from hf_compress.models.blocks import find_groups
from hf_compress.prune import CRITERIA, Course, Coverage, LatencyTable, SpeedGoal
from hf_compress.prune.callback import KEPT
from tests.invariants.harness import make, rows, same, trained
from tests.tiny import NO_DROPOUT, bert

COURSES = (
    Course("neurons", count=64, blocks=2, kept=[2, 8, 16, 32, 48, 64], shares=[0.6, 0.62, 0.7, 0.8, 0.9, 1.0]),
    Course("heads", count=2, blocks=2, kept=[1, 2], shares=[0.8, 1.0]),
)
GOAL = SpeedGoal(1.6, LatencyTable("1 x 128 tokens", 0.01, 0.4, COURSES, "int8", "ONNX Runtime", "a CPU"))
KEEP = ["bert.encoder.layer.0=5", "bert.encoder.layer.1.attention=1"]
PATTERN = "neurons+heads"


def found(run: Trainer) -> dict[str, int]:
    """Return how many groups of each block are not zero, counted from the weights."""
    blocks = find_groups(run.model, ["neurons", "heads"])
    return {one.name: int((one.consumer.nonzero(one.consumer.target.weight) > 0).sum()) for one in blocks}


def planned(speedup: float = 1.6, **pruning: Any) -> Recipe:
    options = PruningArguments(prune_pattern=PATTERN, prune_every=2, **pruning)
    return Recipe(pruning=options, speed=SpeedArguments(speedup))


def run_of(folder: Path, seed: int = 0, goal: SpeedGoal = GOAL, **pruning: Any) -> Trainer:
    run = make(folder, model=bert(seed=seed, **NO_DROPOUT), data=rows(), save_strategy="steps", save_steps=3)
    run.callback_handler.callbacks[:0] = (callbacks := planned(**pruning).callbacks(goal)[:-1])
    for callback in callbacks:
        callback.on_init_end(run.args, run.state, run.control, model=run.model)
    return run


def test_blocks_keep_as_many_groups_as_given(tmp_path: Path) -> None:
    plan = Recipe(pruning=PruningArguments(prune_pattern=PATTERN, prune_keep=KEEP, prune_every=2))
    run = trained(tmp_path / "run", plan=plan)
    expected = {"bert.encoder.layer.0.attention": 2, "bert.encoder.layer.0": 5}
    expected |= {"bert.encoder.layer.1.attention": 1, "bert.encoder.layer.1": 64}
    assert found(run) == expected
    save_compressed(run.model, tmp_path / "compressed", plan)
    more = Recipe(pruning=PruningArguments(prune_pattern=PATTERN, prune_keep=["bert.encoder.layer.0=4"]))
    with pytest.raises(ValueError, match=r"asks for `--prune_keep bert\.encoder\.layer\.0=4`"):
        save_compressed(run.model, tmp_path / "other", more)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_chosen_numbers_are_reached_by_every_criterion(criterion: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, prune_criterion=criterion)
    with pytest.warns(UserWarning, match="corrects") if CRITERIA[criterion].corrects else contextlib.nullcontext():
        run.train()
    kept = progress(run.state)[KEPT]
    assert found(run) == kept
    blocks = Coverage.of(run.model, planned().pruning).blocks
    assert GOAL.table.speedup(blocks, kept) >= 1.6
    assert any(kept[block.name] < block.count for block in blocks)


@pytest.mark.parametrize("checkpoint", [3, 9])
@pytest.mark.parametrize("criterion", ["magnitude", "adam"])
def test_a_resumed_run_repeats_the_choice(checkpoint: int, criterion: str, tmp_path: Path) -> None:
    whole = run_of(tmp_path, prune_begin=0.3, prune_criterion=criterion)
    whole.train()
    # On another machine, whose table would give other numbers.
    courses = (COURSES[1],)
    other = SpeedGoal(1.1, LatencyTable("1 x 128 tokens", 0.01, 0.5, courses, "int8", "ONNX Runtime", "another CPU"))
    resumed = run_of(tmp_path, 1, GOAL if checkpoint == 3 else other, prune_begin=0.3, prune_criterion=criterion)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert progress(resumed.state)[KEPT] == progress(whole.state)[KEPT] == found(whole)
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


def test_groups_that_move_no_output_go_first(tmp_path: Path) -> None:
    run = run_of(tmp_path, prune_begin=0.0)
    with torch.no_grad():
        run.model.bert.encoder.layer[1].output.dense.weight.mul_(1e-4)
    run.train()
    kept = progress(run.state)[KEPT]
    assert kept["bert.encoder.layer.1"] < 8 < kept["bert.encoder.layer.0"]


def test_a_speed_up_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs the latency of the model.*Call `compress\(trainer, recipe\)`"):
        planned().callbacks()
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        PruningCallback(PruningArguments())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_keep": ["a=1"], "prune_sparsity": 0.5}, r"`--prune_sparsity` must be 0; got 0\.5\. Leave one"),
        ({"prune_keep": ["a"]}, r"must be items BLOCK=COUNT .* got 'a'\. Give"),
        ({"prune_keep": ["a=0"]}, r"count of at least 1; got 'a=0'\. Give"),
        ({"prune_keep": ["a=" + "9" * 5000]}, r"count of at least 1; got 'a=9{20}'\. Give"),
        ({"prune_keep": ["a=1", "a=2"]}, "names a block twice: a=1 a=2"),
        ({"prune_keep": ["a=1"], "prune_pattern": "2:4"}, "of whole groups: neurons, heads, .*; got '2:4'"),
        ({"prune_keep": "a=1"}, "must be a list of texts"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningArguments(**{"prune_pattern": PATTERN} | options)


@pytest.mark.parametrize("item", ["bert.encoder.layer.7=5", "bert.encoder.layer.0=65"])
def test_blocks_that_the_model_lacks_are_refused(item: str, tmp_path: Path) -> None:
    plan = Recipe(pruning=PruningArguments(prune_pattern=PATTERN, prune_keep=[item]))
    with pytest.raises(ValueError, match=r"must name blocks of the model.*bert\.encoder\.layer\.0\.attention=2"):
        trained(tmp_path, plan=plan)
