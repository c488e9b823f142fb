"""Tell what costs a compressed embedder its score: the weights of its embeddings, of its layers, or rounded inputs.

    python benchmarks/embedder_parts.py DENSE COMPRESSED --dataset_name nyu-mll/glue --rows 500

COMPRESSED is a folder that `hf-compress quantize DENSE` has made with the scheme `int8`. Some of its parts are put
back to what they are in DENSE, and the rest is scored on the first rows of STS-B's validation split: Spearman x 100
with the labels, its difference to DENSE, and the distortion, 1,000 x (1 - cosine) of the embeddings. Needs the extra
`sentences`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

import hf_compress  # noqa: F401  # Makes Transformers read packed files.

# What is rounded: weights whose name fits, and the inputs.
PARTS = {
    "all": (lambda name: True, True),
    "weights": (lambda name: True, False),
    "weights of embeddings": (lambda name: "embeddings" in name, False),
    "weights of layers": (lambda name: "embeddings" not in name, False),
    "inputs": (lambda name: False, True),
}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("compressed")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--rows", type=int, default=500, help="of the validation split (%(default)s)")
    options = parser.parse_args(arguments)
    rows = load_dataset(options.dataset_name, "stsb")["validation"].select(range(options.rows))
    texts, labels = [*rows["sentence1"], *rows["sentence2"]], rows["label"][:]
    dense, model = (SentenceTransformer(name, device="cpu") for name in (options.dense, options.compressed))

    def embedded(one: Any) -> np.ndarray:
        found = one.encode(texts, batch_size=64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def score(found: np.ndarray) -> float:
        half = len(found) // 2
        return 100 * float(spearmanr((found[:half] * found[half:]).sum(1), labels).statistic)

    layers = {name: part for name, part in model[0].model.named_modules() if getattr(part, "quantizing", False)}
    packed = {name: layer.weight.clone() for name, layer in layers.items()}
    whole, known = embedded(dense), dict(dense[0].model.named_modules())
    first = score(whole)
    print(f"{'dense':24} {first:6.2f}", flush=True)
    for name, (rounds, inputs) in PARTS.items():
        for place, layer in layers.items():
            # `data`: a layer takes a weight as it was loaded, unless its version has changed.
            layer.weight.data.copy_(packed[place] if rounds(place) else known[place].weight)
            layer.quantizing = inputs
        found = embedded(model)
        distortion = 1000 * float((1 - (whole * found).sum(1)).mean())
        print(f"{name:24} {score(found):6.2f} ({score(found) - first:+.2f})  distortion {distortion:.2f}", flush=True)


if __name__ == "__main__":
    main()
