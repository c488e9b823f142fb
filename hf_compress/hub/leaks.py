"""Refusal of files that hold a secret, before anything is uploaded."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_compress.redaction import found_secret, secrets_in_use

READ_BYTES = 1 << 22
OVERLAP = 1 << 10  # Longer than any token.
HUB_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")  # Long enough not to appear in weights by chance.
REVOKE = "If it was ever shared, revoke it at https://huggingface.co/settings/tokens."


def check_secrets(folder: str | Path, names: Iterable[str], token: str | None) -> None:
    """Refuse to upload a file that holds a secret in use, or a text file that holds what looks like one of any kind.

    Args:
        folder: where the files are.
        names: of the files that would be uploaded.
        token: the Hub token in use.

    Raises:
        ValueError: a file holds one. The message names the file and shows only the start of what was found.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hf_compress.hub.leaks import check_secrets
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text("{}")
        >>> check_secrets(folder, ["config.json"], "hf_mine")
    """
    others = [secret for secret in secrets_in_use() if secret != token]
    for name in names:
        path = Path(folder) / name
        if token and _holds(path, token):
            raise ValueError(
                f"{path} holds the Hub token that is in use, so {folder} is not uploaded. Remove the token from that "
                f"file. {REVOKE}"
            )
        found = next((secret for secret in others if _holds(path, secret)), None)
        if (found := found or _found(path, HUB_TOKEN) or _secret(path)) is not None:
            raise ValueError(
                f"{path} holds what looks like a secret ({found[:4]}...), so {folder} is not uploaded. Remove it from "
                f"that file. {REVOKE}"
            )


def _holds(path: Path, secret: str) -> bool:
    return _found(path, re.compile(re.escape(secret.encode()))) is not None


def _found(path: Path, pattern: re.Pattern[bytes]) -> str | None:
    """The first match in the bytes of the file, read in parts that overlap."""
    kept = b""
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            if found := pattern.search(kept + part):
                return found[0].decode()
            kept = part[-OVERLAP:]
    return None


def _secret(path: Path) -> str | None:
    """The first thing in a text file that looks like a secret. Other files are not searched: chance makes patterns."""
    return next(filter(None, map(found_secret, _parts(path))), None)


def _parts(path: Path) -> Iterator[str]:
    """The parts of a text file, which overlap; nothing if it is not text."""
    kept = ""
    try:
        with path.open(encoding="utf-8") as file:
            while part := file.read(READ_BYTES):
                if "\0" in part:
                    return
                yield kept + part
                kept = part[-OVERLAP:]
    except UnicodeDecodeError:
        return
