"""A teacher's answers as columns of a dataset: their names, and how they are collated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_compress.models.heads import Head

Rows = list[dict[str, Any]]
Batch = Mapping[str, Any]


def answer_columns(head: Head) -> tuple[str, ...]:
    """Return the columns with the teacher's answers to a row: one, or two for question answering (start, end)."""
    return tuple(f"teacher_{name}" for name in head.names)


def token_column(head: Head) -> str | None:
    """Return the column with as many tokens as a row has answers, or None if a row has a single answer."""
    if not head.answers_tokens:
        return None
    return "labels" if head.descriptor.decodes else head.main_input


def check_dataset(dataset: Any, columns: Sequence[str], option: str) -> None:
    """Refuse training data to which an option cannot add columns.

    Args:
        columns: the columns that it adds.
        option: its name, for the errors.

    Raises:
        ValueError: the data is not a `datasets.Dataset`, its rows are made when they are read, or it has a column
            of the same name.
    """
    from datasets import Dataset

    if dataset is None:
        return
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{option} cannot add a column to this `train_dataset`, which must be a `datasets.Dataset`; got "
            f"{type(dataset).__module__.partition('.')[0]}.{type(dataset).__name__}. Make one with "
            "`Dataset.from_list` or by loading without streaming, or leave the option out."
        )
    if dataset.format["type"] == "custom":
        raise ValueError(
            f"{option} cannot be used with `Dataset.set_transform`, which may return different rows every time. "
            "Prepare them with `Dataset.map`, or leave the option out."
        )
    taken = sorted(set(columns) & set(dataset.column_names))
    if taken:
        named = f"column{'s' * (len(taken) > 1)} {', '.join(f'`{name}`' for name in taken)}"
        raise ValueError(
            f"{option} cannot add the {named}, which the `train_dataset` already has. Rename or "
            "remove it (`Dataset.remove_columns`), or leave the option out."
        )


@dataclass
class AnswerCollator:
    """Collate rows with `collator` and add the teacher's answers to the batch.

    Answers to tokens are padded with zeros on the same `side` as the tokens.
    """

    collator: Callable[[Rows], Any]
    head: Head
    side: str
    dtype: torch.dtype

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        columns, tokens = answer_columns(self.head), token_column(self.head)
        batch = self.collator([{name: value for name, value in row.items() if name not in columns} for row in rows])
        for column in columns:
            answers = [torch.as_tensor(np.asarray(row[column]), dtype=self.dtype) for row in rows]
            length = len(answers[0]) if tokens is None else batch[tokens].shape[-1]
            batch[column] = torch.zeros(len(answers), length, *answers[0].shape[1:], dtype=self.dtype)
            for padded, answer in zip(batch[column], answers, strict=True):
                own(padded, len(answer), self.side).copy_(answer)
        return batch


def own(padded: Any, length: int, side: str) -> Any:
    """Return the part of `padded`, a tensor or array of tokens, that is not padding on `side`."""
    return padded[len(padded) - length :] if side == "left" else padded[:length]
