"""What the invariants share: one tiny run with any of the methods, in this process or in others."""

import itertools
import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_compress import DistillationTrainer, PruningArguments, QuantizationArguments, Recipe
from tests.tiny import VOCABULARY, bert

KD, PRUNE, QUANT = METHODS = ("kd", "mp60", "int8")
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(METHODS, size)]
NAMED = ["+".join(subset) or "dense" for subset in SUBSETS]  # As a Recipe is.

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
# Where one starts with several processes, importing the libraries takes longer than all the training: these share it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["hf_compress", "transformers.models.bert.modeling_bert"])


def adapted(base: PreTrainedModel) -> PeftModel:
    """`base` with a LoRA adapter on its queries and values, with the same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def rows(count: int = 64) -> list[dict[str, Tensor]]:
    """Rows of eight tokens, the later ones padded; the label says whether the first token is in the upper half."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (count, 8), generator=draw)
    lengths = torch.randint(3, 9, (count, 1), generator=draw)
    mask = (torch.arange(8) < lengths).long()
    return [
        {"input_ids": row * keep, "attention_mask": keep, "labels": (row[0] > VOCABULARY // 2 + 2).long()}
        for row, keep in zip(ids, mask, strict=True)
    ]


def recipe(methods: Sequence[str]) -> Recipe:
    """Pruning and quantization as `methods` say; a teacher is given to the trainer as a model."""
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
    """A Trainer with `methods`, or by `plan`; `settings` change its arguments, `build` is passed on to its class.

    It seeds: what is to be compared is built and trained in turn (`trained`).
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
        eval_dataset=data[:16],
        callbacks=[*callbacks, *(plan or recipe(methods)).callbacks()],
        **more,
    )


def trained(*arguments: Any, **named: Any) -> Trainer:
    """A Trainer as `make` makes it, after its training."""
    run = make(*arguments, **named)
    run.train()
    return run


def logged(trainer: Trainer, *names: str) -> list[list[float]]:
    """What training logged under `names`, step by step."""
    return [[line[name] for name in names] for line in trainer.state.log_history if "loss" in line]


def same(first: Any, second: Any) -> bool:
    """Whether nested mappings and lists hold the same keys and values, tensors to the last bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second) or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def in_a_process(function: Callable[..., None], *arguments: Any) -> int | None:
    """The exit code of a process of its own in which `function` was called; -9 if it was killed."""
    process = _PROCESSES.Process(target=_alone, args=(function, *arguments))
    process.start()
    process.join()
    return process.exitcode


def in_two_processes(function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """The exit codes of two processes that train together, as `torchrun` would start them, each calling `function`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [_PROCESSES.Process(target=_together, args=(rank, port, function, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _together(rank: int, port: int, function: Callable[..., None], *arguments: Any) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="localhost")
    _alone(function, *arguments)


def _alone(function: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def checkpoints(folder: Path) -> Iterator[str]:
    """The names of the training checkpoints in `folder`."""
    return (path.name for path in sorted(folder.glob("checkpoint-*")))
