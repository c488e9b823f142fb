"""The layout of a safetensors file, so that its tensors can be written one by one."""

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
# Bytes to which PyTorch aligns the tensors that it allocates. The last bit of a product may depend on it.
ALIGNED = 64


def ordered(layout: Layout) -> list[str]:
    """Return the names in the order of the file, which may have no gaps.

    Tensors whose bytes are a multiple of 64 come first, so they are as aligned in a mapped file as in memory. Of the
    rest, those of wide numbers come first, so that all are at least as aligned as their numbers.
    """
    return sorted(layout, key=lambda name: (_size(layout, name) % ALIGNED > 0, -layout[name][0].itemsize, name))


def header_of(layout: Layout) -> tuple[bytes, int]:
    """Return the head of a safetensors file of these tensors, and the bytes of the whole file.

    Example:
        >>> import torch
        >>> from hf_compress.checkpoint.layout import header_of
        >>> head, size = header_of({"bias": (torch.float32, (3,))})
        >>> size - len(head)
        12
    """
    entries, at = {}, 0
    for name in ordered(layout):
        dtype, shape = layout[name]
        end = at + _size(layout, name)
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + at


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor as a file holds them."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _size(layout: Layout, name: str) -> int:
    dtype, shape = layout[name]
    return dtype.itemsize * math.prod(shape)
