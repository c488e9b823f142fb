"""Shortens absolute paths, which name the author, the machine and its folders."""

import os
import re
from pathlib import Path, PurePosixPath

# A path counts if its first folder exists here or has one of these names, as on other machines.
ROOTS = {
    *("home", "Users", "root", "mnt", "media", "Volumes", "data", "datasets", "scratch", "work", "workspace"),
    *("workspaces", "tmp", "var", "opt", "srv", "usr", "private", "content", "kaggle", "gpfs", "lustre", "nfs", "fsx"),
    *("efs", "storage", "project", "projects", "cluster", "shared", "export", "net", "afs", "dbfs", "teamspace"),
}
HOMES = ("home", "Users")
# Where a path may begin: at the start, after white space (also an escaped one), a quote, a bracket or a separator,
# after a short option, in an address without a host (`sqlite:////home/me/x.db`), or after `me@machine:`.
BEGINS = (
    r"""(?:^|(?<=[\s"'`=:,;|@(\[{<>])|(?<=\\[nt])|(?<=^-\w)|(?<=\s-\w)|(?<=://)|(?<=:///)"""
    r"""|(?<![\w.-])[\w.-]+@[\w.-]+:(?=[/~]))"""
)
PARTS = r"""[^\s"'`,;:)\]}<>|]"""
POSIX = re.compile(rf"{BEGINS}(?:file:(?://[\w.-]*)?(?=/))?(?P<path>(?:~[\w.-]*)?/(?!/){PARTS}+)", re.MULTILINE)
# In quotes, a path may hold spaces.
QUOTED = re.compile(r"""(?P<quote>["'`])(?P<path>(?:~[\w.-]*)?/(?!/)[^"'`\n]* [^"'`\n]*)(?P=quote)""")
WINDOWS = re.compile(
    r"""(?<![\w/\\.-])(?:file:/+)?(?:[A-Za-z]:[\\/]|\\\\+[\w.$-]+\\+)"""
    r"""(?:[^\s"'`,;:*?<>|)\]}]|(?<=\w)\ (?=[\w.()-]+[\\/]))+"""
)
UPWARD = re.compile(rf"(?:\.\./)+{PARTS}{{0,300}}")


def shorten_paths(text: str) -> str:
    r"""`text` with absolute paths relative to the working directory, or cut to their last part; a home becomes "~".

    Example:
        >>> from hf_compress.redaction import shorten_paths
        >>> shorten_paths("/home/somebody/teacher"), shorten_paths(r"C:\Users\somebody\teacher")
        ('teacher', 'teacher')
    """
    text = WINDOWS.sub(_shortened_windows, text)
    if re.match(r"~?/(?!/)", text) and "\n" not in text:
        whole = _shortened(text)
        if whole is not None:
            return whole
    home = os.path.expanduser("~")  # noqa: PTH111 (`Path.home` raises where there is none)
    if len(Path(home).parts) > 2:  # It may hold spaces.
        text = re.sub(rf"{re.escape(home)}(?=/)", "~", text)
    text = QUOTED.sub(lambda f: f"{f['quote']}{_or_as_it_is(f['path'])}{f['quote']}", text)
    text = POSIX.sub(lambda found: _shortened(found["path"]) or found[0], text)
    return UPWARD.sub(_shortened_upward, text)


def _or_as_it_is(path: str) -> str:
    return _shortened(path) or path


def _shortened(path: str) -> str | None:
    """The path as others may see it; None if it is not one of a machine."""
    if path.startswith("~"):
        parts = PurePosixPath(path).parts
        return parts[-1] if len(parts) > 1 else "~"
    whole = PurePosixPath(path)
    if len(whole.parts) < 2 or whole == PurePosixPath("/dev/null"):
        return None
    if whole.parts[1] not in ROOTS and not Path(*whole.parts[:2]).exists():
        return None
    if _is_home(whole):
        return "~"
    here = PurePosixPath(Path.cwd().as_posix())
    if whole == here:
        return "."
    if whole.is_relative_to(here) and not _is_above_homes(here):
        return str(whole.relative_to(here))
    return whole.name


def _is_home(path: PurePosixPath) -> bool:
    """Whether the last part of the path is the name of a user."""
    return path == PurePosixPath(os.path.expanduser("~")) or (len(path.parts) == 3 and path.parts[1] in HOMES)  # noqa: PTH111


def _is_above_homes(folder: PurePosixPath) -> bool:
    """Whether paths relative to the folder may begin with the name of a user."""
    return len(folder.parts) < 2 or (len(folder.parts) == 2 and folder.parts[1] in HOMES)


def _shortened_windows(found: re.Match[str]) -> str:
    path = found[0].removeprefix("file:").lstrip("/")
    shared = path.startswith("\\\\")
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    if not shared and len(parts) == 3 and parts[1].lower() in ("users", "documents and settings"):
        return "~"
    return parts[-1] if len(parts) > 1 else found[0]


def _shortened_upward(found: re.Match[str]) -> str:
    """A relative path that climbs to the folder of homes and names a user, cut to its last part."""
    parts = [part for part in found[0].split("/") if part]
    named = any(part in HOMES for part in parts[:-1])
    return parts[-1] if named else found[0]
