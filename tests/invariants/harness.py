"""One tiny training run with any subset of the methods, in this process or in new ones."""

import itertools
import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_compress import DistillationTrainer, PruningArguments, QuantizationArguments, Recipe
from hf_compress.models.sharding import gathered
from hf_compress.prune.coverage import pruned_layers
from tests.tiny import NO_DROPOUT, VOCABULARY, bert

KD, PRUNE, QUANT = METHODS = ("kd", "mp60", "int8")
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(METHODS, size)]
NAMED = ["+".join(subset) or "dense" for subset in SUBSETS]  # As `Recipe.name` says.

SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
# A fork server imports the libraries once for all processes; importing takes longer than training.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["hf_compress", "transformers.models.bert.modeling_bert"])


def adapted(base: PreTrainedModel) -> PeftModel:
    """Add a LoRA adapter with fixed weights to the queries and values of `base`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def rows(count: int = 64) -> list[dict[str, Tensor]]:
    """Return rows of 8 tokens, padded on the right; the label is 1 if the first token is in the upper half."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (count, 8), generator=draw)
    lengths = torch.randint(3, 9, (count, 1), generator=draw)
    mask = (torch.arange(8) < lengths).long()
    return [
        {"input_ids": row * keep, "attention_mask": keep, "labels": (row[0] > VOCABULARY // 2 + 2).long()}
        for row, keep in zip(ids, mask, strict=True)
    ]


def recipe(methods: Sequence[str]) -> Recipe:
    """Return the recipe of `methods`, without the teacher, which the trainer gets as a model."""
    return Recipe(
        pruning=PruningArguments(**{"prune_sparsity": 0.6, "prune_every": 2} if PRUNE in methods else {}),
        quantization=QuantizationArguments(**{"quant_scheme": "int8", "quant_begin": 0.3} if QUANT in methods else {}),
    )


def make(
    folder: Path | str,
    methods: Sequence[str] = (),
    *,
    model: PreTrainedModel | None = None,
    trainer_class: type[Trainer] = DistillationTrainer,
    callbacks: Sequence[TrainerCallback] = (),
    data: Any = None,
    teacher: PreTrainedModel | None = None,
    plan: Recipe | None = None,
    build: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """Build a Trainer with `methods`, or with the recipe `plan`; `settings` are arguments, `build` goes to its class.

    Trainer seeds when it is built, so build and train one run before the next (`trained`).
    """
    more = dict(build or {})
    if KD in methods:
        more["teacher"] = bert(seed=1) if teacher is None else teacher
    if "model_init" not in more:
        more["model"] = bert() if model is None else model
    data = rows() if data is None else data
    return trainer_class(
        args=TrainingArguments(output_dir=str(folder), **SETTINGS | settings),
        train_dataset=data,
        eval_dataset=data[:16] if hasattr(data, "__len__") else rows(16),
        callbacks=[*callbacks, *(plan or recipe(methods)).callbacks()],
        **more,
    )


def trained(*arguments: Any, **named: Any) -> Trainer:
    """Build a Trainer with `make`, and train."""
    run = make(*arguments, **named)
    run.train()
    return run


def pruned(pruning: PruningArguments, folder: Path, resumes: bool = False, **settings: Any) -> dict[str, Any]:
    """Return the masks and weights that a run leaves, whose steps take 16 rows; resumed from step 13 if asked."""
    run = make(
        folder,
        # In float32, another order of summation would change scores that are nearly equal.
        model=bert(seed=int(resumes), **NO_DROPOUT).double(),
        data=rows(54),  # The last step of an epoch has 6 rows.
        plan=Recipe(pruning=pruning),
        **{"max_steps": 24, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 13} | settings,
    )
    run.train(resume_from_checkpoint=str(folder / "checkpoint-13") if resumes else None)
    weights = {target.name: gathered(target.weight).detach() for target in pruned_layers(run.model, pruning)}
    return {
        "sharded": isinstance(run.model, FSDPModule),
        "processes": run.accelerator.num_processes,
        "weights": weights,
        "masks": {name: weight != 0 for name, weight in weights.items()},
    }


def logged(trainer: Trainer, *names: str) -> list[list[float]]:
    """Return what training logged under `names`, one list per step."""
    return [[line[name] for name in names] for line in trainer.state.log_history if "loss" in line]


def same(first: Any, second: Any) -> bool:
    """Return whether nested mappings and lists are equal, tensors to the last bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second) or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def in_a_process(function: Callable[..., None], *arguments: Any) -> int | None:
    """Call `function` in a new process; return its exit code, -9 if it was killed."""
    process = _PROCESSES.Process(target=_alone, args=(function, *arguments))
    process.start()
    process.join()
    return process.exitcode


def in_two_processes(function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `function` in two processes that train together, as with `torchrun`; return their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [_PROCESSES.Process(target=_together, args=(rank, port, function, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def persuade(accelerate: Callable[..., None]) -> Callable[..., None]:
    """Make accelerate enter FSDP on a CPU, too; by default it does so on accelerators only."""

    def enter(self: AcceleratorState, *arguments: Any, **named: Any) -> None:
        accelerate(self, *arguments, **named)
        if named.get("fsdp_plugin") is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, named["fsdp_plugin"]

    return enter


def fsdp(**more: Any) -> dict[str, Any]:
    layers = ["BertLayer"]  # By default accelerate 1.15 shards the word embeddings of a BERT twice, and fails.
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": layers} | more}


def _together(rank: int, port: int, function: Callable[..., None], *arguments: Any) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="localhost")
    _alone(function, *arguments)


def _alone(function: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def checkpoints(folder: Path) -> Iterator[str]:
    """Return the names of the training checkpoints in `folder`."""
    return (path.name for path in sorted(folder.glob("checkpoint-*")))
