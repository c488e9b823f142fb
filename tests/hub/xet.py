"""Reads what `hf_xet` uploads: xorbs (compressed chunks) and shards (which chunks make which file).

Source: the Xet protocol specification, https://huggingface.co/docs/xet.
"""

import hashlib
import struct
from collections.abc import Mapping

import numpy
import pyarrow

HASH = 32
ENTRY = 48  # Bytes of every record of a shard.
END = b"\xff" * HASH
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
CHUNK_HEADER = 8
PLAIN, LZ4, GROUPED_LZ4 = 0, 1, 2


def hash_name(raw: bytes) -> str:
    """The hash as addresses spell it: four little-endian numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def chunks(xorb: bytes) -> list[bytes]:
    """The contents of the chunks of a xorb."""
    found, offset = [], 0
    while offset + CHUNK_HEADER <= len(xorb) and xorb[offset] == 0:  # After the chunks may come a footer, "XETBLOB".
        packed = int.from_bytes(xorb[offset + 1 : offset + 4], "little")
        scheme = xorb[offset + 4]
        size = int.from_bytes(xorb[offset + 5 : offset + 8], "little")
        offset += CHUNK_HEADER
        found.append(_unpack(xorb[offset : offset + packed], scheme, size))
        offset += packed
    return found


def _unpack(data: bytes, scheme: int, size: int) -> bytes:
    if scheme == PLAIN:
        return data
    plain = pyarrow.decompress(data, decompressed_size=size, codec="lz4", asbytes=True)
    if scheme == LZ4:
        return plain
    # Byte 0 of every four comes first, then byte 1 of every four, and so on.
    grouped = numpy.frombuffer(plain, numpy.uint8)
    whole = numpy.empty(size, numpy.uint8)
    start = 0
    for position in range(4):
        part = whole[position::4]
        part[:] = grouped[start : start + len(part)]
        start += len(part)
    return whole.tobytes()


def files(shard: bytes, xorbs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The contents of the files that a shard describes, by SHA-256.

    Raises:
        KeyError: a file needs a xorb that was never uploaded.
    """
    found: dict[str, bytes] = {}
    offset = ENTRY  # After the header.
    while shard[offset : offset + HASH] != END:
        flags, count = struct.unpack_from("<II", shard, offset + HASH)
        offset += ENTRY
        content = b""
        for index in range(count):
            record = offset + index * ENTRY
            name = hash_name(shard[record : record + HASH])
            _, _, first, last = struct.unpack_from("<IIII", shard, record + HASH)
            content += b"".join(chunks(xorbs[name])[first:last])
        offset += ENTRY * count * (2 if flags & HAS_VERIFICATION else 1)
        offset += ENTRY if flags & HAS_METADATA else 0
        found[hashlib.sha256(content).hexdigest()] = content
    return found
