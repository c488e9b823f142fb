"""Locks on folders: they tell whether a live process works in a folder, and they end with that process."""

import os
import sys
from pathlib import Path

if sys.platform != "win32":  # Windows has no such locks.
    import fcntl


def lock(folder: Path, *, shared: bool = False) -> int | None:
    """Lock an existing folder for this process, and return the open folder, which `unlock` takes.

    The lock is on the folder itself, so it leaves no file behind, and it ends with a killed process. Returns None
    where the file system or the operating system has no such locks.

    Args:
        shared: whether others may hold a shared lock at the same time.

    Raises:
        BlockingIOError: another process has locked the folder, or this one has, earlier.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hf_compress.locks import lock, unlock
        >>> folder = Path(tempfile.mkdtemp())
        >>> unlock(lock(folder))
    """
    if sys.platform == "win32":
        return None
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise
    except OSError:
        os.close(opened)
        return None
    return opened


def unlock(opened: int | None) -> None:
    """Give up a lock that `lock` returned."""
    if opened is not None:
        os.close(opened)
