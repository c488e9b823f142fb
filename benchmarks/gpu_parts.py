"""What `gpu.py` measures, one part in a process of its own; this file is not a program for users.

Every result is a line of JSON in the file `--lines`: a cell of `gpu.planned` with `state` (`done`, `cut` by the end of
its time, or `failed`), `why`, and `result`. Ratios are those of `paired_ratio`; memory is in bytes.
"""

import argparse
import copy
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import SPARED, WAYS, planned, shapes
from step_time import QUANTIZATION, WARM_UP, Board, build_trainer, ratios, recipe, train_in_turns
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_compress import CompressionConfig, save_compressed
from hf_compress.layers import eagerly
from hf_compress.report import measure_latency, paired_ratio

VARIANTS = ["plain", "control", "pruning", "int8", "teacher", "cached teacher", "all three"]
EAGER = "int8 without kernels"  # Every operation is a launch of its own, and the bits are the same.
QUICK = ["plain", "control", "cached teacher", "all three"]
ROUNDS, BATCH, LENGTH = 40, 32, 128
BLOCK, BLOCKS = 8, 3  # Steps of one training, and trainings of each variant, where variants cannot take turns.
PACKAGES = ("accelerate", "datasets", "peft", "torch", "transformers", "triton")


class Part:
    """The settings of a part, and its file of results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.quick, self.device = options.quick, torch.device(options.device)
        self.until = time.monotonic() + options.seconds
        self.rounds = WARM_UP + 2 if self.quick else ROUNDS
        self.rows, self.length = (2, 8) if self.quick else (BATCH, LENGTH)
        names = QUICK if self.quick else VARIANTS
        self.names = [name for name in names if name != "cached teacher" or importlib.util.find_spec(SPARED)]

    def say(self, found: Mapping[str, Any]) -> None:
        if int(os.environ.get("RANK", "0")) == 0:
            with self.options.lines.open("a") as file:
                file.write(json.dumps(found) + "\n")

    def settings(self, folder: str, precision: str, **more: Any) -> TrainingArguments:
        return TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=self.rows,
            learning_rate=2e-5,
            logging_steps=10,
            bf16=precision == "bf16",
            use_cpu=self.device.type == "cpu",
            dataloader_pin_memory=self.device.type != "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **{"max_steps": self.rounds} | more,
        )

    def data(self, steps: int, vocabulary: int) -> Any:
        """Return random tokens: a `Dataset` if there is the package, which the cached teacher needs, else a list."""
        draw = np.random.default_rng(0)
        count = self.rows * steps
        ids = draw.integers(5, vocabulary, (count, self.length))
        columns = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
        columns["labels"] = draw.integers(2, size=count).tolist()
        if importlib.util.find_spec(SPARED):
            from datasets import Dataset

            return Dataset.from_dict(columns)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collate rows of one length. Answers of a cached teacher are numbers too."""
    return {name: torch.tensor(np.array([row[name] for row in rows])) for name in rows[0]}


@contextmanager
def dense_model(shape: Mapping[str, int]) -> Iterator[tuple[BertForSequenceClassification, str]]:
    """Return a model with random weights and the folder that it was loaded from, as teachers need one."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig(**shape)).save_pretrained(f"{folder}/dense")
        yield BertForSequenceClassification.from_pretrained(f"{folder}/dense"), folder


def steps(part: Part, cell: Mapping[str, Any], until: float) -> dict[str, Any]:
    """Return ratios of training steps to plain Trainer, in turns."""
    compiler: dict[str, Any] = {}
    if cell["compiled"]:
        # aot_eager, for a trial without a C++ compiler.
        compiler = {"torch_compile": True, "torch_compile_backend": "aot_eager" if part.quick else "inductor"}
    torch.compiler.reset()
    with dense_model(shapes(part.quick)[cell["shape"]]) as (dense, folder):
        given = {
            "args": part.settings(folder, cell["precision"], **compiler),
            "train_dataset": part.data(part.rounds + 1, dense.config.vocab_size),
            "data_collator": stacked,
        }
        names = part.names if cell["compiled"] else [*part.names, EAGER]
        trainers = {
            name: build_trainer(name.removesuffix(" without kernels"), dense, folder, **given) for name in names
        }
        if EAGER in trainers:
            trainers[EAGER].training_step = eagerly()(trainers[EAGER].training_step)  # type: ignore[method-assign]

        def table(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
            return {
                "rounds": len(seconds["plain"]) - WARM_UP,
                "plain_seconds": float(np.median(seconds["plain"][WARM_UP:])),
                "ratios": {name: asdict(found) for name, found in ratios(seconds, "plain")},
            }

        def keep(seconds: Mapping[str, list[float]]) -> None:
            if len(seconds["plain"]) > WARM_UP:
                part.say({**cell, "state": "cut", "why": "no time left", "result": table(seconds)})

        return table(train_in_turns(trainers, Board(names, part.rounds, until, keep)))


class Steps(TrainerCallback):
    """Times the steps of one training after the warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        if state.global_step > WARM_UP:
            self.seconds.append(time.perf_counter() - self.began)


def peak() -> int | None:
    """Return the peak of allocated bytes since the last call; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.max_memory_allocated()
    gc.collect()  # Trainers refer to themselves.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


def memory(part: Part, cell: Mapping[str, Any], until: float) -> dict[str, Any]:
    """Return the peak memory of a training with each variant, one after the other."""
    found: dict[str, int | None] = {}
    with dense_model(shapes(part.quick)[cell["shape"]]) as (dense, folder):
        for name in part.names:
            if time.monotonic() > until:
                break
            data = part.data(WARM_UP + 1, dense.config.vocab_size)
            settings = part.settings(folder, cell["precision"], max_steps=WARM_UP + 1)
            peak()
            trainer = build_trainer(name, dense, folder, args=settings, train_dataset=data, data_collator=stacked)
            trainer.train()
            found[name] = peak()
            del trainer
    return {"bytes": found}


def int8(part: Part, cell: Mapping[str, Any], until: float) -> dict[str, Any]:
    """Return the speed of the model with `run="int8"` relative to the dense model in fp32 and in bf16."""
    with dense_model(shapes(part.quick)[cell["shape"]]) as (dense, folder):
        trained, plan = copy.deepcopy(dense), recipe(quantization=QUANTIZATION)
        settings = part.settings(folder, "fp32", max_steps=2)
        data = part.data(3, dense.config.vocab_size)
        Trainer(trained, settings, data_collator=stacked, train_dataset=data, callbacks=plan.callbacks()).train()
        save_compressed(trained, f"{folder}/compressed", plan)
        load = partial(AutoModelForSequenceClassification.from_pretrained, f"{folder}/compressed")
        integers = load(quantization_config=CompressionConfig(run="int8")).to(part.device).eval()
        models = {"fp32": dense.to(part.device).eval(), "int8": integers}
        models |= {"bf16": copy.deepcopy(dense).to(torch.bfloat16)}
        ids = torch.tensor([row["input_ids"] for row in data])[: part.rows].to(part.device)
        found: dict[str, Any] = {}

        def call(model: torch.nn.Module, batch: torch.Tensor) -> None:
            with torch.inference_mode():
                model(input_ids=batch)
            if part.device.type == "cuda":
                torch.cuda.synchronize()

        for rows in (1, part.rows):
            calls = {name: partial(call, model, ids[:rows]) for name, model in models.items()}
            seconds = measure_latency(calls, part.rounds)
            speed = {name: asdict(paired_ratio(seconds["fp32"], seconds[name])) for name in ("bf16", "int8")}
            found[f"{rows} x {part.length}"] = speed
        return {"speed": found}


def processes(part: Part, cell: Mapping[str, Any], until: float) -> dict[str, Any]:
    """Return the time of steps with all three methods relative to plain ones, under DDP or FSDP2.

    Trainings follow each other in blocks, because the collectives of trainings in turns would meet in any order.
    """
    more: dict[str, Any] = {"ddp_find_unused_parameters": False}
    if cell["way"] == "FSDP2":
        wrap = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"], "state_dict_type": "SHARDED_STATE_DICT"}
        more = {"fsdp": True, "fsdp_config": wrap}
    names = ["plain", "control", "all three"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    bytes_of: dict[str, int | None] = {}
    count = 1
    with dense_model(shapes(part.quick)[cell["shape"]]) as (dense, folder):
        for name in (name for _ in range(1 if part.quick else BLOCKS) for name in names):
            clock = Steps()
            count = part.settings(folder, cell["precision"]).world_size
            data = part.data(count * (WARM_UP + BLOCK), dense.config.vocab_size)
            settings = part.settings(folder, cell["precision"], max_steps=WARM_UP + BLOCK, **more)
            peak()
            trainer = build_trainer(name, dense, folder, args=settings, train_dataset=data, data_collator=stacked)
            trainer.add_callback(clock)
            trainer.train()
            seconds[name] += clock.seconds
            bytes_of[name] = peak()
            del trainer
    found = {name: asdict(paired_ratio(seconds[name], seconds["plain"])) for name in names[1:]}
    return {"processes": count, "steps": len(seconds["plain"]), "ratios": found, "bytes": bytes_of}


MEASURES: dict[str, Callable[[Part, Mapping[str, Any], float], dict[str, Any]]] = {
    "steps": steps,
    "memory": memory,
    "int8": int8,
    "processes": processes,
}


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the results depend on: GPUs, processor, versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        if importlib.util.find_spec(name):
            versions[name] = importlib.metadata.version(name)
    described = {"device": device.type, "gpus": gpus, "cpus": os.cpu_count(), "cuda": torch.version.cuda}
    return {"machine": described, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["eager", "compiled", *WAYS])
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    part = Part(options)
    part.say(machine(part.device))
    cells = planned(options.part, part.quick)
    for index, cell in enumerate(cells):
        now = time.monotonic()
        # Compiling takes most of the time, and half a cell is worth nothing.
        until = part.until if options.part == "compiled" else now + (part.until - now) / (len(cells) - index)
        if now > part.until:
            part.say({**cell, "state": "skipped", "why": "no time left"})
            continue
        try:
            result = MEASURES[cell["what"]](part, cell, until)
        except (RuntimeError, ValueError) as error:  # OutOfMemoryError is a RuntimeError.
            part.say({**cell, "state": "failed", "why": f"{type(error).__name__}: {str(error)[:300]}"})
            if options.part in WAYS:
                raise
            continue
        short = {
            "steps": result.get("rounds") != part.rounds - WARM_UP,
            "memory": part.names != [*result.get("bytes", [])],
        }
        state, why = ("cut", "no time left") if short.get(cell["what"]) else ("done", "")
        part.say({**cell, "state": state, "why": why, "result": result})


if __name__ == "__main__":
    main()
