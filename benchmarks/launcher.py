"""Measure what the launcher costs: seconds at the start of a process, and CPU time per training step.

    python benchmarks/launcher.py [--rounds 5] [--steps 200]

Start: whole processes take turns; each imports what a Trainer script imports and ends. A second plain process is the
control. Steps: three Trainers take turns, a block of steps each: one set up by `compress` with an empty recipe, a
plain one, and a second plain one as control.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from hf_compress import Recipe, compress

SCRIPT = """
from transformers import AutoModelForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments
"""
STARTS = {
    "python": ["-W", "ignore"],
    "control": ["-W", "ignore"],
    "python -m hf_compress.launch": ["-W", "ignore", "-m", "hf_compress.launch"],
    "hf-compress run": ["-W", "ignore", str(Path(sys.executable).with_name("hf-compress")), "run"],
}


def start_seconds(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of whole processes that import what a Trainer script imports, by kind of start.

    The first round fills the system's caches and is not counted.
    """
    script = folder / "empty.py"
    script.write_text(SCRIPT)
    seconds: dict[str, list[float]] = {kind: [] for kind in STARTS}
    for turn in range(rounds + 1):
        for kind in [*STARTS][turn % len(STARTS) :] + [*STARTS][: turn % len(STARTS)]:
            command = [sys.executable, *STARTS[kind], str(script)]
            if "compress" in kind:
                command += ["--prune_sparsity", "0.5"]
            before = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if turn:
                seconds[kind].append(time.perf_counter() - before)
    return seconds


def run_seconds(folder: Path, steps: int, launched: bool) -> float:
    """Return the CPU seconds of `steps` training steps, with `compress` and an empty recipe if `launched`."""
    torch.manual_seed(0)
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    model = BertForSequenceClassification(BertConfig(vocab_size=1000, **size))
    rows = {"input_ids": torch.randint(1000, (256, 64)).tolist(), "labels": [0, 1] * 128}
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=steps, per_device_train_batch_size=16, save_strategy="no", disable_tqdm=True,
        report_to="none", use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict(rows))
    trainer.remove_callback(PrinterCallback)
    if launched:
        compress(trainer, Recipe())
    before = time.process_time()
    trainer.train()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=200, help="steps of each variant in all rounds (default: %(default)s)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = start_seconds(folder, options.rounds)
        plain = statistics.median(starts["python"])
        print(f"start: {plain:.2f} s for a plain script that imports Transformers")
        for kind in [*STARTS][1:]:
            more = [ours - theirs for ours, theirs in zip(starts[kind], starts["python"], strict=True)]
            spread = f"{min(more):+.2f} to {max(more):+.2f}"
            print(f"{kind}: {statistics.median(more):+.2f} s ({spread}) to that")
        block = max(1, options.steps // options.rounds)
        kinds = {"plain": False, "control": False, "launched": True}
        run_seconds(folder, 5, True)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(options.rounds):
            order = list(kinds)[turn % 3 :] + list(kinds)[: turn % 3]
            for kind in order:
                seconds[kind].append(run_seconds(folder, block, kinds[kind]))
        for kind in ("control", "launched"):
            ratios = [ours / plain for ours, plain in zip(seconds[kind], seconds["plain"], strict=True)]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"{kind}: {statistics.median(ratios):.3f} ({spread}) x the plain Trainer's CPU time per step")


if __name__ == "__main__":
    main()
