"""Measure what pruning, quantization, a teacher, its layers and all three cost per step, as ratios to plain Trainer.

    python benchmarks/step_time.py --model PATH_OR_ID --dataset_name nyu-mll/glue --rounds 60

Every variant is a real Trainer in its own thread. The threads take turns, one optimizer step each on the same batch,
in an order that rotates every round, so that noise of the machine affects all variants alike. A turn lasts from one
`on_step_begin` to the next, so it includes callbacks, logging and the next batch. A second plain Trainer is the
control; its ratio should be 1. `--against teacher` gives ratios to a live teacher instead. On a busy machine
`--cpu_time` counts the time that the processors spent on a turn, without what they spent on other programs.
"""

import argparse
import copy
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_compress import DistillationArguments, DistillationTrainer, PruningArguments, QuantizationArguments, Recipe
from hf_compress.distill import LAYER_LOSSES
from hf_compress.report import paired_ratio

WARM_UP, LEAST = 3, 5
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


class Over(Exception):
    """Ends a training whose turns are over."""


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
    """The order of turns, whose turn it is, and the seconds that each turn took.

    Args:
        names: of the variants.
        rounds: turns of each variant.
        until: the moment, by `time.monotonic`, after which no round begins, if a few were timed.
        on_round: called after every round with the seconds by name.
        clock: returns the seconds that turns are measured by.
    """

    def __init__(
        self,
        names: list[str],
        rounds: int,
        until: float = float("inf"),
        on_round: Callable[[Mapping[str, list[float]]], None] = lambda seconds: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.order = [names[index:] + names[:index] for index in (r % len(names) for r in range(rounds))]
        self.flat = [name for row in self.order for name in row]
        self.turn, self.began = 0, 0.0
        self.running: str | None = None
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.until, self.on_round = until, on_round
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self._is_over() or self.flat[self.turn] == name)
            if self._is_over():
                raise Over
            self.running, self.began = name, self.clock()

    def finish(self, name: str) -> None:
        if self.running == name and torch.cuda.is_available():
            torch.cuda.synchronize()  # The step is only queued.
        with self.changed:
            if self.running == name:
                self.seconds[name].append(self.clock() - self.began)
                self.running = None
                self.turn += 1
                if self.turn % len(self.seconds) == 0:
                    self.on_round(self.seconds)
                    if time.monotonic() > self.until and len(self.seconds[name]) >= WARM_UP + LEAST:
                        self.turn = len(self.flat)
                self.changed.notify_all()

    def train(self, name: str, trainer: Trainer) -> None:
        """Train in turns. An error ends all trainings, because the others would wait for this one for ever."""
        trainer.add_callback(Turns(name, self))
        try:
            trainer.train()
        except Over:
            pass
        except BaseException as error:  # noqa: BLE001  # Raised again by `train_in_turns`.
            with self.changed:
                self.error = self.error or error
                self.changed.notify_all()

    def _is_over(self) -> bool:
        return self.error is not None or self.turn >= len(self.flat)


def train_in_turns(trainers: Mapping[str, Trainer], board: Board) -> dict[str, list[float]]:
    """Train each variant in a thread of its own, one step in turn, and return the seconds of its steps by name.

    Every list has the same length; element i comes from round i.
    """
    threads = [
        threading.Thread(target=board.train, args=(name, trainer), name=name) for name, trainer in trainers.items()
    ]
    set_seed(0)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if board.error is not None:
        raise board.error
    whole = min(map(len, board.seconds.values()))
    return {name: seconds[:whole] for name, seconds in board.seconds.items()}


def build_trainer(name: str, dense: PreTrainedModel, folder: str, **given: Any) -> Trainer:
    """Return the Trainer of a variant for a copy of `dense`.

    Args:
        name: the key of `VARIANTS`.
        folder: where the answers of a teacher are kept.
        given: what every Trainer gets: `args`, `train_dataset`, `data_collator`.
    """
    plan = VARIANTS[name]
    given |= {"model": copy.deepcopy(dense), "args": copy.copy(given["args"])}
    if plan is None:
        return Trainer(**given)
    distillation = copy.copy(plan.distillation)
    if distillation.distill_cache is not None:
        distillation.distill_cache = f"{folder}/cache"
    trainer = DistillationTrainer(**given, distillation=distillation, callbacks=plan.callbacks())
    if distillation.distill_cache is not None:
        trainer.get_train_dataloader()  # Fills the cache; otherwise the first turn would.
    return trainer


def ratios(seconds: Mapping[str, list[float]], against: str) -> Iterator[tuple[str, Any]]:
    """Yield the names of the other variants, and their ratio to `against` after the warm-up."""
    for name, values in seconds.items():
        if name != against:
            yield name, paired_ratio(values[WARM_UP:], seconds[against][WARM_UP:])


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
    parser.add_argument("--cpu_time", action="store_true", help="measure time of the processors, not of the clock")
    parser.add_argument("--json", type=Path, help="also write the ratios to this file")
    options = parser.parse_args()

    from datasets import load_dataset

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_dataset(options.dataset_name, "sst2", split="train")
    rows = rows.shuffle(seed=0).select(range(options.batch_size * (options.rounds + 1)))
    data = rows.map(lambda row: tokenizer(row["sentence"], truncation=True, max_length=128), batched=True)
    data = data.select_columns(["input_ids", "attention_mask", "label"])
    dense = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)

    names = [options.against, *(name for name in options.variants if name != options.against)]
    clock = time.process_time if options.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
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
        given = {"args": arguments, "train_dataset": data, "data_collator": DataCollatorWithPadding(tokenizer)}
        trainers = {name: build_trainer(name, dense, folder, **given) for name in names}
        seconds = train_in_turns(trainers, Board(names, options.rounds, clock=clock))

    reference = seconds[options.against][WARM_UP:]
    table = {}
    milliseconds = np.median(reference) * 1e3
    setting = f"{torch.get_num_threads()} threads, batch {options.batch_size}, {len(reference)} rounds"
    setting += ", time of the processors" if options.cpu_time else ""
    print(f"\n{setting}, {options.against} {milliseconds:.0f} ms")
    print(f"{'variant':22} {'ratio to ' + options.against:>17} {'middle half':>16} {'95 % of the median':>20}")
    for name, found in ratios(seconds, options.against):
        table[name] = asdict(found)
        (low, high), interval = found.quartiles, found.interval
        print(f"{name:22} {found.ratio:17.3f} {low:7.3f} to {high:.3f} {interval[0]:10.3f} to {interval[1]:.3f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
