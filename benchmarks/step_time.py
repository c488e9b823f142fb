"""Measure what pruning, quantization, a teacher, its layers and all three cost per step, as ratios to plain Trainer.

    python benchmarks/step_time.py --model PATH_OR_ID --dataset_name nyu-mll/glue --rounds 60

Every variant is a real Trainer in its own thread. The threads take turns, one optimizer step each on the same batch,
in an order that rotates every round, so that noise of the machine affects all variants alike. A turn lasts from one
`on_step_begin` to the next, so it includes callbacks, logging and the next batch. A second plain Trainer is the
control; its ratio should be 1. `--against teacher` gives ratios to a live teacher instead.
"""

import argparse
import copy
import json
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_compress import DistillationArguments, DistillationTrainer, PruningArguments, QuantizationArguments, Recipe
from hf_compress.distill import LAYER_LOSSES
from hf_compress.report import paired_ratio

WARM_UP = 3
PRUNING = {"prune_sparsity": 0.6, "prune_begin": 0.0, "prune_end": 1.0}
QUANTIZATION = {"quant_scheme": "int8", "quant_begin": 0.0, "quant_freeze": 1.0}
TEACHER = {"distill_teacher": "self"}


def recipe(distillation: dict = {}, pruning: dict = {}, quantization: dict = {}) -> Recipe:  # noqa: B006
    return Recipe(
        DistillationArguments(**distillation), PruningArguments(**pruning), QuantizationArguments(**quantization)
    )


VARIANTS = {
    "plain": None,
    "control": None,
    "none": recipe(),
    "pruning": recipe(pruning=PRUNING),
    "int8": recipe(quantization=QUANTIZATION),
    "teacher": recipe(distillation=TEACHER),
    "cached teacher": recipe(distillation=TEACHER | {"distill_cache": "auto"}),
    **{
        f"teacher, {name}": recipe(distillation=TEACHER | {"distill_layer_loss": [f"{name}=1"]})
        for name in LAYER_LOSSES
    },
    "all three": recipe(TEACHER, PRUNING, QUANTIZATION),
}


class Turns(TrainerCallback):
    """Hands the machine from one training thread to the next, and records how long each turn took."""

    def __init__(self, name: str, board: "Board") -> None:
        self.name, self.board = name, board

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.board.finish(self.name)
        self.board.wait(self.name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.board.finish(self.name)


class Board:
    """The order of turns, whose turn it is, and the seconds that each turn took."""

    def __init__(self, names: list[str], rounds: int) -> None:
        self.order = [names[index:] + names[:index] for index in (r % len(names) for r in range(rounds))]
        self.flat = [name for row in self.order for name in row]
        self.turn, self.began = 0, 0.0
        self.running: str | None = None
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.changed = threading.Condition()

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn >= len(self.flat) or self.flat[self.turn] == name)
            self.running, self.began = name, time.perf_counter()

    def finish(self, name: str) -> None:
        with self.changed:
            if self.running == name:
                self.seconds[name].append(time.perf_counter() - self.began)
                self.running = None
                self.turn += 1
                self.changed.notify_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="bert-base-uncased", help="Hub id or folder of the model (default: %(default)s)"
    )
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="steps per variant (%(default)s)")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="variants to run (all)"
    )
    parser.add_argument(
        "--against", choices=list(VARIANTS), default="plain", help="variant that ratios are to (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="also write the ratios to this file")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_dataset(options.dataset_name, "sst2", split="train")
    rows = rows.shuffle(seed=0).select(range(options.batch_size * (options.rounds + 1)))
    data = rows.map(lambda row: tokenizer(row["sentence"], truncation=True, max_length=128), batched=True)
    data = data.select_columns(["input_ids", "attention_mask", "label"])
    dense = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)

    names = [options.against, *(name for name in options.variants if name != options.against)]
    board = Board(names, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for name in names:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=options.rounds,
                per_device_train_batch_size=options.batch_size,
                learning_rate=2e-5,
                logging_steps=10,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            )
            plan = VARIANTS[name]
            shared: dict[str, Any] = {
                "model": copy.deepcopy(dense),
                "args": arguments,
                "train_dataset": data,
                "data_collator": DataCollatorWithPadding(tokenizer),
            }
            if plan is None:
                trainer = Trainer(**shared)
            else:
                trainer = DistillationTrainer(**shared, distillation=plan.distillation, callbacks=plan.callbacks())
                if plan.distillation.distill_cache is not None:
                    # Fill the cache now; otherwise the first turn would.
                    trainer.distillation.distill_cache = f"{folder}/cache"
                    trainer.get_train_dataloader()
            trainer.add_callback(Turns(name, board))
            threads.append(threading.Thread(target=trainer.train, name=name))
        set_seed(0)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    reference = board.seconds[options.against][WARM_UP:]
    table = {}
    milliseconds = np.median(reference) * 1e3
    setting = f"{torch.get_num_threads()} threads, batch {options.batch_size}, {len(reference)} rounds"
    print(f"\n{setting}, {options.against} {milliseconds:.0f} ms")
    print(f"{'variant':22} {'ratio to ' + options.against:>17} {'middle half':>16} {'95 % of the median':>20}")
    for name in names[1:]:
        found = paired_ratio(board.seconds[name][WARM_UP:], reference)
        table[name] = asdict(found)
        (low, high), interval = found.quartiles, found.interval
        print(f"{name:22} {found.ratio:17.3f} {low:7.3f} to {high:.3f} {interval[0]:10.3f} to {interval[1]:.3f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
