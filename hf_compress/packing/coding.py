"""Lossless codecs for runs of values, their sections, and the entropy that bounds them.

`docs/format.md` specifies the bytes. A value is a word of 1, 2, 4 or 8 bytes. All bits of the word zero are zero.
"""

import struct
import threading
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import zstandard
from jaxtyping import Shaped, UInt
from torch import Tensor

# How small integers share a byte: so many of them are the digits of one number in this base. The last digit says that
# the value stands among the escaped ones.
TUPLES: dict[str, tuple[int, int]] = {"pairs": (2, 16), "triples": (3, 6), "quads": (4, 4)}
# In the order of their numbers in the file. The last word tells how values are coded, the first how positions are.
CODECS: tuple[str, ...] = tuple(
    f"{places}{values}" for places in ("", "mask ", "gaps ") for values in ("planes", *TUPLES)
)
MOST_ESCAPED = 1 / 8  # Of the values. With more of them, tuples are longer than bytes.
LEVEL = 1  # The rest is Huffman coding, which is the same at all levels of zstandard.
# Sizes of a zstandard block, each with its own Huffman code. Short blocks win where the spread of values changes, long
# ones where the table of another code costs more than it saves.
BLOCKS = (1 << 17, 1 << 15, 1 << 14, 1 << 13)
LONG = 255  # A gap of this many zeros is not followed by a value.

_COUNT = struct.Struct("<I")
_SECTION = struct.Struct("<IB")


def _values_of_bytes(size: int, base: int) -> np.ndarray:
    """Return the values in each byte as one item of `size` bytes. An escaped value is `base // 2`, as no other is."""
    digits = np.arange(256)[:, None] // base ** np.arange(size) % base
    kind = {2: "<u2", 3: "V3", 4: "<u4"}[size]
    return (digits - (base // 2 - 1)).astype(np.int8).view(kind).reshape(-1)


_VALUES = {name: _values_of_bytes(size, base) for name, (size, base) in TUPLES.items()}


def encode(words: UInt[np.ndarray, " count"], codec: str) -> bytes | None:
    """Return `words` in `codec`, or None if it cannot hold them. The same words give the same bytes."""
    return _encodings(words, (codec,))[codec]


def encode_shortest(words: UInt[np.ndarray, " count"]) -> tuple[int, bytes]:
    """Return the number of the codec that needs the fewest bytes for `words`, the first of equals, and the bytes."""
    coded = enumerate(_encodings(words, CODECS).values())
    return min(((number, data) for number, data in coded if data is not None), key=lambda pair: len(pair[1]))


def decode(sections: "Sections", codec: int, words: UInt[np.ndarray, " count"]) -> None:
    """Write the words that were encoded into `words`, all of them. Nothing larger is allocated on the way.

    Raises:
        ValueError: the sections hold another number of words.
    """
    if codec >= len(CODECS):
        raise ValueError(
            f"a codec must be a number below {len(CODECS)}, this is {codec}: upgrade hf_compress to read it"
        )
    *places, values = CODECS[codec].split()
    if not places:
        words[:] = _decode_values(sections, len(words), words.itemsize, values)
        return
    kept = _decode_mask(sections, len(words)) if places == ["mask"] else _decode_gaps(sections, len(words))
    # A copy, because torch takes no bytes that it may not write to.
    found = _decode_values(sections, len(kept), words.itemsize, values).copy()
    words.fill(0)
    # Writing at indices is ten times as fast as writing through a mask, and in torch faster than in numpy.
    _signed(words).scatter_(0, torch.from_numpy(kept), _signed(found))


def encode_planes(words: UInt[np.ndarray, " count"]) -> bytes:
    """Return one section per byte of a word: the exponents of floats are alike, their last mantissa bits are noise."""
    planes = words.view(np.uint8).reshape(len(words), words.itemsize)
    return b"".join(_section(np.ascontiguousarray(planes[:, plane])) for plane in range(words.itemsize))


def decode_planes(sections: "Sections", count: int, width: int) -> UInt[np.ndarray, " count"]:
    """Return the words that `encode_planes` encoded."""
    if width == 1:
        return np.frombuffer(sections.read(count), dtype=np.uint8)
    words = np.empty((count, width), dtype=np.uint8)
    for plane in range(width):
        words[:, plane] = np.frombuffer(sections.read(count), dtype=np.uint8)
    return words.reshape(-1).view(f"<u{width}")


def entropy_bytes(tensor: Shaped[Tensor, "*shape"]) -> float:
    """Return Shannon's order-0 bound, in bytes, on coding the values of an integer tensor independently."""
    _, counts = torch.unique(tensor, return_counts=True)
    share = counts.double() / max(tensor.numel(), 1)
    return float(-(share * share.log2()).sum()) * tensor.numel() / 8


def expected_bytes(words: UInt[np.ndarray, " count"]) -> float:
    """Return the order-0 entropy, in bytes, of `words` in blocks with a code each: how long coded bytes will be."""
    block = BLOCKS[1]
    blocks = -(-len(words) // block)
    counts = np.bincount((np.arange(len(words)) // block << 8) + words, minlength=blocks << 8).reshape(blocks, 256)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return float(-(counts * np.log2(shares, where=counts > 0, out=np.zeros_like(shares))).sum()) / 8


class Sections:
    """The sections of a run of bytes, read in order. The length of each is known before it is read."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def read(self, expected: int) -> bytes | memoryview:
        """Return the `expected` bytes of the next section.

        Raises:
            ValueError: it holds another number of bytes, or it is damaged.
        """
        if self.at + _SECTION.size > len(self.data):
            raise ValueError("the data ends before its sections do: it is truncated")
        length, method = _SECTION.unpack_from(self.data, self.at)
        begin = self.at + _SECTION.size
        self.at = begin + length
        part = self.data[begin : self.at]
        if len(part) != length or method > 1:
            raise ValueError(f"a section of {length} bytes (method {method}) does not fit: it is damaged")
        content = _decompress(part, expected) if method == 1 else part
        if len(content) != expected:
            raise ValueError(f"a section should hold {expected} bytes and holds {len(content)}: it is damaged")
        return content

    def number(self, largest: int, what: str) -> int:
        """Read the number of `what`, which is at most `largest`."""
        if self.at + _COUNT.size > len(self.data):
            raise ValueError("the data ends before its sections do: it is truncated")
        (value,) = _COUNT.unpack_from(self.data, self.at)
        self.at += _COUNT.size
        if value > largest:
            raise ValueError(f"{largest} values cannot have {value} {what}: it is damaged")
        return int(value)

    def finish(self) -> None:
        """Refuse bytes after the last section."""
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes follow the last section: it is damaged")


def _encodings(words: np.ndarray, codecs: Sequence[str]) -> dict[str, bytes | None]:
    """Return `words` in each of `codecs`. Sections that several of them share are compressed once."""
    kept = words != 0
    values = {False: words, True: words[kept]}
    written = cache(lambda value, apart: _encode_values(values[apart], value))
    places = cache(lambda coder: coder(kept))
    encodings: dict[str, bytes | None] = {}
    for codec in codecs:
        *place, value = codec.split()
        data = written(value, bool(place))
        if data is not None and place:
            data = places(_encode_mask if place == ["mask"] else _encode_gaps) + data
        encodings[codec] = data
    return encodings


def _encode_values(words: np.ndarray, name: str) -> bytes | None:
    if name == "planes":
        return encode_planes(words)
    if words.itemsize > 1:
        return None
    size, base = TUPLES[name]
    # Unsigned numbers wrap around, so that negative values become digits, and all that are too large stay large.
    digits = words + np.uint8(base // 2 - 1)
    escaped = digits >= base - 1
    if np.count_nonzero(escaped) > MOST_ESCAPED * len(words):
        return None
    digits[escaped] = base - 1
    digits = np.append(digits, np.full(-len(digits) % size, base // 2 - 1, dtype=np.uint8))
    tuples = sum(digits[place::size] * np.uint8(base**place) for place in range(size))
    rest = words[escaped]
    return _COUNT.pack(len(rest)) + _section(np.asarray(tuples, dtype=np.uint8)) + _section(rest)


def _decode_values(sections: Sections, count: int, width: int, name: str) -> np.ndarray:
    if name == "planes":
        return decode_planes(sections, count, width)
    if width > 1:
        raise ValueError(f"values of {width} bytes cannot be stored in {name}: it is damaged")
    size, base = TUPLES[name]
    escapes = sections.number(count, "escapes")
    tuples = np.frombuffer(sections.read(-(-count // size)), dtype=np.uint8)
    values = _VALUES[name].take(tuples).view(np.uint8)[:count]
    rest = np.frombuffer(sections.read(escapes), dtype=np.uint8)
    places = np.flatnonzero(values == np.uint8(base // 2))
    if len(places) != escapes:
        raise ValueError(f"{len(places)} values are escaped and {escapes} are stored: it is damaged")
    values[places] = rest
    return values


def _encode_mask(kept: np.ndarray) -> bytes:
    return _section(np.packbits(kept, bitorder="little"))


def _decode_mask(sections: Sections, count: int) -> np.ndarray:
    bits = np.frombuffer(sections.read((count + 7) // 8), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(bits, count=count, bitorder="little").view(bool))


def _encode_gaps(kept: np.ndarray) -> bytes:
    gaps = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    long = gaps // LONG
    ends = np.cumsum(long + 1)
    coded = np.full(ends[-1] if len(ends) else 0, LONG, dtype=np.uint8)
    coded[ends - 1] = gaps % LONG
    return _COUNT.pack(len(coded)) + _section(coded)


def _decode_gaps(sections: Sections, count: int) -> np.ndarray:
    gaps = np.frombuffer(sections.read(sections.number(count, "gaps")), dtype=np.uint8)
    long = gaps == LONG
    # In torch, running sums of bytes are twice as fast as in numpy. The difference is numpy's, because torch would
    # start threads beside those that decode.
    ends = torch.from_numpy(gaps + ~long.view(bool)).cumsum(0).numpy()
    ends -= 1
    places = ends[~long] if long.any() else ends
    if len(places) and places[-1] >= count:
        raise ValueError(f"a value is at place {places[-1]} of {count}: it is damaged")
    return places


def _signed(words: np.ndarray) -> Tensor:
    """Return `words` as a tensor that shares their memory, signed because torch computes little with unsigned ones."""
    return torch.from_numpy(words.view(f"<i{words.itemsize}"))


def _section(content: np.ndarray) -> bytes:
    plain = content.tobytes()
    longest, *shorter = BLOCKS
    sizes = [longest, *(size for size in shorter if size < len(plain))]
    squeezed = min((_compressed(plain, size) for size in sizes), key=len)
    method, data = (1, squeezed) if len(squeezed) < len(plain) else (0, plain)
    return _SECTION.pack(len(data), method) + data


def _compressed(plain: bytes, size: int) -> bytes:
    """Return one frame of `plain`, in blocks of `size` bytes and a shorter last one."""
    frame, parts = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=len(plain)), []
    last = max(0, len(plain) - 1) // size * size
    for begin in range(0, last, size):
        parts += [frame.compress(plain[begin : begin + size]), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*parts, frame.compress(plain[last:]), frame.flush()])


class _Own(threading.local):
    """A decompressor per thread: making one takes as long as reading a section."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_own = _Own()


def _decompress(part: memoryview, expected: int) -> bytes:
    try:
        # zstandard allocates the size that the frame claims, so the claim is checked first.
        if zstandard.frame_content_size(part) != expected:
            raise ValueError(f"a section claims another size than the {expected} bytes it must have: it is damaged")
        return _own.decompressor.decompress(part)
    except zstandard.ZstdError as error:
        raise ValueError(f"a section does not decompress: {error}") from error
