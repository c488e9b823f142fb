"""The big constants of a graph as parts of the packed file: which tensor each one is made of, and in which layout."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int8, Shaped, UInt8

from hf_compress.packing.packed import Packed

TAKE = ("values", "scales", "weight")
NIBBLES, HALVES = "nibbles", "halves"
NIBBLE = 8  # Added to a value in [-8, 7] so that it fits four bits.
ALIGNMENT = 64  # Of each constant, in bytes: kernels read vectors.


@dataclass(frozen=True)
class Part:
    """One constant of a graph, made of a packed tensor. `docs/format.md` specifies the fields.

    Args:
        tensor: its name in the packed file.
        take: what of it: the stored values (floating-point ones in float32), their scales, or the values times their
            scales.
        transposed: whether rows become columns. A row is all that lies behind the first dimension.
        pack: how two integers share a byte, if they do. "nibbles": consecutive ones, the first in the low bits, as
            signed numbers of four bits. "halves": the first half of a row in the low bits and the second half in the
            high bits, each plus 8.
    """

    tensor: str
    take: str
    transposed: bool = False
    pack: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without those that say that nothing is done."""
        return {name: value for name, value in asdict(self).items() if value}

    def data(self, packed: Packed) -> Shaped[np.ndarray, "..."]:
        """Return the constant, made of the packed tensor of its name."""
        array = _taken(packed, self.take)
        if self.transposed:
            array = np.ascontiguousarray(array.reshape(len(array), -1).T)
        if self.pack is None:
            return array
        return _nibbles(array) if self.pack == NIBBLES else _halves(array)


def find_parts(constants: Mapping[str, bytes], tensors: Iterable[Packed]) -> dict[str, Part]:
    """Return the parts that make `constants`, by their names. Constants that no packed tensor makes are left out.

    They are found by their bytes, so that this need not know what an exporter does to a weight.

    Args:
        constants: the bytes of each, by name.
        tensors: of the packed file.
    """
    names: dict[bytes, list[str]] = {}
    for name, data in constants.items():
        names.setdefault(_digest(data), []).append(name)
    sizes = {len(data) for data in constants.values()}
    found: dict[str, Part] = {}
    for packed in tensors:
        for part in _parts(packed):
            array = part.data(packed)
            if array.nbytes in sizes:
                found |= dict.fromkeys(names.pop(_digest(array.tobytes()), ()), part)
    return found


def places(sizes: Mapping[Part, int]) -> tuple[dict[Part, int], int]:
    """Return where each part of the given number of bytes begins, and the number of bytes of all together.

    Example:
        >>> from hf_compress.export.web_parts import Part, places
        >>> places({Part("weight", "values"): 100, Part("weight", "scales"): 8})[1]
        136
    """
    begins, end = {}, 0
    for part, size in sizes.items():
        begins[part] = -(-end // ALIGNMENT) * ALIGNMENT
        end = begins[part] + size
    return begins, end


def _parts(packed: Packed) -> Iterator[Part]:
    """Yield every constant that could be made of a packed tensor."""
    scaled = packed.scale() is not None
    narrow = scaled and _fits_nibble(_taken(packed, "values"))
    for take in TAKE if scaled else TAKE[:1]:
        for transposed in (False, True) if len(packed.shape) > 1 else (False,):
            for pack in (None, NIBBLES, HALVES) if narrow and take == "values" else (None,):
                yield Part(packed.key, take, transposed, pack)


def _taken(packed: Packed, take: str) -> np.ndarray:
    scale = packed.scale()
    if take == "scales":
        assert scale is not None
        return scale.numpy()
    values = packed.values()
    if values.is_floating_point():
        values = values.float()
    if take == "weight":
        assert scale is not None
        spread = scale.repeat_interleave(packed.group, 1)[:, : packed.width]
        values = values.float() * spread.reshape(values.shape)
    return values.numpy()


def _fits_nibble(integers: Int8[np.ndarray, "rows width"]) -> bool:
    return integers.size > 0 and bool(integers.min() >= -NIBBLE and integers.max() < NIBBLE)


def _nibbles(integers: Int8[np.ndarray, "rows width"]) -> UInt8[np.ndarray, " bytes"]:
    flat = integers.reshape(-1).view(np.uint8)
    even = np.append(flat, np.zeros(len(flat) % 2, np.uint8)) & 15
    return even[::2] | even[1::2] << 4


def _halves(integers: Int8[np.ndarray, "rows width"]) -> UInt8[np.ndarray, "rows half"]:
    unsigned = np.pad((integers + NIBBLE).view(np.uint8), ((0, 0), (0, integers.shape[1] % 2)))
    low, high = np.split(unsigned, 2, axis=1)
    return low | high << 4


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
