"""What the launcher itself costs: seconds at the start beyond importing Transformers, and time per training step.

    python benchmarks/launcher.py [--rounds 5] [--steps 200]

The start is measured in processes of its own. Steps are measured with a Trainer that the launcher has made compress by
an empty recipe, one that it has not, and a second such as control: the three take turns, a block of steps each.
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
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import Recipe
from hf_compress.compression import compress

START = """
import sys, time
from transformers import AutoModelForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments
before = time.perf_counter()
from hf_compress import launch
launch.main([sys.argv[1], "--prune_sparsity", "0.5"])
print(time.perf_counter() - before)
"""


def start_seconds(folder: Path) -> float:
    """From Transformers imported to the end of an empty script, our import and flags included."""
    script = folder / "empty.py"
    script.write_text("")
    command = [sys.executable, "-W", "ignore", "-c", START, str(script)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def run_seconds(folder: Path, steps: int, launched: bool) -> float:
    torch.manual_seed(0)
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    model = BertForSequenceClassification(BertConfig(vocab_size=1000, **size))
    rows = {"input_ids": torch.randint(1000, (256, 64)).tolist(), "labels": [0, 1] * 128}
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=steps, per_device_train_batch_size=16, save_strategy="no", disable_tqdm=True,
        report_to="none", use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict(rows))
    if launched:
        compress(trainer, Recipe())
    before = time.process_time()
    trainer.train()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of every variant, over all rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = [start_seconds(folder) for _ in range(options.rounds)]
        print(f"start: {statistics.median(starts):.2f} s beyond importing Transformers (limit 0.3; {starts})")
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
            print(f"{kind}: {statistics.median(ratios):.3f} of plain Trainer's CPU time over {options.steps} steps")


if __name__ == "__main__":
    main()
