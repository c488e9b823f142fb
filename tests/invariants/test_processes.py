"""Two processes do what one does: the same masks and ranges, losses within 1e-5, the teacher not wrapped.

The launcher itself (`torchrun`) is driven by tests/test_run_glue.py; `accelerate launch --cpu` starts one process only
unless there is MPI.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerState

from hf_compress.layers.lora import current_weight
from hf_compress.layers.rounded import compressed_layers
from hf_compress.models.targets import prunable
from tests.invariants.harness import KD, METHODS, PRUNE, QUANT, adapted, in_two_processes, logged, make, rows, same
from tests.tiny import NO_DROPOUT, bert

# Methods, rows and dtype. A step takes 16 rows in all. In the last step of an epoch the processes have 8 and 8 rows
# (of 64), 8 and 5 (of 61), or 4 and none (of 52).
CASES: dict[str, tuple[Sequence[str], int, torch.dtype]] = {
    "dense": ((), 61, torch.float32),
    "taught and pruned": ((KD, PRUNE), 61, torch.float32),
    # In float32, another order of summation may move a value to the next grid point.
    "quantized": ((QUANT,), 61, torch.float64),
    "all": (METHODS, 64, torch.float64),
    "all, uneven": (METHODS, 61, torch.float64),
    "all, one left without rows": (METHODS, 52, torch.float64),
    "all, lora": (METHODS, 61, torch.float64),
}


def outcome(case: str, size: int, folder: Path) -> dict[str, Any]:
    """Return what the run leaves on this process."""
    methods, count, dtype = CASES[case]
    model = bert(**NO_DROPOUT).to(dtype)
    run = make(
        folder / "run",
        methods,
        model=adapted(model) if "lora" in case else model,
        teacher=bert(seed=1, **NO_DROPOUT).to(dtype),
        data=rows(count),
        per_device_train_batch_size=size,
        learning_rate=1e-3,
    )
    run.train()
    return {
        "eval_loss": run.evaluate()["eval_loss"],
        "processes": run.accelerator.num_processes,
        "wrapped": isinstance(run.model_wrapped, DistributedDataParallel),
        "teacher wrapped": isinstance(getattr(run, "teacher", None), DistributedDataParallel),
        "weights": dict(run.model.state_dict()),
        "masks": {target.name: current_weight(target.module) != 0 for target in prunable(run.model)},
        "ranges": {name: layer.input_range for name, layer in compressed_layers(run.model).items() if layer.has_range},
        "losses": logged(run, "loss", "grad_norm", *(["distill_loss", "label_loss"] if KD in methods else [])),
    }


class Astray(TrainerCallback):
    """Changes a weight on one process only."""

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, model: Any, **__: Any) -> None:
        if state.global_step == 3 and args.process_index == 1:
            weight = model.bert.pooler.dense.weight.data
            weight.copy_(weight.flip(0))


def work(folder: Path) -> None:
    """Run all cases in one of two processes, then one that fails."""
    for case in CASES:
        found = outcome(case, 8, folder)
        torch.save(found, folder / f"{case}-{torch.distributed.get_rank()}.pt")
    said = "nothing"
    try:
        make(folder / "run", (PRUNE,), callbacks=[Astray()]).train()
    except RuntimeError as error:
        said = str(error)
    (folder / f"astray-{torch.distributed.get_rank()}").write_text(said)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes wrote to."""
    folder = tmp_path_factory.mktemp("two")
    assert in_two_processes(work, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(case: str, two: Path, tmp_path: Path) -> None:
    methods, _, _ = CASES[case]
    one = outcome(case, 16, tmp_path)
    first, second = (torch.load(two / f"{case}-{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["processes"], first["wrapped"], first["teacher wrapped"]) == (2, True, False)
    assert same(first, second)
    assert same(first["masks"], one["masks"])
    assert same(first["ranges"], one["ranges"])
    assert bool(one["ranges"]) == (QUANT in methods)
    assert first["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
    for ours, theirs in zip(first["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)  # Rounding differences are up to 6e-5.


def test_processes_whose_masks_disagree_fail_and_say_so(two: Path) -> None:
    for rank in range(2):
        said = (two / f"astray-{rank}").read_text()
        assert "chosen different weights to prune in 1 of" in said
        assert "bert.pooler.dense" in said
