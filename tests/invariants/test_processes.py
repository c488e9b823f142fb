"""Two processes do what one does: the same masks and ranges, losses within 1e-5, the teacher not wrapped.

The launcher itself (`torchrun`) is driven by tests/test_run_glue.py; `accelerate launch --cpu` starts one process only
unless there is MPI.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerState

from hf_compress.layers.lora import current_weight
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable
from tests.invariants.harness import KD, METHODS, PRUNE, QUANT, adapted, logged, make, rows, same
from tests.tiny import NO_DROPOUT, bert

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A run whose steps take 16 rows, on one process or on two.

    Args:
        methods: the methods in use.
        count: the rows. In the last step of an epoch the processes have 8 and 8 rows (of 64), 8 and 5 (of 61), or 4
            and none (of 52).
        dtype: of student and teacher.
        loader: accelerate's settings on two processes.
        size: the batch size given on two processes.
        fits: the largest micro-batch that does not run out of memory.
        streams: whether the rows are streamed.
        resumes: whether the run is resumed in the middle of an epoch.
    """

    methods: Sequence[str] = ()
    count: int = 61
    dtype: torch.dtype = torch.float64
    loader: dict[str, bool] = field(default_factory=dict)
    size: int = 8
    fits: int = 16
    streams: bool = False
    resumes: bool = False


CASES: dict[str, Case] = {
    "dense": Case(dtype=torch.float32),
    "taught and pruned": Case((KD, PRUNE), dtype=torch.float32),
    # In float32, another order of summation may move a value to the next grid point.
    "quantized": Case((QUANT,)),
    "all": Case(METHODS, 64),
    "all, uneven": Case(METHODS),
    "all, one left without rows": Case(METHODS, 52),
    "all, lora": Case(METHODS),
    "dispatched": Case((KD,), loader={"dispatch_batches": True}),
    "dispatched, one left without rows": Case((KD,), 49, loader={"dispatch_batches": True}),
    "split": Case((KD,), loader={"split_batches": True}, size=16),
    "split and dispatched": Case((KD,), loader={"split_batches": True, "dispatch_batches": True}, size=16),
    "found": Case((KD,), size=9, fits=8),
    "streamed": Case((KD,), streams=True),
    "resumed": Case((KD,), resumes=True),
}


def outcome(name: str, folder: Path, together: bool = False) -> dict[str, Any]:
    """Return what the run leaves on this process, which is one of two if `together`."""
    case = CASES[name]
    model = bert(**NO_DROPOUT).to(case.dtype)
    data: Any = rows(case.count)
    settings: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 1e-3}
    if together:
        settings |= {"per_device_train_batch_size": case.size, "accelerator_config": case.loader}
        settings["auto_find_batch_size"] = case.fits < case.size
    if case.streams:
        listed = [{name: value.tolist() for name, value in row.items()} for row in data]
        data = Dataset.from_list(listed).to_iterable_dataset().with_format("torch")
    if case.resumes:
        settings |= {"save_strategy": "steps", "save_steps": 2}

    trained = make(
        folder / f"{name}-{together}",
        case.methods,
        model=adapted(model) if "lora" in name else model,
        teacher=bert(seed=1, **NO_DROPOUT).to(case.dtype),
        data=data,
        callbacks=[Memory(case.fits)] if together else [],
        **settings,
    )
    trained.train()
    if case.resumes:
        checkpoint = next((folder / f"{name}-{together}").glob("checkpoint-6"))
        trained.train(resume_from_checkpoint=str(checkpoint))
    losses = logged(trained, "loss", "grad_norm", *(["distill_loss", "label_loss"] if KD in case.methods else []))
    return {
        "eval_loss": trained.evaluate(rows(16))["eval_loss"],
        "processes": trained.accelerator.num_processes,
        "wrapped": isinstance(trained.model_wrapped, DistributedDataParallel),
        "teacher wrapped": isinstance(getattr(trained, "teacher", None), DistributedDataParallel),
        "weights": dict(trained.model.state_dict()),
        "masks": {target.name: current_weight(target.module) != 0 for target in prunable(trained.model)},
        "ranges": {
            name: layer.input_range for name, layer in compressed_layers(trained.model).items() if layer.has_range
        },
        "losses": losses,
    }


class Memory(TrainerCallback):
    """Lets the model run out of memory in training on more than `rows` rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        def check(module: Any, args: Any, kwargs: Any) -> None:
            if module.training and len(kwargs["input_ids"]) > self.rows:
                raise RuntimeError("CUDA out of memory.")

        model.register_forward_pre_hook(check, with_kwargs=True)


class Astray(TrainerCallback):
    """Changes a weight on one process only."""

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, model: Any, **__: Any) -> None:
        if state.global_step == 3 and args.process_index == 1:
            weight = model.bert.pooler.dense.weight.data
            weight.copy_(weight.flip(0))


def work(folder: Path) -> None:
    """Run all cases in one of two processes, then one that fails."""
    for case in CASES:
        found = outcome(case, folder, together=True)
        torch.save(found, folder / f"{case}-{torch.distributed.get_rank()}.pt")
    said = "nothing"
    try:
        make(folder / "run", (PRUNE,), callbacks=[Astray()]).train()
    except RuntimeError as error:
        said = str(error)
    (folder / f"astray-{torch.distributed.get_rank()}").write_text(said)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(case: str, two: Path, tmp_path: Path) -> None:
    methods = CASES[case].methods
    one = outcome(case, tmp_path)
    first, second = (torch.load(two / f"{case}-{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["processes"], first["wrapped"], first["teacher wrapped"]) == (2, True, False)
    assert same(first, second)
    assert same(first["masks"], one["masks"])
    assert same(first["ranges"], one["ranges"])
    assert bool(one["ranges"]) == (QUANT in methods)
    for ours, theirs in zip(first["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)  # Rounding differences are up to 6e-5.
    if case != "split and dispatched":  # There, Trainer averages the losses of the first process alone.
        assert first["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)


def test_processes_whose_masks_disagree_fail_and_say_so(two: Path) -> None:
    for rank in range(2):
        said = (two / f"astray-{rank}").read_text()
        assert "chosen different weights to prune in 1 of" in said
        assert "bert.pooler.dense" in said
