"""The order of rows in a packed tensor: rows of a similar spread stand together, because they share a code."""

import numpy as np
from jaxtyping import Int, Int8, UInt, UInt8

from hf_compress.packing.coding import expected_bytes

# The runs of values that share a scale stand in their own order, in that of their scales, or in that of their spread,
# of which one byte per run is stored.
ORDERS = ("own", "scales", "spread")
SPREAD_STEPS = 4  # Per factor of 2 of the mean square of a run.


def in_order_of(keys: UInt[np.ndarray, " runs"]) -> Int[np.ndarray, " runs"]:
    """Return the numbers of the runs, the run with the smallest key first, equal ones in their own order."""
    return np.argsort(keys, kind="stable")


def in_best_order(
    words: UInt[np.ndarray, " count"], scales: UInt[np.ndarray, " runs"], width: int, group: int
) -> tuple[int, np.ndarray | None, UInt[np.ndarray, " count"]]:
    """Return the number of the order that is expected to take the fewest bytes, its stored keys, and `words` in it.

    Runs with a similar spread share a Huffman code. Runs with a similar scale have a similar spread if the scale is
    that of the largest value. If the last run of a row is shorter, runs keep their own order.
    """
    if width % group:
        return 0, None, words
    runs = words.reshape(-1, group)
    keys: dict[int, np.ndarray | None] = {0: None, 1: scales, 2: _spreads(runs.view(np.int8))}
    in_order = {
        order: words if key is None else runs[in_order_of(key)].reshape(-1)
        for order, key in keys.items()
        if key is None or (key != key[:1]).any()
    }
    costs = {order: expected_bytes(found) for order, found in in_order.items()}
    if 2 in costs and keys[2] is not None:
        costs[2] += expected_bytes(keys[2])
    best = min(costs, key=lambda order: costs[order])
    return best, keys[2] if best == 2 else None, in_order[best]


def _spreads(runs: Int8[np.ndarray, "runs width"]) -> UInt8[np.ndarray, " runs"]:
    """Return the mean square of each run in steps of a factor of 2**(1/4), from 0 for the smallest, as bytes."""
    squares = np.einsum("rw,rw->r", runs, runs, dtype=np.int64) / max(runs.shape[1], 1)
    logarithms = np.round(SPREAD_STEPS * np.log2(np.maximum(squares, 2.0**-10)))
    return np.clip(logarithms - logarithms.min(initial=0), 0, 255).astype(np.uint8)
