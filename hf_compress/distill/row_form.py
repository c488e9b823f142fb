"""The form of the rows of a training set: its columns, and how a row that is made later gets the same ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from hf_compress.distill.teacher_only import COLUMN, OPTIONS
from hf_compress.models.heads import IGNORED, Head

Row = dict[str, Any]


@dataclass(frozen=True)
class RowForm:
    """What all rows of a training set have in common.

    Args:
        head: of the model that is trained.
        tokenizer: that made the rows.
        labels: the names of the columns with labels.
        template: one row, for the shape of its labels.
        length: the tokens of the longest row, with special tokens and padding.
        fixed: whether all rows have this length, so that new rows are padded to it.
    """

    head: Head
    tokenizer: Any
    labels: Sequence[str]
    template: Row
    length: int
    fixed: bool

    @classmethod
    def of(cls, dataset: Any, head: Head, tokenizer: Any, label_names: Iterable[str]) -> "RowForm":
        """Return the form of the rows of a `datasets.Dataset` without format.

        Args:
            label_names: the names that columns with labels may have.

        Raises:
            ValueError: there are no token ids, or no labels.
        """
        labels = [name for name in dataset.column_names if name in set(label_names)]
        if head.main_input not in dataset.column_names or not labels or not len(dataset):
            raise ValueError(
                f"{OPTIONS} need training rows with `{head.main_input}` and labels; got {len(dataset)} rows with the "
                f"columns {', '.join(dataset.column_names)}. Tokenize the rows beforehand, with `Dataset.map`."
            )
        lengths = {len(ids) for ids in dataset[head.main_input]}
        return cls(head, tokenizer, labels, dataset[0], max(lengths), fixed=len(lengths) == 1)

    def facts(self) -> str:
        """Return what tells one form from another, but for its tokenizer."""
        shape = {name: _zeros(self.template[name]) for name in self.labels if self.head.kind != "token"}
        return repr((self.head, self.labels, shape, self.length, self.fixed))

    def trimmed(self, row: Mapping[str, Any]) -> Row:
        """Return a row without padding."""
        ids = row[self.head.main_input]
        mask = row.get("attention_mask")
        if mask is None:
            own = np.flatnonzero(np.asarray(ids) != self.tokenizer.pad_token_id)
            places = list(range(own[0], own[-1] + 1)) if len(own) else []
        else:
            places = np.flatnonzero(np.asarray(mask)).tolist()
        return {name: self._taken(value, places, len(ids)) for name, value in row.items()}

    def rebuilt(self, row: Mapping[str, Any], ids: Sequence[int], places: Sequence[int]) -> Row:
        """Return a row of other tokens whose values for each token are those at `places` of `row`."""
        length = len(row[self.head.main_input])
        moved = {name: self._taken(value, places, length) for name, value in row.items() if name not in self.labels}
        return moved | {self.head.main_input: list(ids)}

    def unlabelled(self, row: Mapping[str, Any], structure: Bool[np.ndarray, " tokens"]) -> Row:
        """Return a row with placeholders as labels, padded as the training rows are, that only the teacher labels.

        Args:
            row: without padding.
            structure: which tokens of the vocabulary stand around texts; a tagger's teacher is not asked about them.
        """
        done = dict(row) | {COLUMN: True}
        for name in self.labels:
            if self.head.kind == "token":
                done[name] = [IGNORED if structure[token] else 0 for token in row[self.head.main_input]]
            else:
                done[name] = _zeros(self.template[name])
        return self._padded(done) if self.fixed else done

    def _padded(self, row: Row) -> Row:
        length = len(row[self.head.main_input])
        missing, left = self.length - length, getattr(self.tokenizer, "padding_side", "right") == "left"
        if missing <= 0:
            return row
        fill: dict[str, Any] = {
            self.head.main_input: self.tokenizer.pad_token_id or 0,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
            "special_tokens_mask": 1,
            **(dict.fromkeys(self.labels, IGNORED) if self.head.kind == "token" else {}),
        }
        for name, value in row.items():
            if self._is_per_token(name, value, length):
                padding = [fill.get(name, _zeros(value[0]) if value else 0)] * missing
                row[name] = [*padding, *value] if left else [*value, *padding]
        return row

    def _taken(self, value: Any, places: Sequence[int], length: int) -> Any:
        return [value[place] for place in places] if isinstance(value, list) and len(value) == length else value

    def _is_per_token(self, name: str, value: Any, length: int) -> bool:
        if name in self.labels and self.head.kind != "token":
            return False
        return isinstance(value, list) and len(value) == length


def _zeros(value: Any) -> Any:
    """Return zeros of the same type, in lists of the same lengths."""
    return [_zeros(one) for one in value] if isinstance(value, list) else type(value)(0)
