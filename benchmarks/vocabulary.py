"""What cutting the vocabulary to a training set costs and saves, before any training.

    python benchmarks/vocabulary.py --model FINE_TUNED --dataset_name GLUE --task_name sst2 --max_train_samples 12000

The score is of the validation split; `file` is what the packed file of the model as it is would have, pruned and
rounded at once.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)

import hf_compress as hfc
from hf_compress.budget import expected_bytes
from hf_compress.glue import TASKS, compute_metrics

METHODS = (("int8", 0.0), ("int8-embedding4", 0.0), ("int8", 0.6), ("int8-embedding4", 0.6))
BATCH = 64


def texts(rows: Dataset, columns: tuple[str, ...]) -> Iterator[str]:
    return (text for column in columns for text in rows[column])


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, task: str) -> float:
    logits = []
    for batch in rows.iter(BATCH):
        sentences = [batch[column] for column in TASKS[task].sentences]
        inputs = tokenizer(*sentences, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**inputs).logits.numpy())
    predicted = EvalPrediction(np.concatenate(logits), np.asarray(rows["label"]))
    return float(compute_metrics(TASKS[task].metrics)(predicted)[TASKS[task].main_metric])


def row(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, task: str) -> str:
    weights = sum(parameter.numel() for parameter in model.parameters())
    cells: list[Any] = [name, f"{model.config.vocab_size:,}", f"{4 * weights / 1e6:.2f}"]
    for scheme, sparsity in METHODS:
        recipe = hfc.Recipe(
            pruning=hfc.PruningArguments(prune_sparsity=sparsity),
            quantization=hfc.QuantizationArguments(quant_scheme=scheme),
        )
        cells.append(f"{expected_bytes(model, recipe) / 1e6:.2f}")
    return f"| {' | '.join([*cells, f'{100 * score(model, tokenizer, rows, task):.2f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="A fine-tuned model.")
    parser.add_argument("--dataset_name", required=True, help="GLUE: a Hub id or a local folder.")
    parser.add_argument("--task_name", default="sst2", choices=TASKS)
    parser.add_argument("--max_train_samples", type=int, default=sys.maxsize)
    arguments = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    task = TASKS[arguments.task_name]
    data = load_dataset(arguments.dataset_name, arguments.task_name)
    train, rows = data["train"], data[task.validation]
    train = train.select(range(min(arguments.max_train_samples, len(train))))
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    cut, smaller = hfc.cut_vocabulary(model, tokenizer, texts(train, task.sentences))
    methods = [f"{scheme}, {sparsity:.0%} zeros: file MB" for scheme, sparsity in METHODS]
    print(f"| vocabulary | tokens | fp32 MB | {' | '.join(methods)} | {task.main_metric} |")
    print("| --- |" + " ---: |" * (3 + len(METHODS)))
    print(row("whole", model, tokenizer, rows, arguments.task_name))
    print(row("cut", cut, smaller, rows, arguments.task_name))
    other = [len(tokenizer(text).input_ids) != len(smaller(text).input_ids) for text in texts(rows, task.sentences)]
    print(f"{sum(other)} of {len(other)} sentences of {task.validation} have a word that is spelled in more pieces.")


if __name__ == "__main__":
    main()
