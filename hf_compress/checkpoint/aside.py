"""Files and folders that appear whole or not at all: they are written aside and moved into place at the end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_compress.locks import lock, unlock

PARTIAL = ".partial"  # The end of the name of a folder that is being written.
NEW, OLD = "new", "old"  # In it: what replaces, and what was replaced.


def check_free(folder: str | Path) -> Path:
    """Return the absolute path of `folder`, links resolved, if a new result can be moved there.

    Raises:
        ValueError: `folder` is a file, holds something, or cannot be replaced by a rename.
    """
    path = Path(folder).resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"`{folder}` is a file. Give a new folder for the compressed checkpoint.")
    if path.exists() and any(path.iterdir()):
        raise ValueError(
            f"`{folder}` is not empty. Give a new folder for the compressed checkpoint, or remove that one."
        )
    if path == Path.cwd() or os.path.ismount(path):
        what = "the working directory" if path == Path.cwd() else "a mount point"
        raise ValueError(
            f"`{folder}` is {what}, which cannot be replaced by a finished folder. Give a new folder, for example "
            f"`{Path(folder) / 'compressed'}`."
        )
    return path


@contextmanager
def written_aside(root: Path, name: str | Path, *, replace: bool) -> Iterator[Path]:
    """Yield a path to write `root / name` to; what was written there is moved into place when the block ends.

    The path is in a new folder inside `root`, with a name that no other process knows. All that the block writes
    beside it is moved too, the path itself last. If the block raises, nothing is left behind.

    Args:
        root: an existing folder, or one that will be created.
        name: path of a file or folder relative to `root`.
        replace: whether an existing file or folder of that name is replaced. Otherwise it must be missing or empty.

    Raises:
        ValueError: another process has written the same path meanwhile, or a part of it is a link.
    """
    name = Path(name)
    target, top = root / name, root / name.parts[0]
    if len(name.parts) > 1 and top.is_symlink():
        raise ValueError(f"`{top}` is a link. Remove it: results are not written through links.")
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=PARTIAL, dir=root))
    opened = lock(scratch)
    try:
        aside, old = scratch / NEW / name, scratch / OLD if replace else None
        aside.parent.mkdir(parents=True)
        yield aside
        if len(name.parts) > 1 and not os.path.lexists(top):
            _move(scratch / NEW / top.name, top, old)
        else:
            for path in sorted(aside.parent.iterdir(), key=aside.__eq__):
                _move(path, target.with_name(path.name), old)
    finally:
        shutil.rmtree(scratch)
        unlock(opened)


def sweep(root: Path) -> None:
    """Remove from the folder `root` what `written_aside` left there when its process was killed.

    The folders of live processes stay: they are locked. So does everything where nothing can be locked.
    """
    for scratch in root.glob(f".*{PARTIAL}"):
        if scratch.is_symlink() or not scratch.is_dir() or {path.name for path in scratch.iterdir()} - {NEW, OLD}:
            continue  # Not ours.
        try:
            opened = lock(scratch)
        except OSError:  # Of a live process, or of another user.
            continue
        if opened is not None:
            shutil.rmtree(scratch, ignore_errors=True)
            unlock(opened)


def _move(source: Path, target: Path, old: Path | None) -> None:
    """Rename `source` to `target`; a folder that is there moves into `old` first, if that is given."""
    try:
        if old is not None and (target.is_symlink() or target.is_dir()):
            old.mkdir(exist_ok=True)
            target.rename(old / target.name)
        # An empty folder is replaced; a full one, or a link in its place, is an error of the operating system.
        source.rename(target)
    except OSError as error:
        if not os.path.lexists(target):
            raise
        raise ValueError(
            f"`{target}` was written by another process meanwhile. That result is kept, this one is dropped: give "
            "each run its own folder."
        ) from error
