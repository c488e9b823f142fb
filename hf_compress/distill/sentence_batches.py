"""The texts of a batch of sentence-transformers, and what a model has computed for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_compress.models.sentences import SentenceKind

IDS = "input_ids"
# The entry of a batch with its texts, and the name of the dataset that they are from.
TEXTS, DATASET = "distill_texts", "dataset_name"


@dataclass(frozen=True)
class TextsCollator:
    """A collator that keeps the texts of the rows beside what its own collator makes of them.

    Args:
        own: the collator of the trainer.
    """

    own: Any

    @property
    def valid_label_columns(self) -> Any:
        """The columns that are labels."""
        return self.own.valid_label_columns

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        left = {DATASET, *self.valid_label_columns}
        return {**self.own(rows), TEXTS: {name: [row[name] for row in rows] for name in rows[0] if name not in left}}


def prompt_for(prompts: Any, dataset: str | None, column: str) -> str | None:
    """Return the prompt of a column, by the trainer's argument `prompts`; None if it has none.

    Example:
        >>> from hf_compress.distill.sentence_batches import prompt_for
        >>> prompt_for({"nli": {"anchor": "query: "}}, "nli", "anchor")
        'query: '
    """
    if isinstance(prompts, Mapping):
        prompts = prompts.get(dataset, prompts)
    if isinstance(prompts, Mapping):
        prompts = prompts.get(column)
    return prompts if isinstance(prompts, str) else None


@dataclass
class Noted:
    """What a model has computed with gradients: tokens and outputs of each call."""

    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def of(self, ids: Tensor) -> Tensor | None:
        """Return the outputs for the rows `ids`, computed in a call of their own or together with others.

        Args:
            ids: tokens, of shape (rows, tokens). A call with other texts may have padded them further.
        """
        rows, width = ids.shape
        for known, outputs in self.calls:
            if known is ids:
                return outputs
            if known.shape[0] % rows or known.shape[1] < width:
                continue
            for begin in range(0, len(known), rows):
                if torch.equal(known[begin : begin + rows, :width], ids):
                    return outputs[begin : begin + rows]
        return None


@contextmanager
def noting(model: nn.Module, kind: SentenceKind) -> Iterator[Noted]:
    """A context that notes what leaves the last module of a model of sentence-transformers.

    Losses may change it afterwards: MatryoshkaLoss cuts embeddings.
    """
    noted = Noted()

    def note(module: nn.Module, inputs: Any, outputs: Mapping[str, Any]) -> None:
        ids, found = outputs.get(IDS), outputs.get(kind.output)
        if isinstance(found, Tensor) and found.requires_grad and isinstance(ids, Tensor) and ids.dim() == 2:
            noted.calls.append((ids, found))

    hook = list(model.children())[-1].register_forward_hook(note)
    try:
        yield noted
    finally:
        hook.remove()


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the rows, evenly spaced, or all that there are."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
