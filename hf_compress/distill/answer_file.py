"""A file of a teacher's answers: an Arrow stream, and behind it a trailer that tells whether the file is whole.

The trailer is JSON with the key of the file and a checksum of each block, followed by its length and a magic number.
Arrow readers stop at the end of the stream, so they never see it.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

MAGIC = b"HFCT"
BLOCK = 2**24
_END = struct.Struct("<I4s")


def write(path: Path, key: str, batches: Iterator[pyarrow.RecordBatch]) -> None:
    """Write `batches` to `path`. The file gets its name when it is complete; an incomplete one is removed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "r+b") as file:
            first = next(batches)
            with pyarrow.ipc.new_stream(file, first.schema) as stream:
                stream.write_batch(first)
                for batch in batches:
                    stream.write_batch(batch)
            end = file.tell()
            file.seek(0)
            trailer = json.dumps({"key": key, "bytes": end, "blocks": list(_checksums(file, end))}).encode()
            file.seek(end)
            file.write(trailer + _END.pack(len(trailer), MAGIC))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def damage(path: Path, key: str) -> str | None:
    """Return what is wrong with the file at `path`, or None if it is whole and belongs to `key`. Reads all of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size))
        ending = file.read()
        length, magic = _END.unpack(ending) if len(ending) == _END.size else (0, b"")
        if magic != MAGIC or length + _END.size > size:
            return "its end is missing"
        file.seek(size - _END.size - length)
        try:
            trailer = json.loads(file.read(length))
            found, end, blocks = trailer["key"], trailer["bytes"], trailer["blocks"]
        except (ValueError, KeyError, TypeError):
            return "its trailer cannot be read"
        if found != key:
            return "it holds the answers of another teacher or about other rows"
        if end != size - _END.size - length:
            return f"it has {size:,} bytes instead of {end + _END.size + length:,}"
        file.seek(0)
        for number, checksum in enumerate(_checksums(file, end)):
            if number >= len(blocks) or blocks[number] != checksum:
                return f"the checksum of block {number + 1} of {len(blocks)} does not match"
    return None


def column(answers: Sequence[np.ndarray[Any, Any] | None]) -> pyarrow.Array:
    """Return arrays of equal depth as one Arrow column of nested lists, None as null."""
    given = [answer for answer in answers if answer is not None]
    values = np.concatenate(given)
    inner = pyarrow.array(values.reshape(-1))
    for width in reversed(values.shape[1:]):
        inner = pyarrow.ListArray.from_arrays(np.arange(0, len(inner) + 1, width, dtype=np.int32), inner)
    ends = np.cumsum([0, *(0 if answer is None else len(answer) for answer in answers)]).astype(np.int32)
    nulls = None if len(given) == len(answers) else pyarrow.array([answer is None for answer in answers])
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), inner, mask=nulls)


def _checksums(file: Any, end: int) -> Iterator[str]:
    """Yield a checksum of each block of the first `end` bytes."""
    for start in range(0, end, BLOCK):
        yield hashlib.sha256(file.read(min(BLOCK, end - start))).hexdigest()[:16]
