"""What a file of so many megabytes costs in accuracy: bits chosen for each layer, against eight bits and zeros.

    python benchmarks/budget.py --model FINE_TUNED --dataset_name GLUE --task_name sst2

Weights are pruned and rounded at once, without any training, and inputs are not rounded. `zeros` is the way without
bits of their own: eight and up to 50 % zeros, then embeddings of four bits and more zeros. `divergence` is the
mean Kullback-Leibler divergence of the answers from those of the dense model, in millinats: it tells apart what
accuracy on so few rows does not. `--powers` tries other weights of a layer's error than `budget.SIZE_POWER`.
"""

import argparse
import copy
from collections import Counter

import numpy as np
import torch
from datasets import load_dataset
from scipy.special import log_softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, logging
from vocabulary import answers, score

import hf_compress as hfc
from hf_compress.checkpoint import budget
from hf_compress.layers.bits import weight_grids
from hf_compress.layers.grids import fake_quantize_symmetric
from hf_compress.models.targets import prunable, quantizable
from hf_compress.prune.criteria import CRITERIA
from hf_compress.recipe import BudgetArguments
from hf_compress.study.grid.glue import TASKS


def zeros(model: PreTrainedModel, megabytes: float) -> hfc.Recipe:
    """The recipe of eight bits and as few zeros as fit; with more than half, of embeddings of four bits."""
    eight = hfc.QuantizationArguments(quant_scheme="int8", quant_bits=[".=8"])
    half = hfc.Recipe(pruning=hfc.PruningArguments(prune_sparsity=0.5), quantization=eight)
    if budget.expected_bytes(model, half) > (1 - budget.RESERVE) * 1e6 * megabytes:
        eight = hfc.QuantizationArguments(quant_scheme="int8", quant_bits=[".=8", "embeddings=4"])
    return budget.fit(model, hfc.Recipe(quantization=eight, budget=BudgetArguments(megabytes)))[0]


@torch.no_grad()
def one_shot(model: PreTrainedModel, recipe: hfc.Recipe) -> tuple[PreTrainedModel, Counter[int]]:
    """A copy of the model, pruned and rounded by the recipe, and how many weights have how many bits."""
    copied, options = copy.deepcopy(model), recipe.quantization
    weights = [target.weight for target in prunable(copied)]
    for weight, mask in zip(
        weights, CRITERIA["magnitude"](weights, recipe.pruning.prune_sparsity, "layer"), strict=True
    ):
        weight.mul_(mask)
    numbers: Counter[int] = Counter()
    for target, grid in weight_grids(quantizable(copied), options.scheme, options.quant_bits):
        target.weight.copy_(fake_quantize_symmetric(target.weight, grid))
        numbers[grid.bits] += target.weight.numel()
    return copied, numbers


def divergence(logits: np.ndarray, dense: np.ndarray) -> float:
    expected, got = log_softmax(dense, axis=-1), log_softmax(logits, axis=-1)
    return float((np.exp(expected) * (expected - got)).sum(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="A fine-tuned model.")
    parser.add_argument("--dataset_name", required=True, help="GLUE: a Hub id or a local folder.")
    parser.add_argument("--task_name", default="sst2", choices=TASKS)
    parser.add_argument("--budgets", type=float, nargs="+", default=[14, 12, 10, 8], help="Megabytes.")
    parser.add_argument("--powers", type=float, nargs="+", default=[budget.SIZE_POWER])
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
            budget.SIZE_POWER = power or 0.0
            asked = hfc.Recipe(budget=BudgetArguments(megabytes))
            recipe = zeros(model, megabytes) if power is None else budget.fit(model, asked)[0]
            small, numbers = one_shot(model, recipe)
            logits = answers(small, tokenizer, rows, task)
            cells = [
                f"{megabytes:g}",
                "zeros" if power is None else "bits" if len(arguments.powers) == 1 else f"bits, power {power:g}",
                f"{budget.expected_bytes(model, recipe) / 1e6:.2f}",
                f"{recipe.pruning.prune_sparsity:.0%}",
                ", ".join(f"{bits}: {numbers[bits] / 1e6:.1f}" for bits in sorted(numbers)),
                f"{100 * score(logits, rows, task):.2f}",
                f"{1000 * divergence(logits, dense):.1f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
