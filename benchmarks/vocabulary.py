"""Measure what cutting the vocabulary and 4-bit embeddings save and cost, before any training.

    python benchmarks/vocabulary.py --model FINE_TUNED --dataset_name GLUE --task_name sst2 --max_train_samples 12000

Scores are on the validation split; only the embeddings are rounded. `file MB` is the packed file that the model would
have, pruned and rounded in one shot.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset, load_dataset
from sizes import prune
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)

import hf_compress as hfc
from hf_compress.checkpoint import save_compressed
from hf_compress.layers import Grid, fake_quantize_symmetric, quantize_layers
from hf_compress.study.grid import TASKS, compute_metrics

METHODS = ((8, 0.0), (4, 0.0), (8, 0.6), (4, 0.6))  # Bits of the embeddings, sparsity of the other layers.
BATCH = 64


def texts(rows: Dataset, columns: tuple[str, ...]) -> Iterator[str]:
    """Iterate over the texts of all `columns`."""
    return (text for column in columns for text in rows[column])


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, task: str) -> np.ndarray:
    """Return the logits of all rows."""
    logits = []
    for batch in rows.iter(BATCH):
        sentences = [batch[column] for column in TASKS[task].sentences]
        inputs = tokenizer(*sentences, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**inputs).logits.numpy())
    return np.concatenate(logits)


def score(logits: np.ndarray, rows: Dataset, task: str) -> float:
    """Return the main metric of the task."""
    predicted = EvalPrediction(logits, np.asarray(rows["label"]))
    return float(compute_metrics(TASKS[task].metrics)(predicted)[TASKS[task].main_metric])


def with_embeddings(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Return a copy of the model whose embeddings are rounded to `bits`."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.data = fake_quantize_symmetric(module.weight.data, Grid(bits, per="row"))
    return copied


def file_bytes(model: PreTrainedModel, recipe: hfc.Recipe) -> int:
    """Return the bytes of the packed file of the model, pruned and rounded by `recipe` in one shot."""
    copied, options = copy.deepcopy(model), recipe.quantization
    prune(copied, recipe.pruning.prune_sparsity)
    for layer in quantize_layers(copied, options.scheme, bits=options.quant_bits):
        layer.quantizing, layer.rounded = True, layer.weight.dtype
        if layer.has_range:
            layer.input_range = torch.tensor([-1.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        saved = save_compressed(copied, folder, recipe)
        return sum(file.stat().st_size for file in saved.glob("*.safetensors"))


def row(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, task: str) -> str:
    weights = sum(parameter.numel() for parameter in model.parameters())
    cells = [name, f"{model.config.vocab_size:,}", f"{4 * weights / 1e6:.2f}"]
    for bits, sparsity in METHODS:
        recipe = hfc.Recipe(
            pruning=hfc.PruningArguments(prune_sparsity=sparsity),
            quantization=hfc.QuantizationArguments(quant_scheme="int8", quant_bits=[f"embeddings={bits}"]),
        )
        cells.append(f"{file_bytes(model, recipe) / 1e6:.2f}")
    for rounded in (model, with_embeddings(model, 8), with_embeddings(model, 4)):
        cells.append(f"{100 * score(answers(rounded, tokenizer, rows, task), rows, task):.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="fine-tuned model")
    parser.add_argument("--dataset_name", required=True, help="GLUE: Hub id or folder")
    parser.add_argument("--task_name", default="sst2", choices=TASKS, help="GLUE task (%(default)s)")
    parser.add_argument("--max_train_samples", type=int, default=sys.maxsize, help="training rows to read (all)")
    arguments = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    task = TASKS[arguments.task_name]
    data = load_dataset(arguments.dataset_name, arguments.task_name)
    train, rows = data["train"], data[task.validation]
    train = train.select(range(min(arguments.max_train_samples, len(train))))
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    cut, smaller = hfc.cut_vocabulary(model, tokenizer, texts(train, task.sentences))
    methods = [f"{bits}-bit embeddings, {sparsity:.0%} zeros: file MB" for bits, sparsity in METHODS]
    scores = [task.main_metric, "8-bit embeddings", "4-bit embeddings"]
    print(f"| {' | '.join(['vocabulary', 'tokens', 'fp32 MB', *methods, *scores])} |")
    print("| --- |" + " ---: |" * (2 + len(methods) + len(scores)))
    print(row("whole", model, tokenizer, rows, arguments.task_name))
    print(row("cut", cut, smaller, rows, arguments.task_name))
    other = [len(tokenizer(text).input_ids) != len(smaller(text).input_ids) for text in texts(rows, task.sentences)]
    print(f"{sum(other)} of {len(other)} sentences of {task.validation} are split into more tokens than before.")


if __name__ == "__main__":
    main()
