"""Compare embedders by search: questions of QNLI must find the sentence that answers them among all sentences.

    python benchmarks/retrieval.py DENSE COMPRESSED... --dataset_name nyu-mll/glue

Each argument is a folder or Hub id that `SentenceTransformer` loads; `FOLDER:onnx` is the graph in a folder of ours.
The queries are the questions with an answer in the first `--rows` rows of the validation split, the corpus all
sentences of these rows. Scores are times 100. In brackets: the difference to the first model, with its 95 % interval
from 2,000 paired resamples of the queries. Needs the extra `sentences`.
"""

import argparse
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

import hf_compress  # noqa: F401  # Makes Transformers read packed files.
from hf_compress.export import FORMATS
from hf_compress.folders import local_folder
from hf_compress.models.sentences import around
from hf_compress.models.targets import transformer
from hf_compress.report.intervals import bootstrap, ends
from hf_compress.report.queries import Queries, noting_queries

SHOWN = ("cosine_recall@10", "cosine_ndcg@10")


def search(rows: Any) -> InformationRetrievalEvaluator:
    """Return the evaluator of these rows of QNLI."""
    places = {text: str(number) for number, text in enumerate(dict.fromkeys(rows["sentence"][:]))}
    answered = rows.filter(lambda row: row["label"] == 0)
    return InformationRetrievalEvaluator(
        queries={str(number): row["question"] for number, row in enumerate(answered)},
        corpus={place: text for text, place in places.items()},
        relevant_docs={str(number): {places[row["sentence"]]} for number, row in enumerate(answered)},
        main_score_function="cosine",
        **{f"{name}_at_k": [10] for name in ("accuracy", "precision_recall", "map", "mrr", "ndcg")},
    )


def load(given: str) -> Any:
    """Return the model of a folder or Hub id, or around the graph of `FOLDER:onnx`."""
    name, _, kind = given.partition(":")
    model = SentenceTransformer(name, device="cpu", model_kwargs={"attn_implementation": "eager"})
    if not kind:
        return model
    graph = FORMATS[kind]
    return around(model, graph.read(local_folder(name) / graph.path, cast(Any, transformer(model))))


def difference(ours: np.ndarray, first: np.ndarray) -> str:
    """Return the mean difference of two models' scores of the same queries, with its interval."""
    apart = 100 * (ours - first)
    low, high = ends(bootstrap({"": lambda weights: weights @ apart / len(apart)}, len(apart))[""])
    return f"{apart.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="the dense one first")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="of the validation split (%(default)s)")
    options = parser.parse_args(arguments)
    data = load_dataset(options.dataset_name, "qnli")["validation"]
    evaluator = search(data.select(range(min(options.rows, len(data)))))
    print(f"{len(evaluator.queries):,} queries, {len(evaluator.corpus):,} sentences")
    first: Queries = {}
    for given in options.models:
        with noting_queries(evaluator) as queries:
            evaluator(load(given))
        words = []
        for name in SHOWN:
            said = f"{name} {100 * queries[name].mean():.2f}"
            words.append(f"{said} {difference(queries[name], first[name])}" if first else said)
        first = first or queries
        print("  ".join([given, *words]), flush=True)


if __name__ == "__main__":
    main()
