"""The files of a finished folder: name, length and hash of each, as its report records them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from hf_compress.report.facts import FileFacts
from hf_compress.report.report import REPORT_NAME, Report

CARD_NAME = "README.md"
# The report cannot hold its own hash, and the card is made from the report and nothing else.
UNRECORDED = (REPORT_NAME, CARD_NAME)


def contents(folder: str | Path) -> dict[str, FileFacts]:
    """Return length and hash of every file in `folder`, by its path with forward slashes, in order.

    `report.json`, `README.md` and hidden files are left out.

    Raises:
        ValueError: the folder holds something that is not a file of its own, such as a link to elsewhere.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hf_compress.report.contents import contents
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text("{}")
        >>> contents(folder)["config.json"].bytes
        2
    """
    found = dict(_entries(Path(folder)))
    if foreign := [name for name, path in found.items() if path is None]:
        raise ValueError(f"{_foreign(foreign[0])} Replace it in {folder} by a file.")
    return {name: _facts(path) for name, path in sorted(found.items()) if path is not None}


def check_contents(folder: str | Path, report: Report, *, others: bool = True) -> list[str]:
    """Return what differs between the files of `folder` and those that `report` records, one sentence each.

    An empty list means that every file is there, as it was recorded, and no other. Nothing outside the folder is
    read: not through links, and not by names in the report.

    Args:
        folder: the folder of the report.
        report: what records the files.
        others: whether files that the report does not record count as a difference.

    Example:
        >>> from hf_compress import Report
        >>> from hf_compress.report import check_contents
        >>> check_contents("run/compressed", Report.load("run/compressed"))  # doctest: +SKIP
        []
    """
    if not report.files:
        return [f"{REPORT_NAME} records no files, so nothing shows that they are those of the report."]
    found, recorded = dict(_entries(Path(folder))), report.files
    said = [f"`{name}` is missing: {REPORT_NAME} records it." for name in sorted(recorded.keys() - found.keys())]
    for name, path in sorted(found.items()):
        if name not in recorded and not others:
            continue
        if path is None:
            said.append(_foreign(name))
        elif name not in recorded:
            said.append(f"`{name}` is not one of the files that {REPORT_NAME} records.")
        elif path.stat().st_size != recorded[name].bytes:
            said.append(
                f"`{name}` has {path.stat().st_size:,} bytes, but {REPORT_NAME} records {recorded[name].bytes:,}."
            )
        elif (sha256 := _facts(path).sha256) != recorded[name].sha256:
            said.append(
                f"`{name}` has another content than {REPORT_NAME} records: its SHA-256 is {sha256[:12]}..., not "
                f"{recorded[name].sha256[:12]}..."
            )
    return said


def unrecorded(folder: str | Path, report: Report) -> list[str]:
    """Return the names of the files of `folder` that `report` does not record, in order.

    Example:
        >>> from hf_compress import Report
        >>> from hf_compress.report.contents import unrecorded
        >>> unrecorded("run/compressed", Report.load("run/compressed"))  # doctest: +SKIP
        ['notes.txt']
    """
    return sorted(name for name, _ in _entries(Path(folder)) if name not in report.files)


def _foreign(name: str) -> str:
    return f"`{name}` is a link to something outside the folder, or no ordinary file."


def _entries(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Yield every recordable entry of `folder` by its name: its path, or None if it is no file of the folder."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in [*links, *names]:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if not name.startswith(".") and relative not in UNRECORDED:
                yield relative, path if is_own_file(path, folder) else None


def foreign_entries(folder: str | Path) -> list[str]:
    """Return a sentence for everything in `folder`, hidden or not, that is no ordinary file of it.

    Such are links to elsewhere, which a program would follow, pipes and devices.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hf_compress.report.contents import foreign_entries
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "model.safetensors").symlink_to("/dev/zero")
        >>> len(foreign_entries(folder))
        1
    """
    root, found = Path(folder), list[str]()
    for parent, folders, names in os.walk(root):
        paths = [*(Path(parent, name) for name in folders if Path(parent, name).is_symlink())]
        paths += [Path(parent, name) for name in names]
        found += [path.relative_to(root).as_posix() for path in paths if not is_own_file(path, root)]
    return [_foreign(name) for name in sorted(found)]


def is_own_file(path: Path, folder: Path) -> bool:
    """Return whether `path` is an ordinary file of `folder`, or of the Hub's cache that `folder` is a snapshot of.

    In that cache the files of a snapshot are links to blobs.
    """
    if not path.is_file():
        return False
    root, real = folder.resolve(), path.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    return any(real.is_relative_to(one) for one in roots)


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileFacts(file.tell(), sha256)
