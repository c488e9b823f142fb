"""Tensors as few bytes, without loss: the packed tensor, its codecs, and the entropy that bounds them.

A packed tensor is one self-describing run of bytes, little-endian:

    magic "HFC1" | kind u8 | codec u8 | dimensions u8 | 0 | CRC-32 of the rest u32 | shape u32 each | payload

A payload is one or more sections, each a u32 length, a u8 (0: as it is, 1: zstandard) and its bytes. Codec 0 has the
symbols: bytes of integers, or the byte planes of floats, one section each. Codec 1 has first one bit a symbol, least
significant first, 1 where it is not zero, and then the symbols that are not zero in the same way.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from jaxtyping import Shaped, UInt8
from torch import Tensor

MAGIC = b"HFC1"
KINDS: tuple[torch.dtype, ...] = (torch.int8, torch.float32, torch.float16, torch.bfloat16)
CODECS: tuple[str, ...] = ("symbols", "mask")
ZSTD_LEVEL = 9

_FIXED = struct.Struct("<4sBBBBI")
_SECTION = struct.Struct("<IB")


@dataclass(frozen=True)
class Declared:
    """What the head of a packed tensor says, before anything is decoded."""

    dtype: torch.dtype
    codec: str
    shape: tuple[int, ...]
    payload_at: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def pack(tensor: Shaped[Tensor, "*shape"]) -> UInt8[Tensor, " bytes"]:
    """The bytes of the shortest codec for `tensor`, an int8 or floating-point tensor of at most 255 dimensions.

    The same tensor gives the same bytes.
    """
    symbols = _symbols(tensor)
    payloads = [_sections(_planes(symbols)), _sections([_mask(symbols), *_planes(symbols[symbols.any(axis=1)])])]
    codec = min(range(len(CODECS)), key=lambda index: len(payloads[index]))
    body = struct.pack(f"<{tensor.dim()}I", *tensor.shape) + payloads[codec]
    head = _FIXED.pack(MAGIC, KINDS.index(tensor.dtype), codec, tensor.dim(), 0, zlib.crc32(body))
    return torch.frombuffer(bytearray(head + body), dtype=torch.uint8)


def declared(packed: UInt8[Tensor, " bytes"]) -> Declared:
    """The head of a packed tensor.

    Raises:
        ValueError: these bytes are no packed tensor of a version, kind and codec that we know, or were changed.
    """
    data = _bytes(packed)
    if len(data) < _FIXED.size:
        raise ValueError(f"a packed tensor has at least {_FIXED.size} bytes, this has {len(data)}: it is truncated")
    magic, kind, codec, dimensions, _, checksum = _FIXED.unpack_from(data)
    payload_at = _FIXED.size + 4 * dimensions
    if magic != MAGIC:
        raise ValueError(
            f"a packed tensor begins with {MAGIC!r}, this with {magic!r}: another version or not one of ours"
        )
    if kind >= len(KINDS) or codec >= len(CODECS) or payload_at > len(data):
        raise ValueError(
            f"a packed tensor has kind < {len(KINDS)} and codec < {len(CODECS)}, this has {kind} and {codec}"
        )
    if zlib.crc32(data[_FIXED.size :]) != checksum:
        raise ValueError("the checksum of a packed tensor does not match: the file is damaged, download it again")
    shape = struct.unpack_from(f"<{dimensions}I", data, _FIXED.size)
    return Declared(KINDS[kind], CODECS[codec], shape, payload_at)


def unpack(packed: UInt8[Tensor, " bytes"], shape: Sequence[int] | None = None) -> Shaped[Tensor, "..."]:
    """The tensor that `pack` was given; nothing larger than its declared shape is allocated on the way.

    Args:
        shape: what the caller expects; another declared shape is refused before anything is allocated.

    Raises:
        ValueError: the bytes are damaged, hostile or of another shape.
    """
    head = declared(packed)
    if shape is not None and tuple(shape) != head.shape:
        raise ValueError(f"the model needs shape {tuple(shape)}, the packed tensor has {head.shape}")
    width, count = head.dtype.itemsize, head.numel
    sections = _Sections(_bytes(packed), head.payload_at)
    if head.codec == "symbols":
        symbols = _from_planes([sections.read(count) for _ in range(width)])
    else:
        bits = np.frombuffer(sections.read((count + 7) // 8), dtype=np.uint8)
        kept = np.unpackbits(bits, count=count, bitorder="little").astype(bool)
        filled = int(np.count_nonzero(kept))
        symbols = np.zeros((count, width), dtype=np.uint8)
        symbols[kept] = _from_planes([sections.read(filled) for _ in range(width)])
    sections.finish()
    return torch.from_numpy(symbols.reshape(-1)).view(head.dtype).reshape(head.shape)


def entropy_bytes(tensor: Shaped[Tensor, "*shape"]) -> float:
    """Shannon's order-0 bound, in bytes, on coding the values of an integer tensor independently of each other."""
    _, counts = torch.unique(tensor, return_counts=True)
    share = counts.double() / max(tensor.numel(), 1)
    return float(-(share * share.log2()).sum()) * tensor.numel() / 8


def _symbols(tensor: Tensor) -> np.ndarray:
    """The tensor as (numel, bytes a value) bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(flat.numel(), tensor.dtype.itemsize)


def _planes(symbols: np.ndarray) -> list[bytes]:
    """Byte by byte of all symbols: in floats the exponents are alike, the low mantissa bytes are noise."""
    return [np.ascontiguousarray(symbols[:, plane]).tobytes() for plane in range(symbols.shape[1])]


def _from_planes(planes: list[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(plane, dtype=np.uint8) for plane in planes], axis=1)


def _mask(symbols: np.ndarray) -> bytes:
    return np.packbits(symbols.any(axis=1), bitorder="little").tobytes()


def _sections(parts: list[bytes]) -> bytes:
    coded = []
    for part in parts:
        squeezed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(part)
        method, data = (1, squeezed) if len(squeezed) < len(part) else (0, part)
        coded.append(_SECTION.pack(len(data), method) + data)
    return b"".join(coded)


class _Sections:
    """The sections of a payload, read one after the other, each of a length that is known beforehand."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at

    def read(self, expected: int) -> bytes:
        if self.at + _SECTION.size > len(self.data):
            raise ValueError("a packed tensor ends before its sections do: it is truncated")
        length, method = _SECTION.unpack_from(self.data, self.at)
        begin = self.at + _SECTION.size
        self.at = begin + length
        part = self.data[begin : self.at]
        if len(part) != length or method > 1:
            raise ValueError(
                f"a section of {length} bytes (method {method}) does not fit a packed tensor: it is damaged"
            )
        content: bytes | memoryview = _decompress(part, expected) if method == 1 else part
        if len(content) != expected:
            raise ValueError(f"a section should hold {expected} bytes and holds {len(content)}: it is damaged")
        return bytes(content)

    def finish(self) -> None:
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes follow the last section of a packed tensor")


def _decompress(part: memoryview, expected: int) -> bytes:
    try:
        # zstandard allocates what the frame claims, so the claim is checked first.
        if zstandard.frame_content_size(part) != expected:
            raise ValueError(f"a section claims another size than the {expected} bytes declared: it is damaged")
        return zstandard.ZstdDecompressor().decompress(part)
    except zstandard.ZstdError as error:
        raise ValueError(f"a section of a packed tensor does not decompress: {error}") from error


def _bytes(packed: Tensor) -> memoryview:
    return packed.detach().cpu().contiguous().numpy().data.cast("B")
