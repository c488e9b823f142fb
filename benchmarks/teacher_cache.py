"""Measure how fast the teacher cache is filled, as a ratio to bare inference on the same batches.

    python benchmarks/teacher_cache.py --model PATH_OR_ID --dataset_name nyu-mll/glue --rows 4096

Bare inference runs on batches made beforehand, sorted by length. Filling is all that `--distill_cache` does:
fingerprints, the check on a sample, reading rows, sorting and padding them, asking the teacher, writing the file.
Rounds of the two alternate.
"""

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from hf_compress import DistillationArguments, DistillationTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base-uncased", help="Hub id or folder of the teacher")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per batch (%(default)s)")
    parser.add_argument("--rows", type=int, default=4096, help="rows to ask about (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the ratio to this file")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_dataset(options.dataset_name, "sst2", split="train").shuffle(seed=0).select(range(options.rows))
    data = rows.map(lambda row: tokenizer(row["sentence"], truncation=True, max_length=128), batched=True)
    data = data.select_columns(["input_ids", "attention_mask", "label"])
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    collate = DataCollatorWithPadding(tokenizer)

    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            model,
            TrainingArguments(folder, per_device_train_batch_size=options.batch_size, report_to="none"),
            train_dataset=data,
            data_collator=collate,
            teacher=copy.deepcopy(model),
            distillation=DistillationArguments(distill_cache="auto"),
        )
        order = np.argsort([-len(ids) for ids in data["input_ids"]], kind="stable")
        taken: list[dict[str, Any]] = []
        for start in range(0, len(order), options.batch_size):
            batch = collate([data[int(number)] for number in order[start : start + options.batch_size]])
            taken.append({name: value.to(trainer.args.device) for name, value in batch.items() if name != "labels"})

        def bare() -> float:
            began = time.perf_counter()
            with torch.no_grad():
                answers = [trainer.teacher(**batch).logits for batch in taken]
            torch.cat(answers).cpu()
            return time.perf_counter() - began

        def filled(number: int) -> float:
            trainer.distillation.distill_cache = f"{folder}/{number}"
            began = time.perf_counter()
            trainer.get_train_dataloader()
            return time.perf_counter() - began

        bare(), filled(-1)
        seconds = np.array([(bare(), filled(number)) for number in range(options.rounds)])
    speed = seconds[:, 0] / seconds[:, 1]
    low, high = np.quantile(speed, [0.25, 0.75])
    per_second = options.rows / np.median(seconds, axis=0)
    print(f"\n{torch.get_num_threads()} threads, batch {options.batch_size}, {options.rows} rows")
    print(f"bare inference {per_second[0]:.0f} rows/s, filling the cache {per_second[1]:.0f} rows/s")
    print(
        f"filling runs at {np.median(speed):.3f} x the speed of bare inference (middle half {low:.3f} to {high:.3f})"
    )
    if options.json:
        options.json.write_text(json.dumps({"speed": float(np.median(speed)), "quartiles": [low, high]}) + "\n")


if __name__ == "__main__":
    main()
