"""Compare embedders by search: questions of QNLI must find the sentence that answers them among all sentences.

    python benchmarks/retrieval.py DENSE COMPRESSED... --dataset_name nyu-mll/glue

Each argument is a folder or Hub id that `SentenceTransformer` loads; `FOLDER:onnx` is the graph in a folder of ours.
The queries are the questions with an answer in the first `--rows` rows of the validation split, the corpus all
sentences of these rows. Each query has one right sentence. Scores are times 100. In brackets: the difference to the
first model, with its 95 % interval from 2,000 paired resamples of the queries. Needs the extra `sentences`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from sentence_transformers import SentenceTransformer

import hf_compress  # noqa: F401  # Makes Transformers read packed files.
from hf_compress.export import FORMATS

DRAWS, FIRST = 2000, 10


def load(given: str) -> SentenceTransformer:
    """Return the model of a folder or Hub id, or around the graph of `FOLDER:onnx`."""
    name, _, kind = given.partition(":")
    model = SentenceTransformer(name, device="cpu", model_kwargs={"attn_implementation": "eager"})
    if kind:
        model[0].model = FORMATS[kind].read(Path(name) / FORMATS[kind].path, model[0].model)
    return model


def scores(model: SentenceTransformer, rows: Any) -> dict[str, np.ndarray]:
    """Return recall@10 and nDCG@10 of each query, times 100."""
    places = {text: number for number, text in enumerate(dict.fromkeys(rows["sentence"][:]))}
    answered = rows.filter(lambda row: row["label"] == 0)
    queries, corpus = model.encode_query(answered["question"][:]), model.encode_document([*places])
    similar = model.similarity(queries, corpus).numpy()
    right = similar[np.arange(len(similar)), [places[text] for text in answered["sentence"][:]]]
    before = (similar > right[:, None]).sum(1)
    found = before < FIRST
    return {"recall@10": 100.0 * found, "nDCG@10": 100.0 * found / np.log2(before + 2)}


def difference(ours: np.ndarray, first: np.ndarray) -> str:
    """Return the mean difference of two models' scores of the same queries, with its interval."""
    apart = ours - first
    drawn = np.random.default_rng(0).integers(len(apart), size=(DRAWS, len(apart)))
    low, high = np.quantile(apart[drawn].mean(1), [0.025, 0.975])
    return f"({apart.mean():+.2f}; {low:+.2f} to {high:+.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="the one that others are compared with first")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="of the validation split (%(default)s)")
    options = parser.parse_args(arguments)
    data = load_dataset(options.dataset_name, "qnli")["validation"]
    rows, first = data.select(range(min(options.rows, len(data)))), None
    for given in options.models:
        found = scores(load(given), rows)
        words = [f"{len(next(iter(found.values()))):,} queries"]
        for name, each in found.items():
            words.append(f"{name} {each.mean():.2f} {difference(each, first[name]) if first else ''}".rstrip())
        first = first or found
        print("  ".join([f"{given:44}", *words]), flush=True)


if __name__ == "__main__":
    main()
