"""Criteria that need gradients, optimizer state or memory: the same masks however the rows of a step are divided."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from hf_compress import PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.models.targets import prunable
from hf_compress.prune import CRITERIA
from tests.invariants.harness import KD, fsdp, make, persuade, pruned, same
from tests.tiny import bert

# Corrections of so small a model take no time.
pytestmark = pytest.mark.filterwarnings("ignore:.*corrects the weights")
DEEP = [name for name, criterion in CRITERIA.items() if criterion.has_state]
WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": fsdp(state_dict_type="SHARDED_STATE_DICT")}


def outcome(criterion: str, folder: Path, resumes: bool = False, **settings: Any) -> dict[str, Any]:
    """Return the masks and weights that a run with `criterion` leaves; resumed from step 13 if asked."""
    scope = "layer" if CRITERIA[criterion].corrects else "global"
    pruning = PruningArguments(prune_sparsity=0.6, prune_criterion=criterion, prune_every=5, prune_scope=scope)
    return pruned(pruning, folder, resumes, **settings)


@pytest.fixture(scope="module", params=DEEP)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A criterion, and what one process leaves with it."""
    return request.param, outcome(request.param, tmp_path_factory.mktemp("one"), per_device_train_batch_size=16)


def test_accumulated_batches_have_the_masks_of_one(one: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    criterion, whole = one
    parts = outcome(criterion, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert same(parts["masks"], whole["masks"])
    zeros = sum(int((~mask).sum()) for mask in whole["masks"].values())
    assert zeros == pytest.approx(0.6 * sum(mask.numel() for mask in whole["masks"].values()), abs=7)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", DEEP)
def test_beside_the_other_methods_runs_resume_and_reload_exactly(criterion: str, tmp_path: Path) -> None:
    plan = Recipe(
        pruning=PruningArguments(prune_sparsity=0.6, prune_criterion=criterion, prune_every=2),
        quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.3),
    )
    whole = make(tmp_path / "run", (KD,), plan=plan, save_strategy="steps", save_steps=5)
    whole.train()
    folder = save_compressed(whole.model, tmp_path / "compressed", plan)
    resumed = make(tmp_path / "run", (KD,), plan=plan, model=bert(seed=2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    ids = torch.arange(16).reshape(2, 8)
    assert torch.equal(type(whole.model).from_pretrained(folder)(ids).logits, whole.model.eval()(ids).logits)
    assert all(int((one.weight == 0).sum()) >= round(0.6 * one.weight.numel()) for one in prunable(whole.model))


def work(folder: Path) -> None:
    """Run all criteria in one of two processes, whole and sharded, each with a resumed run."""
    dist.init_process_group("gloo")
    AcceleratorState.__init__ = persuade(AcceleratorState.__init__)
    for way, settings in WAYS.items():
        for criterion in DEEP:
            for resumes in (False, True):
                found = outcome(criterion, folder / f"{way} {criterion}", resumes, **settings)
                torch.save(found, folder / f"{way}-{criterion}-{resumes}-{dist.get_rank()}.pt")
        AcceleratorState._reset_state()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_have_the_masks_of_one(way: str, one: tuple[str, dict[str, Any]], two: Path) -> None:
    criterion, whole = one
    for rank in range(2):
        found = torch.load(two / f"{way}-{criterion}-False-{rank}.pt", weights_only=True)
        assert (found["sharded"], found["processes"]) == (way == "fsdp", 2)
        assert same(found["masks"], whole["masks"])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("criterion", DEEP)
def test_two_processes_resume_to_the_same_bits(way: str, criterion: str, two: Path) -> None:
    for rank in range(2):
        names = [f"{way}-{criterion}-{resumes}-{rank}.pt" for resumes in (False, True)]
        uninterrupted, resumed = (torch.load(two / name, weights_only=True) for name in names)
        assert same(uninterrupted["weights"], resumed["weights"])
