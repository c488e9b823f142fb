"""The claim of a run on its output folder, so that a second run is refused at its start and not at its end."""

from pathlib import Path

from transformers.utils import logging

from hf_compress.checkpoint.aside import sweep
from hf_compress.locks import lock, unlock

logger = logging.get_logger(__name__)

FOLDER = "compressed"  # Of the result, in the output folder of the run.

# The open folders that this process has locked.
_CLAIMED: dict[Path, int] = {}


def claim(folder: str | Path) -> None:
    """Claim `folder`, which is created if needed, for this process, until it ends or calls `release`.

    The claim is a lock on the folder itself, so it leaves no file behind and ends with a killed process. Claims of one
    process do not conflict. Where the file system or the operating system has no such locks, nothing is claimed. What
    killed processes left half-written in the folder and in its result is removed.

    Raises:
        ValueError: another process has claimed the folder.

    Example:
        >>> import tempfile
        >>> from hf_compress.launch.claim import claim, release
        >>> folder = tempfile.mkdtemp()
        >>> claim(folder)
        >>> release(folder)
    """
    path = Path(folder).resolve()
    if path in _CLAIMED:
        return
    path.mkdir(parents=True, exist_ok=True)
    try:
        opened = lock(path)
    except BlockingIOError as error:
        raise ValueError(
            f"`--output_dir {folder}` is in use by another run. Choose another output folder, or wait for that run."
        ) from error
    if opened is None:
        logger.info(f"{folder} cannot be locked, so a second run there would not be noticed.")
        return
    _CLAIMED[path] = opened
    for place in (path, path / FOLDER):
        sweep(place)


def release(folder: str | Path) -> None:
    """Give up the claim on `folder`, if this process has one."""
    opened = _CLAIMED.pop(Path(folder).resolve(), None)
    if opened is not None:
        unlock(opened)
