"""Rows of a training set that tell how much each weight counts."""

import inspect
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import set_seed

from hf_compress.models.heads import bare
from hf_compress.models.sentences import pairs_of, sentence_kind
from hf_compress.models.targets import transformer

ROWS, BATCH = 512, 8
COUNTED = 1 << 15  # Tokens are counted in so many rows.
IDS, MASK = "input_ids", "attention_mask"


def sample_batches(loader: DataLoader[Any], model: nn.Module, rows: int = ROWS) -> Iterator[dict[str, Any]]:
    """Yield inputs of the Transformers model in `model`, made of some rows of the dataset of `loader` by its collator.

    The same rows are taken in every process and in every run: evenly spaced ones, or the first of an iterable dataset.
    Random numbers that collator and dataset draw start from a fixed seed, and the states of the generators are as
    before at the end. Rows of similar length share a batch.

    Args:
        loader: of the training set.
        model: a Transformers model, or what is trained around one: that of sentence-transformers, or SetFit's.
        rows: how many rows to take, if there are so many.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel, default_data_collator
        >>> from hf_compress.rate import sample_batches
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> rows = [{"input_ids": [1, 2, 3]} for _ in range(20)]
        >>> loader = torch.utils.data.DataLoader(rows, collate_fn=default_data_collator)
        >>> batches = sample_batches(loader, BertModel(BertConfig(vocab_size=9, **sizes)))
        >>> [len(batch["input_ids"]) for batch in batches]
        [8, 8, 4]
    """
    device = bare(transformer(model)).device
    with _fixed_random_numbers():
        batches = [loader.collate_fn(some) for some in _alike(_some_rows(loader.dataset, rows))]
    for batch in batches:
        for inputs in _texts(batch, model):
            yield {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def token_counts(
    loader: DataLoader[Any], tokens: int, model: nn.Module | None = None
) -> Int[Tensor, " tokens"] | None:
    """Return how often each of `tokens` tokens occurs in many rows of the dataset of `loader`, without padding.

    None if the rows hold no token numbers, because the collator makes them. Those of sentence-transformers are asked.

    Args:
        loader: of the training set.
        tokens: how many there are.
        model: that is trained, if it may be one of sentence-transformers.

    Example:
        >>> import torch
        >>> from hf_compress.rate import token_counts
        >>> token_counts(torch.utils.data.DataLoader([{"input_ids": [1, 2, 1]}]), tokens=4)
        tensor([0, 2, 1, 0])
    """
    found = torch.zeros(tokens, dtype=torch.long)
    with _fixed_random_numbers():
        rows = _some_rows(loader.dataset, COUNTED)
        if model is not None and sentence_kind(bare(model)) is not None:
            batches = (loader.collate_fn(some) for some in _alike(rows))
            rows = [inputs for batch in batches for inputs in _texts(batch, model)]
        for row in rows:
            if not isinstance(row, Mapping) or IDS not in row:
                return None
            ids = torch.as_tensor(row[IDS]).reshape(-1)
            if MASK in row:
                ids = ids[torch.as_tensor(row[MASK]).reshape(-1).bool()]
            found += torch.bincount(ids.cpu(), minlength=tokens)
    return found


def _some_rows(dataset: Any, count: int) -> Sequence[Any]:
    """Return `count` rows of `dataset`, or all that there are."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        whole = getattr(dataset, "dataset", dataset)  # A shard of it differs from process to process.
        return list(itertools.islice(whole, count))
    size = len(dataset)
    return [dataset[place * size // min(count, size)] for place in range(min(count, size))]


def _alike(rows: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield batches of rows with the same columns and similar lengths."""

    def columns(row: Any) -> tuple[str, ...]:
        return tuple(map(str, row)) if isinstance(row, Mapping) else ()

    def length(row: Any) -> int:
        return len(row[IDS]) if isinstance(row, Mapping) and IDS in row else 0

    for _, group in itertools.groupby(sorted(rows, key=columns), columns):
        some = sorted(group, key=length)
        yield from (some[begin : begin + BATCH] for begin in range(0, len(some), BATCH))


def _texts(batch: Mapping[str, Any], model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the inputs of the Transformers model in `model` that `batch` has: one set, or one for each text of a row.

    sentence-transformers puts the name of the text in front: `anchor_input_ids`, `positive_input_ids`. For a
    `CrossEncoder` the texts themselves are in the batch.
    """
    known = inspect.signature(type(bare(transformer(model))).forward).parameters
    kind = sentence_kind(whole := bare(model))
    if kind is not None and kind.scores_pairs:
        batch = whole.preprocess(pairs_of(batch), prompt=batch.get("prompt"))
    inputs = {name: value for name, value in batch.items() if name in known}
    prefixes = [""] if inputs else [name.removesuffix(IDS) for name in batch if name.endswith(f"_{IDS}")]
    if not prefixes:
        raise ValueError(
            f"The rows of the training set give the model no input: its collator makes {', '.join(batch)}. Train with "
            "a collator that returns the model's inputs by name."
        )
    for prefix in prefixes:
        own = {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
        yield {name: value for name, value in own.items() if name in known}


@contextmanager
def _fixed_random_numbers() -> Iterator[None]:
    """A context whose random numbers are the same in every process, and after which they go on as before it."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries draw from the global state
    with torch.random.fork_rng():
        set_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
