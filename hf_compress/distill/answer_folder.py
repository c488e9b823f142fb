"""The folder that `--distill_cache` names, and its files: locked while written, checked when read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from hf_compress.distill import answer_file

AUTO = "auto"
OPTION = "`--distill_cache`"
NEXT = "Remove what is there under this name, or give another folder."


def answer_folder(name: str) -> Path:
    """Return the folder that `--distill_cache` names; create it if needed."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "teachers" if name == AUTO else Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`--distill_cache {name}` must be a writable folder: {error}. Give another folder, or `{AUTO}`."
        ) from error
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, so that one process at a time writes the answers beside it."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        raise ValueError(f"{OPTION} cannot use {path} as a lock: {error.strerror}. {NEXT}") from error
    try:
        yield
    finally:
        lock.release()


def damage(path: Path, key: str) -> str | None:
    """Return what is wrong with the file `path`; None if it is whole, or missing."""
    if not path.exists():
        return None
    try:
        return answer_file.damage(path, key)
    except OSError as error:
        raise ValueError(f"{OPTION} cannot read {path}: {error.strerror}. {NEXT}") from error
