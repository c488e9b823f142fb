"""One packed tensor: a self-describing row of bytes with a checksum. `docs/format.md` specifies it."""

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from hf_compress.packing.coding import (
    CODECS,
    Sections,
    decode_planes,
    encode,
    encode_planes,
    encode_shortest,
)
from hf_compress.packing.ordering import ORDERS, in_best_order, in_order_of
from hf_compress.packing.placing import CHUNK_HEAD, decode_chunks, words_of

MAGIC = b"HFC5"
KINDS: tuple[torch.dtype, ...] = (
    torch.int8,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)
# Values per chunk: so many that chunks add no overhead, and so few that a decoded chunk stays in the cache.
CHUNK = 1 << 18
SMALL = 1 << 14  # Decoding this many values is faster than handing them to another thread.
TOGETHER = 4  # Chunks that a thread decodes at once: fewer would wait for Python's lock, more for the last thread.

INFINITE = 0x7F80  # As the bits of a bfloat16 number; those of NaN and of negative numbers are greater.

# Magic, CRC-32, seal, kind, dimensions, transposed, order, values per scale, values per chunk.
_HEAD = struct.Struct("<4sIIBBBBII")
_SEAL_AT, _CHECKED_FROM = 8, 12


def pack(
    tensor: Shaped[Tensor, "*shape"],
    key: str = "",
    scale: Float[Tensor, "*scales"] | None = None,
    group: int | None = None,
    transposed: bool = False,
) -> UInt8[Tensor, " bytes"]:
    """Return `tensor` as bytes, each chunk in its shortest codec. The same arguments give the same bytes.

    Args:
        tensor: any shape, of one of the dtypes in `KINDS`.
        key: the name of the weight. The checksum covers it, so bytes cannot pass for another weight's.
        scale: float32 scales of shape (rows, groups) with bfloat16 values, if `tensor` is int8. Its first dimension
            counts rows, and all others together are the width of a row. The weight is then the values times their
            scales.
        group: the number of consecutive values of a row that share a scale. By default the whole row.
        transposed: whether the weight is the transpose of `tensor`.

    Example:
        >>> import torch
        >>> from hf_compress.packing import Packed, pack
        >>> Packed.open(pack(torch.tensor([1.0, 0.0, 2.0]))).values()
        tensor([1., 0., 2.])
    """
    words = words_of(tensor)
    width = max(math.prod(tensor.shape[1:]), 1) if scale is not None else 1
    step = max(1, CHUNK // width) * width
    group = 0 if scale is None else min(group or width, width)
    parts = [struct.pack(f"<{tensor.dim()}I", *tensor.shape)]
    order = 0
    if scale is not None:
        scales = words_of(scale.bfloat16())
        assert torch.equal(scale.bfloat16().float(), scale), "scales are rounded as `grids` rounds them"
        order, keys, words = in_best_order(words, scales, width, group)
        parts += [encode_planes(scales), *([] if keys is None else [encode_planes(keys)])]
    for begin in range(0, len(words), step):
        codec, data = encode_shortest(words[begin : begin + step])
        parts.append(CHUNK_HEAD.pack(len(data), codec) + data)
    head = _HEAD.pack(MAGIC, 0, 0, KINDS.index(tensor.dtype), tensor.dim(), transposed, order, group, step)
    packed = bytearray(b"".join([head, *parts]))
    struct.pack_into("<I", packed, 4, _checksum(packed, key))
    return torch.frombuffer(packed, dtype=torch.uint8)


def set_seal(packed: UInt8[Tensor, " bytes"], seal: int) -> None:
    """Write the seal of its checkpoint into a packed tensor, in place."""
    struct.pack_into("<I", packed.numpy().data, _SEAL_AT, seal)


class _Parts(NamedTuple):
    """The contents after the head: scales, the order of the runs that share one (None: as they are), placed chunks."""

    scale: Tensor | None
    order: np.ndarray | None
    chunks: list[tuple[int, memoryview]]


@dataclass(frozen=True)
class Packed:
    """An opened packed tensor: what its head says, and its values on demand.

    Args:
        key, data: the name that it was packed under, and all of its bytes.
        dtype, shape: of the stored values. They are the transpose of the weight if `transposed`.
        checksum: of the key and of all bytes after the seal. It is checked when the values are read.
        seal: a number that binds all tensors of the checkpoint together. `CompressionConfig.seal` computes it.
        order: the number in `ORDERS` of the order of the runs of values that share a scale.
        group, step: how many values share a scale (0 without scales), and how many make a chunk.

    Example:
        >>> import torch
        >>> from hf_compress.packing import Packed, pack
        >>> opened = Packed.open(pack(torch.zeros(3, 4)))
        >>> opened.shape, opened.dtype
        ((3, 4), torch.float32)
    """

    key: str
    data: memoryview
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int
    seal: int
    transposed: bool
    order: int
    group: int
    step: int

    @classmethod
    def open(cls, packed: Tensor, key: str = "", expected: Sequence[int] | None = None) -> "Packed":
        """Open the packed tensor `packed`. Only its head is read.

        Args:
            packed: a row of bytes.
            key: the name that it was packed under.
            expected: the shape of the weight that is needed. Give it if the bytes come from an untrusted source,
                because the head decides the size of later allocations.

        Raises:
            ValueError: the bytes are not a packed tensor of this version, or its shape is not the expected one.
        """
        if packed.dtype != torch.uint8 or packed.dim() != 1:
            kind, shape = str(packed.dtype).removeprefix("torch."), tuple(packed.shape)
            raise ValueError(f"a packed tensor must be a row of bytes, this is {kind} of shape {shape}")
        if len(packed) < _HEAD.size:
            raise ValueError(
                f"a packed tensor must have at least {_HEAD.size} bytes, this has {len(packed)}: it is truncated"
            )
        data = packed.detach().cpu().contiguous().numpy().data.cast("B")
        magic, checksum, seal, kind, dimensions, transposed, order, group, step = _HEAD.unpack_from(data)
        if magic != MAGIC:
            raise ValueError(
                f"a packed tensor must begin with {MAGIC!r}, this begins with {bytes(magic)!r}: it has another "
                "version or is not packed"
            )
        if kind >= len(KINDS) or transposed > 1 or order >= len(ORDERS) or len(data) < _HEAD.size + 4 * dimensions:
            raise ValueError("the head of a packed tensor has values that no version writes: it is damaged")
        shape = struct.unpack_from(f"<{dimensions}I", data, _HEAD.size)
        width = math.prod(shape[1:])
        scaled = KINDS[kind] == torch.int8 and dimensions > 1 and 0 < group <= width and step % width == 0
        ordered = order == 0 or (scaled and width % group == 0)
        if step < 1 or (group and not scaled) or (transposed and dimensions != 2) or not ordered:
            raise ValueError("the head of a packed tensor contradicts itself: it is damaged")
        opened = cls(key, data, KINDS[kind], shape, checksum, seal, bool(transposed), order, group, step)
        if expected is not None and opened.weight_shape != tuple(expected):
            raise ValueError(f"the model needs shape {tuple(expected)}, the packed tensor has {opened.weight_shape}")
        return opened

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.shape)) if self.transposed else self.shape

    @property
    def width(self) -> int:
        """The number of values in a row of integers."""
        return math.prod(self.shape[1:])

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def values(self) -> Shaped[Tensor, "..."]:
        """Return the tensor that was packed, bit for bit.

        Raises:
            ValueError: the bytes are damaged, or those of another weight. All methods that decode raise it.
        """
        return self.begin(None)()

    def weight(self, dtype: torch.dtype) -> Shaped[Tensor, "..."]:
        """Return the weight in `dtype`: the values, times their scales if there are any."""
        return self.begin(dtype)()

    def scale(self) -> Float[Tensor, "rows scales"] | None:
        """Return the float32 scales of the rows (or groups) of integers, or None if there are no scales."""
        self.check()
        return self._parts.scale

    def begin(self, dtype: torch.dtype | None, executor: Executor | None = None) -> Callable[[], Tensor]:
        """Start to decode, and return a function that returns the result.

        Beside the result only chunks are allocated, and the transpose of a transposed weight. Errors may come from the
        returned function.

        Args:
            dtype: of the weight. If None, the result is the values that were packed, without scales.
            executor: decodes in the background. Without it, decoding happens when the function is called.
        """
        background = executor is not None and self.numel > SMALL
        run = cast(Executor, executor).submit if background else partial
        checked, chunks = run(self.check), self._parts.chunks
        result = torch.empty(
            self.shape, dtype=dtype or self.dtype, device="cpu"
        )  # While Transformers loads, the default is "meta".
        place = partial(decode_chunks, self, self._parts.scale, self._parts.order, words_of(result), dtype)
        jobs = [run(place, chunks[at : at + TOGETHER]) for at in range(0, len(chunks), TOGETHER)]

        def finish() -> Tensor:
            for job in (checked, *jobs):  # A damaged tensor may fail anywhere, but its checksum says it best.
                job.result() if isinstance(job, Future) else job()
            return result.t().contiguous() if self.transposed and dtype is not None else result

        return finish

    def codecs(self) -> set[str]:
        """Return the codecs of its chunks."""
        self.check()
        return {CODECS[chunk[CHUNK_HEAD.size - 1]] for _, chunk in self._parts.chunks}

    def bytes_with(self, codec: str) -> int | None:
        """Return the bytes that the tensor would have with all chunks in `codec`, or None if that cannot hold it."""
        words, (_, order, chunks) = words_of(self.values()), self._parts
        if order is not None:
            words = words.reshape(-1, self.group)[order].reshape(-1)
        sizes = [encode(words[begin : begin + self.step], codec) for begin, _ in chunks]
        if any(data is None for data in sizes):
            return None
        now = sum(len(chunk) - CHUNK_HEAD.size for _, chunk in chunks)
        return len(self.data) - now + sum(len(data or b"") for data in sizes)

    def check(self) -> None:
        """Refuse bytes whose checksum does not match, without decoding them."""
        if not self._intact:
            raise ValueError("the checksum of a packed tensor does not match: the file is damaged, download it again")

    @cached_property
    def _intact(self) -> bool:
        return _checksum(self.data, self.key) == self.checksum

    @cached_property
    def _parts(self) -> "_Parts":
        """What follows the head. Nobody may use it before `check`, except to refuse it sooner."""
        try:
            return self._split()
        except ValueError:
            self.check()
            raise

    def _split(self) -> "_Parts":
        sections, scale, order = Sections(self.data[_HEAD.size + 4 * len(self.shape) :]), None, None
        if self.group:
            rows = self.shape[0]
            words = decode_planes(sections, rows * -(-self.width // self.group), 2)
            if not ((words > 0) & (words < INFINITE)).all():
                raise ValueError("a scale is not a positive number: it is damaged")
            scale = torch.from_numpy(words).view(torch.bfloat16).float().view(rows, -1)
            spreads = decode_planes(sections, len(words), 1) if ORDERS[self.order] == "spread" else None
            order = in_order_of(words if spreads is None else spreads) if self.order else None
        return _Parts(scale, order, list(self._walk(sections.data[sections.at :])))

    def _walk(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        at = 0
        for begin in range(0, self.numel, self.step):
            if at + CHUNK_HEAD.size > len(data):
                raise ValueError("a packed tensor ends before its chunks do: it is truncated")
            end = at + CHUNK_HEAD.size + CHUNK_HEAD.unpack_from(data, at)[0]
            yield begin, data[at:end]
            at = end
        if at != len(data):
            raise ValueError(f"the chunks of a packed tensor end at {at} of {len(data)} bytes: it is damaged")


def _checksum(data: bytearray | memoryview, key: str) -> int:
    return zlib.crc32(memoryview(data)[_CHECKED_FROM:], zlib.crc32(key.encode()))
