"""The chunks of a packed tensor, decoded to their places in the weight."""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from hf_compress.packing.coding import Sections, decode

if TYPE_CHECKING:
    from hf_compress.packing.packed import Packed

CHUNK_HEAD = struct.Struct("<IB")


def decode_chunks(
    packed: "Packed",
    scale: Tensor | None,
    order: np.ndarray | None,
    target: np.ndarray,
    dtype: torch.dtype | None,
    chunks: Sequence[tuple[int, memoryview]],
) -> None:
    """Decode `chunks` and write their values, or weights in `dtype`, to their places in `target`."""
    plain = dtype is None or (scale is None and dtype == packed.dtype)
    for begin, chunk in chunks:
        count = min(packed.step, packed.numel - begin)
        here = target[begin : begin + count]
        if order is None and plain:
            _decode(chunk, here)
            continue
        words = np.empty(count, dtype=f"<u{packed.dtype.itemsize}")
        _decode(chunk, words)
        if order is None:
            here[:] = _converted(packed, scale, order, words, begin, cast(torch.dtype, dtype))
        else:
            first, runs = begin // packed.group, count // packed.group
            found = words if plain else _converted(packed, scale, order, words, begin, cast(torch.dtype, dtype))
            target.reshape(-1, packed.group)[order[first : first + runs]] = found.reshape(runs, packed.group)


def _converted(
    packed: "Packed", scale: Tensor | None, order: np.ndarray | None, words: np.ndarray, begin: int, dtype: torch.dtype
) -> np.ndarray:
    """Return the bits in `dtype` of the weights whose stored values, from `begin` on, are `words`."""
    if scale is None:
        return words_of(torch.from_numpy(words.view(np.uint8)).view(packed.dtype).to(dtype))
    width = packed.width if order is None else packed.group
    runs = words.view(np.int8).reshape(-1, width)
    rows = slice(begin // width, begin // width + len(runs))
    if order is None:
        factors = scale.numpy()[rows]
        if factors.shape[1] > 1:
            factors = np.repeat(factors, packed.group, axis=1)[:, :width]
    else:
        factors = scale.numpy().reshape(-1, 1)[order[rows]]
    # Products are computed in float32 for every `dtype`, and rounded once.
    products = runs.astype(np.float32)
    with np.errstate(over="ignore"):  # Scales that were never trained may overflow.
        products *= factors
    return words_of(torch.from_numpy(products).to(dtype))


def _decode(chunk: memoryview, words: np.ndarray) -> None:
    """Write the words of one chunk, which begins with its head, into `words`."""
    sections = Sections(chunk[CHUNK_HEAD.size :])
    decode(sections, chunk[CHUNK_HEAD.size - 1], words)
    sections.finish()


def words_of(tensor: Tensor) -> np.ndarray:
    """Return the values of `tensor` as a flat array of unsigned integers with the same bits."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().view(f"<u{tensor.dtype.itemsize}")
