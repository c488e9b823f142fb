"""Measure what a file size costs a sentence embedder that is rounded once, without training, and by which choices.

    python benchmarks/rate.py --model MODEL --dataset_name GLUE [--megabytes 7 5]

`distortion` is 1,000 x (1 - cosine) of the rounded model's embeddings to the dense one's, and `rho` the Spearman
correlation x 100 with the labels of STS-B, both over 1,000 rows of its development set. Inputs of layers are not
rounded. `MB` are the packed bytes of all tensors. All ways choose steps by sensitivity (`hf_compress.rate`):
`sensitivity` alone, `+ feedback` with error feedback in linear layers, `+ tokens` with coarser steps for rare tokens.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import load_dataset
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase, logging

from hf_compress.models import quantizable
from hf_compress.packing import pack
from hf_compress.rate import Rounding, embedding, fit, gather, token_factors

ROWS, SAMPLE, LENGTH = 1000, 512, 64
# Texts whose tokens are counted: a model for any text, not for STS-B.
COUNTED = {"qqp": 8000, "mnli": 8000, "sst2": 8000, "stsb": 5000}
WAYS = {
    "sensitivity": {"feedback": False, "tokens": False},
    "+ feedback": {"feedback": True, "tokens": False},
    "+ tokens": {"feedback": True, "tokens": True},
    "tokens, no feedback": {"feedback": False, "tokens": True},
}


class Judge:
    """Scores models by the embeddings of pairs of sentences."""

    def __init__(self, dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: str) -> None:
        rows = load_dataset(dataset, "stsb", split="validation").select(range(ROWS))
        self.tokenizer, self.labels = tokenizer, np.array(rows["label"])
        self.sentences = [*rows["sentence1"], *rows["sentence2"]]
        self.dense = self.embed(dense)

    @torch.no_grad()
    def embed(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the normalized embeddings of all sentences."""
        found = torch.empty(len(self.sentences), model.config.hidden_size)
        for places, batch in batches(self.tokenizer, self.sentences, 64):
            found[places] = embedding(model(**batch).last_hidden_state, batch["attention_mask"])
        return found

    def scores(self, model: PreTrainedModel) -> str:
        """Return distortion and correlation as cells of a table."""
        found = self.embed(model)
        distortion = 1000 * float((1 - (found * self.dense).sum(-1)).mean())
        first, second = found.chunk(2)
        rho = spearmanr((first * second).sum(-1).numpy(), self.labels).statistic
        return f"{distortion:.1f} | {100 * rho:.2f}"


def batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int
) -> Iterator[tuple[list[int], BatchEncoding]]:
    """Yield the places and the inputs of batches of texts of similar length."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for begin in range(0, len(order), size):
        places = order[begin : begin + size]
        some = [texts[place] for place in places]
        yield places, tokenizer(some, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


def counts(tokenizer: PreTrainedTokenizerBase, dataset: str, tokens: int) -> torch.Tensor:
    """Return how often each token occurs in the counted texts."""
    found = torch.zeros(tokens, dtype=torch.long)
    for task, number in COUNTED.items():
        rows = load_dataset(dataset, task, split="train")
        rows = rows.select(range(min(number, len(rows))))
        for column in [name for name, kind in rows.features.items() if getattr(kind, "dtype", "") == "string"]:
            for begin in range(0, len(rows), 2000):
                for ids in tokenizer(rows[begin : begin + 2000][column])["input_ids"]:
                    found += torch.bincount(torch.tensor(ids), minlength=tokens)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="sentence embedder, mean-pooled")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE (default: %(default)s)")
    parser.add_argument("--megabytes", nargs="+", type=float, default=[7.0, 5.0], help="(default: 7 5)")
    arguments = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    dense = AutoModel.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="eager").eval()
    judge = Judge(dense, tokenizer, arguments.dataset_name)
    targets = list({id(target.weight): target for target in quantizable(dense)}.values())
    texts = list(load_dataset(arguments.dataset_name, "stsb", split="train")["sentence1"])[:SAMPLE]
    statistics = gather(dense, targets, (batch for _, batch in batches(tokenizer, texts, 8)))
    factors = token_factors(counts(tokenizer, arguments.dataset_name, dense.config.vocab_size))
    own = {f"{target.name}.weight" for target in targets}
    rest = sum(len(pack(value)) for name, value in dense.state_dict().items() if name not in own)
    print("| budget | numbers chosen by | MB | distortion | rho |", "| --- | --- | ---: | ---: | ---: |", sep="\n")
    print(
        f"| | dense | {sum(value.nbytes for value in dense.state_dict().values()) / 1e6:.2f} | {judge.scores(dense)} |"
    )
    for megabytes in arguments.megabytes:
        for way, options in WAYS.items():
            scaled = {word_embeddings(targets): factors} if options["tokens"] else {}
            weights = {target.name: target.weight.detach() for target in targets}
            rounding = Rounding(weights, statistics, scaled, feedback=options["feedback"])
            found = fit(rounding, 1e6 * megabytes - rest)
            rounded = copy.deepcopy(dense)
            for target in targets:
                rounded.get_submodule(target.name).weight.data = found.weights[target.name].rows
            size = (rest + found.bytes) / 1e6
            print(f"| {megabytes:g} MB | {way} | {size:.2f} | {judge.scores(rounded)} |", flush=True)


def word_embeddings(targets: Sequence[object]) -> str:
    """Return the name of the largest embedding."""
    return max((one for one in targets if one.kind == "embedding"), key=lambda one: one.weight.numel()).name  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
