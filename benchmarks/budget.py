"""Measure what a file-size budget costs in accuracy: bits chosen per layer, against 8 bits and sparsity.

    python benchmarks/budget.py --model FINE_TUNED --dataset_name GLUE --task_name sst2

Weights are pruned and rounded in one shot, without training; inputs are not rounded. `bits` is
`--compress_budget_mb`. `zeros` chooses no bits: 8 bits and up to 50 % zeros, then 4-bit embeddings and more zeros.
`divergence` is the mean Kullback-Leibler divergence from the dense model's predictions, in millinats; on few rows it
is more sensitive than accuracy. `--powers` tries other exponents for the weight that a layer's error has
(`size_power` of `fit_budget`).
"""

import argparse
import copy
from collections import Counter

import numpy as np
import torch
from datasets import load_dataset
from scipy.special import log_softmax
from sizes import prune
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, logging
from vocabulary import answers, score

import hf_compress as hfc
from hf_compress.checkpoint import expected_bytes, fit_budget
from hf_compress.layers import fake_quantize_symmetric, weight_grids
from hf_compress.models import quantizable
from hf_compress.study.grid import TASKS

SIZE_POWER = 0.5  # The default of `fit_budget`.
RESERVE = 0.01  # Share of the budget that `fit_budget` leaves free.


def zeros(model: PreTrainedModel, megabytes: float) -> hfc.Recipe:
    """Return the recipe of 8 bits and the least sparsity that fits; above 50 % also with 4-bit embeddings."""
    eight = hfc.QuantizationArguments(quant_scheme="int8", quant_bits=[".=8"])
    half = hfc.Recipe(pruning=hfc.PruningArguments(prune_sparsity=0.5), quantization=eight)
    if expected_bytes(model, half) > (1 - RESERVE) * 1e6 * megabytes:
        eight = hfc.QuantizationArguments(quant_scheme="int8", quant_bits=[".=8", "embeddings=4"])
    return fit_budget(model, hfc.Recipe(quantization=eight, budget=hfc.BudgetArguments(megabytes)))[0]


@torch.no_grad()
def one_shot(model: PreTrainedModel, recipe: hfc.Recipe) -> tuple[PreTrainedModel, Counter[int]]:
    """Return a copy of the model, pruned and rounded by the recipe, and the number of weights by bits."""
    copied, options = copy.deepcopy(model), recipe.quantization
    prune(copied, recipe.pruning.prune_sparsity)
    numbers: Counter[int] = Counter()
    for target, grid in weight_grids(quantizable(copied), options.scheme, options.quant_bits):
        target.weight.copy_(fake_quantize_symmetric(target.weight, grid))
        numbers[grid.bits] += target.weight.numel()
    return copied, numbers


def divergence(logits: np.ndarray, dense: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence of the predictions from the dense ones, in nats."""
    expected, got = log_softmax(dense, axis=-1), log_softmax(logits, axis=-1)
    return float((np.exp(expected) * (expected - got)).sum(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="fine-tuned model")
    parser.add_argument("--dataset_name", required=True, help="GLUE: Hub id or folder")
    parser.add_argument("--task_name", default="sst2", choices=TASKS, help="GLUE task (%(default)s)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[14, 12, 10, 8], help="MB (14 12 10 8)")
    parser.add_argument("--powers", type=float, nargs="+", default=[SIZE_POWER], help="exponents to try (0.5)")
    arguments = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    task = arguments.task_name
    rows = load_dataset(arguments.dataset_name, task)[TASKS[task].validation]
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    dense = answers(model, tokenizer, rows, task)
    print(f"{TASKS[task].main_metric} of the dense model: {100 * score(dense, rows, task):.2f}")
    print(
        f"| budget MB | by | file MB | zeros | millions of weights by bits | {TASKS[task].main_metric} | divergence |"
    )
    print("| ---: | --- | ---: | ---: | --- | ---: | ---: |")
    for megabytes in arguments.budgets:
        for power in (None, *arguments.powers):
            asked = hfc.Recipe(budget=hfc.BudgetArguments(megabytes))
            recipe = zeros(model, megabytes) if power is None else fit_budget(model, asked, size_power=power)[0]
            small, numbers = one_shot(model, recipe)
            logits = answers(small, tokenizer, rows, task)
            cells = [
                f"{megabytes:g}",
                "zeros" if power is None else "bits" if len(arguments.powers) == 1 else f"bits, power {power:g}",
                f"{expected_bytes(model, recipe) / 1e6:.2f}",
                f"{recipe.pruning.prune_sparsity:.0%}",
                ", ".join(f"{bits}: {numbers[bits] / 1e6:.1f}" for bits in sorted(numbers)),
                f"{100 * score(logits, rows, task):.2f}",
                f"{1000 * divergence(logits, dense):.1f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
