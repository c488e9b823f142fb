"""The folder that `--distill_cache` names, and its files: locked while written, checked when read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from filelock import FileLock
from transformers.utils import logging

from hf_compress.distill import answer_file

AUTO = "auto"
OPTION = "`--distill_cache`"
NEXT = "Remove what is there under this name, or give another folder."

logger = logging.get_logger(__name__)


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
def kept_answers(folder: Path, key: str, ask: Callable[[], Iterator[pyarrow.RecordBatch]]) -> Iterator[Path]:
    """Give the path of the file of answers named `key`, under a lock; write it if it is missing or damaged.

    Args:
        folder: from `answer_folder`.
        key: a digest of all that the answers depend on.
        ask: returns the answers. Called if there is no whole file.

    Raises:
        ValueError: the file cannot be written or read.
    """
    path = folder / f"teacher-{key}.arrow"
    with _locked(path.with_suffix(".lock")):
        wrong = _damage(path, key)
        if wrong is not None:
            logger.warning(f"{OPTION}: {path} is damaged: {wrong}. The teacher is asked again.")
        if wrong is not None or not path.exists():
            batches = ask()
            try:
                answer_file.write(path, key, batches)
            except OSError as error:
                raise ValueError(
                    f"{OPTION} cannot write {path}: {error}. Free some space, give another folder, or leave the "
                    "option out."
                ) from error
        yield path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
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


def _damage(path: Path, key: str) -> str | None:
    """Return what is wrong with the file `path`; None if it is whole, or missing."""
    if not path.exists():
        return None
    try:
        return answer_file.damage(path, key)
    except OSError as error:
        raise ValueError(f"{OPTION} cannot read {path}: {error.strerror}. {NEXT}") from error
