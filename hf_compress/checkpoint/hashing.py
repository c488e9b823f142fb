"""The SHA-256 of large files, which is remembered until a file changes."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

SETTLED = 2 * 10**9  # ns. A younger file may change again without another time of change, so it is not remembered.


def file_hash(path: Path, memory: Path) -> str:
    """Return the SHA-256 of a file as 64 digits. It is read again only if the file has changed since.

    A file has changed if its inode, size, or time of change differs. The last is set by the operating system.

    Args:
        path: of the file.
        memory: the folder of what is remembered. If it cannot be written, every call reads the file.

    Raises:
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hf_compress.checkpoint.hashing import file_hash
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> file_hash(path, path.parent / "memory")[:16]
        'e3b0c44298fc1c14'
    """
    state, known = path.stat(), memory / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    stamp = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    with suppress(OSError, ValueError, TypeError):
        *seen, remembered = json.loads(known.read_text("utf-8"))
        if seen == stamp:
            return str(remembered)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - state.st_ctime_ns > SETTLED:
        with suppress(OSError):
            memory.mkdir(parents=True, exist_ok=True)
            aside = memory / f"{known.name}.{os.getpid()}"
            aside.write_text(json.dumps([*stamp, digest]), "utf-8")
            aside.replace(known)
    return digest
