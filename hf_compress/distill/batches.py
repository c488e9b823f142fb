"""The rows of a micro-batch that are its own: on several processes, the last of an epoch is filled up with others."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor


def without_borrowed(batches: list[Any], limit: int, accelerator: Accelerator) -> tuple[list[Any], bool]:
    """The micro-batches of an optimizer step without borrowed rows, and whether the last one had no others.

    Where the rows of an epoch do not come out even, accelerate fills the last batch of each process with the first
    rows of the epoch, which then count twice; one process alone has a shorter last batch instead. A process whose last
    batch is all borrowed keeps one row of it, for a forward and a backward that the others wait for.

    Args:
        limit: the rows of a full micro-batch of this process.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not batches or not isinstance(batches[-1], Mapping):
        return batches, False
    size = _size(batches[-1])
    # Rows that a collator has packed into fewer cannot be told apart.
    if size != limit or not state.end_of_dataloader or state.remainder <= 0:
        return batches, False
    own = min(max(state.remainder - accelerator.process_index * size, 0), size)
    last = {
        name: value[: max(own, 1)] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batches[-1].items()
    }
    return [*batches[:-1], last], own == 0


def _size(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)
