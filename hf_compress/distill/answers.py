"""A teacher's answers as columns of a dataset: what they are called, and how batches are made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_compress.models.heads import Head

Rows = list[dict[str, Any]]
Batch = Mapping[str, Any]


def answer_columns(head: Head) -> tuple[str, ...]:
    """The columns with the answers to a row: one, or two for the two ends that question answering looks for."""
    return ("teacher_start_logits", "teacher_end_logits") if head.kind == "question" else ("teacher_logits",)


def token_column(head: Head) -> str | None:
    """The column with as many tokens as there are answers to a row; None where a row has one answer."""
    if head.kind in ("sequence", "choice"):
        return None
    return "labels" if head.kind == "seq2seq" else "input_ids"


@dataclass
class AnswerCollator:
    """Makes of rows with answers what `collator` makes of them without, and puts the answers beside it.

    Answers to tokens are padded with zeros where the tokens are padded, on the same `side`.
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
    """The part of `padded`, a tensor or array of tokens, that is not padding on that `side`."""
    return padded[len(padded) - length :] if side == "left" else padded[:length]
