"""Score models against the dense model that they were made from, for `rate.py` and `zeros.py`; not a program."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from budget import DEFAULTS, Task
from datasets import load_dataset
from scipy.special import log_softmax
from scipy.stats import spearmanr
from shot import Shot, interval
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import hf_compress as hfc
from hf_compress.rate import embedding, sample_batches, token_counts

ROWS, SAMPLE, LENGTH = 1000, 512, 64
FURTHER = 2000  # Rows at most of each set that a classifier answers.
# Texts whose tokens are counted for an embedder: it is a model for any text.
COUNTED = {"qqp": 8000, "mnli": 8000, "sst2": 8000, "stsb": 5000}


class Judge(Protocol):
    """Loads a model, rounds it with statistics of training texts, and scores it."""

    heads: Sequence[str]
    shot: Shot

    def scores(self, folder: str) -> list[str]:
        """Return the scores of the model in `folder` as cells of a table."""


class Embeddings:
    """Scores sentence embedders by 1,000 pairs of STS-B's development set."""

    heads = ("distortion", "rho")

    def __init__(self, folder: str, dataset: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = load_dataset(dataset, "stsb", split="validation").select(range(ROWS))
        self.labels, self.sentences = np.array(rows["label"]), [*rows["sentence1"], *rows["sentence2"]]
        dense = self.load(folder)
        self.dense = self.embed(dense)
        texts = list(load_dataset(dataset, "stsb", split="train")["sentence1"])[:SAMPLE]
        batches = (batch for _, batch in self.batches(texts, 8))
        self.shot = Shot(dense, batches, counts(self.tokenizer, dataset, dense.config.vocab_size))

    def load(self, folder: str) -> PreTrainedModel:
        """Return the model without BERT's pooler, which a mean-pooled embedder does not use."""
        exact = {"dtype": torch.float32, "attn_implementation": "eager"}
        return AutoModel.from_pretrained(folder, add_pooling_layer=False, **exact).eval()

    @torch.no_grad()
    def embed(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the normalized embeddings of all sentences."""
        found = torch.empty(len(self.sentences), model.config.hidden_size)
        for places, batch in self.batches(self.sentences, 64):
            found[places] = embedding(model(**batch).last_hidden_state, batch["attention_mask"])
        return found

    def scores(self, folder: str) -> list[str]:
        found = self.embed(self.load(folder))
        distortion = 1000 * (1 - (found * self.dense).sum(-1))
        first, second = found.chunk(2)
        rho = spearmanr((first * second).sum(-1).numpy(), self.labels).statistic
        return [interval(distortion.reshape(2, ROWS).mean(0).numpy()), f"{100 * rho:.2f}"]

    def batches(self, texts: Sequence[str], size: int) -> Iterator[tuple[list[int], BatchEncoding]]:
        """Yield the places and the inputs of batches of texts of similar length."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for begin in range(0, len(order), size):
            places = order[begin : begin + size]
            some = [texts[place] for place in places]
            yield places, self.tokenizer(some, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


class Answers:
    """Scores classifiers by their answers on the development set and on further rows, which no training saw.

    Args:
        cut: whether the model to round has only the words of the training texts.
        further: whether further rows are answered too.
    """

    def __init__(self, folder: str, dataset: str, task: str, *, cut: bool = False, further: bool = True) -> None:
        options = argparse.Namespace(dataset_name=dataset, task_name=task, **DEFAULTS[task])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.task = answered(options, tokenizer, further)
        self.heads = ("KL", *self.task.sets, *[f"{name}, less dense" for name in list(self.task.sets)[1:]])
        dense = self.load(folder)
        self.dense = {name: self.task.logits(dense, rows) for name, rows in self.task.sets.items()}
        if cut:
            rows = load_dataset(dataset, task, split="train")
            rows = rows.select(range(DEFAULTS[task]["train_rows"] or len(rows)))
            texts = (text for column in self.task.known.sentences for text in rows[column])
            dense, tokenizer = hfc.cut_vocabulary(dense, tokenizer, texts)
            self.task = answered(options, tokenizer, further)
        loader = DataLoader(self.task.train, collate_fn=DataCollatorWithPadding(self.task.tokenizer))
        self.shot = Shot(dense, sample_batches(loader, dense), token_counts(loader, dense.config.vocab_size))

    def load(self, folder: str) -> PreTrainedModel:
        exact = {"dtype": torch.float32, "attn_implementation": "eager"}
        return AutoModelForSequenceClassification.from_pretrained(folder, **exact).eval()

    def scores(self, folder: str) -> list[str]:
        model, cells, apart = self.load(folder), [], []
        for name, rows in self.task.sets.items():
            found, labels = self.task.logits(model, rows), np.array(rows["label"])
            if not cells:
                cells.append(interval(1000 * divergence(self.dense[name], found)))
            else:
                right, before = (answers.argmax(-1) == labels for answers in (found, self.dense[name]))
                apart.append(interval(100 * (right.astype(float) - before), "+.2f"))
            cells.append(f"{self.task.score(found, labels):.2f}")
        return cells + apart


def answered(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, further: bool) -> Task:
    """Return the task with the rows that are answered here."""
    task = Task(options, tokenizer)
    names = [name for name in ("dev", "further") if name in task.sets][: 1 + further]
    task.sets = {name: task.sets[name].select(range(min(FURTHER, len(task.sets[name])))) for name in names}
    return task


def divergence(dense: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the Kullback-Leibler divergence of each row's answer from the dense model's, in nats."""
    expected, found = log_softmax(dense.astype(float), -1), log_softmax(logits.astype(float), -1)
    return (np.exp(expected) * (expected - found)).sum(-1)


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
