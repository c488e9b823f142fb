"""Rows of an evaluation set that a training has seen too: found by what the rows hold, not by where they are."""

from collections.abc import Iterator, Sequence
from typing import Any

BATCH = 1000


def unseen_rows(rows: Any, seen: Any, columns: Sequence[str]) -> list[int]:
    """Return the indices of the `rows` that are not among `seen`, in their order.

    Args:
        rows: a `datasets.Dataset`.
        seen: another one, for example of the training rows.
        columns: two rows are the same if they agree in these columns, which both datasets have, unless one is empty.

    Example:
        >>> from datasets import Dataset
        >>> from hf_compress import unseen_rows
        >>> rows = Dataset.from_dict({"text": ["a film", "a song", "a play"], "label": [0, 1, 0]})
        >>> unseen_rows(rows, Dataset.from_dict({"text": ["a song"]}), ["text"])
        [0, 2]
    """
    places: dict[str, list[int]] = {}
    for index, key in enumerate(_keys(rows, columns)):
        places.setdefault(key, []).append(index)
    for key in _keys(seen, columns):
        places.pop(key, None)
    return sorted(index for indices in places.values() for index in indices)


def _keys(rows: Any, columns: Sequence[str]) -> Iterator[str]:
    """Yield what each row holds in the columns, as text."""
    if not len(rows):
        return  # `Dataset.map` may have taken the columns of an empty dataset.
    for batch in rows.with_format(None).select_columns(list(columns)).iter(BATCH):
        yield from map(repr, zip(*(batch[name] for name in columns), strict=True))
