"""The sample of the training set: the same rows everywhere, and no trace of having been taken."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import BertForSequenceClassification, DataCollatorForLanguageModeling, default_data_collator

from hf_compress.rate import sample_batches, token_counts

MakeBert = Callable[..., BertForSequenceClassification]
ROWS = [{"input_ids": [number % 29, 3, 4], "attention_mask": [1, 1, 0]} for number in range(40)]


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Rows without a length."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(ROWS)


@pytest.fixture
def model(make_bert: MakeBert) -> BertForSequenceClassification:
    return make_bert(num_hidden_layers=1)


def first_tokens(batches: object) -> list[int]:
    return sorted(int(ids[0]) for batch in batches for ids in batch["input_ids"])  # type: ignore[attr-defined]


def test_rows_are_spread_evenly_over_the_dataset(model: BertForSequenceClassification) -> None:
    loader = DataLoader(ROWS, collate_fn=default_data_collator)  # type: ignore[arg-type]
    assert first_tokens(sample_batches(loader, model, rows=4)) == sorted([0, 10, 20, 30 % 29])
    assert len(first_tokens(sample_batches(loader, model, rows=99))) == len(ROWS)


def test_an_iterable_dataset_gives_its_first_rows(model: BertForSequenceClassification) -> None:
    loader = DataLoader(Stream(), collate_fn=default_data_collator)
    assert first_tokens(sample_batches(loader, model, rows=5)) == [0, 1, 2, 3, 4]


def test_random_collators_draw_the_same_and_leave_no_trace(
    model: BertForSequenceClassification, tiny_tokenizer: object
) -> None:
    collator = DataCollatorForLanguageModeling(tiny_tokenizer, mlm_probability=0.5)  # type: ignore[arg-type]
    rows = [{"input_ids": list(range(5, 15))} for _ in range(8)]
    loader = DataLoader(rows, collate_fn=collator)  # type: ignore[arg-type]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    (one,) = sample_batches(loader, model)
    torch.manual_seed(99)
    (two,) = sample_batches(loader, model)
    torch.set_rng_state(states[2])
    list(sample_batches(loader, model))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_columns_that_the_model_does_not_take_are_left_out(model: BertForSequenceClassification) -> None:
    rows = [{"input_ids": [1, 2], "teacher_logits": [0.5, 0.5]}]
    (batch,) = sample_batches(DataLoader(rows, collate_fn=default_data_collator), model)  # type: ignore[arg-type]
    assert list(batch) == ["input_ids"]


def test_a_collator_without_inputs_is_refused(model: BertForSequenceClassification) -> None:
    loader = DataLoader([{"pixels": [1.0]}], collate_fn=default_data_collator)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give the model no input: its collator makes pixels"):
        list(sample_batches(loader, model))


def test_tokens_are_counted_without_padding() -> None:
    counts = token_counts(DataLoader(ROWS), tokens=29)  # type: ignore[arg-type]
    assert counts is not None and int(counts.sum()) == 2 * len(ROWS) and int(counts[4]) == 2
    assert token_counts(DataLoader([{"text": "one"}]), tokens=29) is None  # type: ignore[arg-type]
