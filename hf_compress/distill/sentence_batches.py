"""The texts of a batch of sentence-transformers, and what a model has computed for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_compress.distill.capturing import CAPTURED
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
class Call:
    """What a call of a model has computed.

    Args:
        ids: tokens, of shape (rows, tokens).
        outputs: of the rows.
        captured: what was kept of its layers; None if nothing was.
    """

    ids: Tensor
    outputs: Tensor
    captured: tuple[Any, ...] | None = None


@dataclass
class Noted:
    """What a model has computed with gradients, call by call."""

    calls: list[Call] = field(default_factory=list)

    def of(self, ids: Tensor) -> Call | None:
        """Return what was computed for the rows `ids`, in a call of their own or together with others.

        Args:
            ids: tokens, of shape (rows, tokens). A call with other texts may have padded them further.
        """
        rows, width = ids.shape
        for call in self.calls:
            known = call.ids
            if known is ids:
                return call
            if known.shape[0] % rows or known.shape[1] < width:
                continue
            for begin in range(0, len(known), rows):
                if torch.equal(known[begin : begin + rows, :width], ids):
                    kept = call.captured
                    cut = None if kept is None else tuple(_cut(value, begin, rows, width) for value in kept)
                    return Call(ids, call.outputs[begin : begin + rows], cut)
        return None


def _cut(value: Any, begin: int, rows: int, width: int) -> Any:
    """Return the part of what a layer has computed that belongs to some rows and their first tokens."""
    if isinstance(value, tuple):
        return tuple(_cut(part, begin, rows, width) for part in value)
    part = value[begin : begin + rows]
    return part[..., :width, :width] if part.ndim == 4 else part[:, :width]


@contextmanager
def noting(model: nn.Module, kind: SentenceKind) -> Iterator[Noted]:
    """A context that notes what leaves the last module of a model of sentence-transformers.

    Losses may change it afterwards: MatryoshkaLoss cuts embeddings.
    """
    noted = Noted()

    def note(module: nn.Module, inputs: Any, outputs: Mapping[str, Any]) -> None:
        ids, found = outputs.get(IDS), outputs.get(kind.output)
        if isinstance(found, Tensor) and found.requires_grad and isinstance(ids, Tensor) and ids.dim() == 2:
            noted.calls.append(Call(ids, found))

    def keep(module: nn.Module, inputs: Any, outputs: Mapping[str, Any]) -> None:
        last = noted.calls[-1] if noted.calls else None
        if last is not None and last.captured is None and last.ids is outputs.get(IDS):
            last.captured = outputs.get(CAPTURED)

    hooks = [list(model.children())[-1].register_forward_hook(note), model.register_forward_hook(keep)]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the rows, evenly spaced, or all that there are."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]
