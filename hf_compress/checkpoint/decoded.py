"""Decoded copies of packed checkpoints: written by the first load, mapped into memory by later ones.

A copy is a folder, named by a hash of all that decides its contents, with the weights as an ordinary safetensors file,
which costs what a dense file costs to load. The scales of integers and the ranges of inputs, few numbers in many
tensors, are one tensor in a file beside it, which Transformers does not see. Copies are made only where the user asks
for them.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors.torch import load, save_file
from torch import Tensor

from hf_compress.checkpoint.aside import sweep, written_aside
from hf_compress.checkpoint.hashing import file_hash
from hf_compress.checkpoint.layout import Layout, bytes_of, header_of
from hf_compress.locks import lock, unlock

SWITCH, FOLDER, LIMIT = "HF_COMPRESS_CACHE", "HF_COMPRESS_CACHE_DIR", "HF_COMPRESS_CACHE_GB"
DEFAULT_GB = 20.0
VERSION = 2  # Of the contents of a copy. Raise it when decoding gives other bits, or other files.
WEIGHTS, BESIDE, ABOUT = "model.safetensors", "beside.safetensors", "copy.json"
HASHES = "hashes"  # The folder of known hashes of packed files.


@dataclass(frozen=True)
class Copy:
    """One decoded copy: its folder, and what its `copy.json` says.

    Args:
        folder: of the copy. Its name is the key.
        source: the folder or repository that was loaded first.
        run, dtype: how it was loaded.
        bytes: of all its files.
        used: when it was last written or loaded, in seconds since 1970.
        opened: its lock while it is being loaded.
        beside: float32 scales of integers, by the name of the weight, and ranges of inputs, while it is being loaded.
    """

    folder: Path
    source: str
    run: str
    dtype: str
    bytes: int
    used: float
    opened: int | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def release(self) -> None:
        """Let other processes remove the copy. What is in memory stays there."""
        unlock(self.opened)

    def intact(self) -> bool:
        """Return whether all bytes are those that were written. Reads all files."""
        about = _about(self.folder)
        return about is not None and all(
            _crc32(self.folder / name) == crc for name, (_, _, crc) in about["files"].items()
        )


def wanted(choice: bool | None) -> bool:
    """Return whether to keep decoded copies: `choice`, or else what the environment says.

    Raises:
        ValueError: the environment variable is neither a yes nor a no.
    """
    said = os.environ.get(SWITCH, "").strip().lower()
    if said not in ("", "0", "false", "no", "off", "1", "true", "yes", "on"):
        raise ValueError(f"`{SWITCH}` must be 1 or 0; got {said!r}. Set 1 to keep decoded copies of packed models.")
    return said in ("1", "true", "yes", "on") if choice is None else choice


def root() -> Path:
    """Return the folder of the copies: `HF_COMPRESS_CACHE_DIR`, or else `hf_compress` beside the Hub's cache."""
    return Path(os.environ.get(FOLDER) or Path(constants.HF_HOME) / "hf_compress").expanduser()


def limit() -> int:
    """Return how many bytes all copies may have.

    Raises:
        ValueError: the environment variable is not a positive number.
    """
    said = os.environ.get(LIMIT) or DEFAULT_GB
    try:
        size = float(said)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise ValueError(f"`{LIMIT}` must be a number of GB above 0, such as {DEFAULT_GB:g}; got {said!r}.")
    return int(size * 1e9)


def key_of(files: Sequence[Path], config: Mapping[str, Any], run: str, expected: Layout) -> str:
    """Return the name of the copy: a hash of the packed files, and of all else that decides what is decoded.

    Args:
        files: of the packed checkpoint.
        config: its `quantization_config`.
        run: how the integers are treated.
        expected: dtypes and shapes of the tensors of the model, by name.
    """
    described = [VERSION, config, run, [[name, str(dtype), list(shape)] for name, (dtype, shape) in expected.items()]]
    hashed = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for digest in sorted(file_hash(path, root() / HASHES) for path in files):
        hashed.update(digest.encode())
    return hashed.hexdigest()


def find(key: str) -> Copy | None:
    """Return the copy `key`, which stays until `Copy.release`; None if there is none, or if it is damaged.

    The names, dtypes and shapes of its weights, and sizes and times of its files are compared with those that were
    written. A copy that differs is removed.
    """
    folder = root() / key
    try:
        opened = lock(folder, shared=True)
    except OSError:  # There is none, or another process is removing it.
        return None
    about = _about(folder)
    beside = None if about is None else _unchanged(folder, about)
    if about is not None and beside is not None:
        with suppress(OSError):  # The folder may be one that this user cannot change.
            os.utime(folder / ABOUT)
        return replace(_copy(folder, about), opened=opened, beside=beside)
    unlock(opened)
    _remove(folder)
    return None


def write(
    key: str,
    tensors: Iterable[Tensor],
    layout: Layout,
    beside: Mapping[str, Tensor],
    about: dict[str, str],
) -> None:
    """Write the copy `key`. It appears when it is complete. Copies that were not used for longest make room for it.

    Args:
        tensors: of the model, in the order of `layout.ordered`. They are taken one by one.
        layout: their dtypes and shapes.
        beside: float32 numbers that the copy has beside the weights, by name.
        about: source, run and dtype, for the list of copies.

    Raises:
        OSError: the copy cannot be written, or it is larger than all copies may be.
    """
    header, size = header_of(layout)
    size += sum(tensor.nbytes for tensor in beside.values())
    if size > limit():
        raise OSError(f"a decoded copy of {size / 1e9:.2f} GB is larger than `{LIMIT}` allows ({limit() / 1e9:g} GB)")
    root().mkdir(parents=True, exist_ok=True)
    sweep(root())
    make_room(limit() - size)
    try:
        with written_aside(root(), key, replace=False) as aside:
            aside.mkdir()
            with (aside / WEIGHTS).open("wb") as file:
                file.write(header)
                for tensor in tensors:
                    file.write(bytes_of(tensor))
            parts = [torch.empty(0, device="cpu"), *(tensor.reshape(-1) for tensor in beside.values())]
            save_file({"values": torch.cat(parts)}, aside / BESIDE)
            files = {name: _finished(aside / name) for name in (WEIGHTS, BESIDE)}
            said = {"version": VERSION, "key": key, **about, "head": [len(header), zlib.crc32(header)], "files": files}
            said["beside"] = {name: list(tensor.shape) for name, tensor in beside.items()}
            (aside / ABOUT).write_text(json.dumps(said), "utf-8")
            _finished(aside / ABOUT)
    except ValueError:
        # Another process has written the same copy meanwhile.
        if not (root() / key).is_dir():
            raise


def copies() -> list[Copy]:
    """Return all copies, the one that was used last first."""
    folders = [path for path in root().glob("[0-9a-f]" * 64) if path.is_dir()]
    known = [_copy(path, about) for path in folders if (about := _about(path)) is not None]
    return sorted(known, key=lambda copy: -copy.used)


def make_room(size: int) -> None:
    """Remove the copies that were not used for longest, until those left have `size` bytes at most.

    Copies that this version cannot read go first: no load will find them.
    """
    for path in root().glob("[0-9a-f]" * 64):
        if _about(path) is None:
            _remove(path)
    for copy in copies():
        size -= copy.bytes
        if size < 0:
            _remove(copy.folder)


def clear(keys: Sequence[str] = ()) -> int:
    """Remove the copies whose names begin with one of `keys`, or all, and return how many bytes that freed.

    Copies that another process is loading stay.
    """
    freed = 0
    for path in root().glob("[0-9a-f]" * 64):
        if not keys or any(path.name.startswith(key) for key in keys):
            size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else 0
            freed += size if _remove(path) else 0
    if not keys:
        sweep(root())
        shutil.rmtree(root() / HASHES, ignore_errors=True)
    return freed


def _remove(folder: Path) -> bool:
    """Remove a copy, unless a process is loading it. Processes that have it in memory keep it."""
    try:
        opened = lock(folder)
    except OSError:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    unlock(opened)
    return not folder.exists()


def _copy(folder: Path, about: Mapping[str, Any]) -> Copy:
    size = sum(entry[0] for entry in about["files"].values())
    return Copy(folder, about["source"], about["run"], about["dtype"], size, about["used"])


def _about(folder: Path) -> dict[str, Any] | None:
    """Return what `write` has written of the copy in `folder`, and when it was used; None if that is not there."""
    try:
        used = (folder / ABOUT).stat().st_mtime
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        texts = [about[field] for field in ("source", "run", "dtype")]
        files = [[int(number) for number in about["files"][name]] for name in (WEIGHTS, BESIDE)]
        head = [int(number) for number in about["head"]]
        beside = {name: [int(number) for number in shape] for name, shape in about["beside"].items()}
        sound = about["version"] == VERSION and about["key"] == folder.name and about["beside"] == beside
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return None
    sound = sound and all(isinstance(text, str) for text in texts) and len(about["files"]) == len(head) == 2
    return about | {"used": used} if sound and all(len(entry) == 3 for entry in files) else None


def _unchanged(folder: Path, about: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return what is beside the weights if the files are those that were written, and None if not.

    The weights are not read. Their names, dtypes and shapes follow from the key.
    """
    try:
        for name, (size, time, _) in about["files"].items():
            state = (folder / name).stat()
            if (state.st_size, state.st_mtime_ns) != (size, time):
                return None
        length, crc = about["head"]
        with (folder / WEIGHTS).open("rb") as file:
            if zlib.crc32(file.read(length)) != crc:
                return None
        data = (folder / BESIDE).read_bytes()
    except OSError:
        return None
    if zlib.crc32(data) != about["files"][BESIDE][2]:
        return None
    shapes = about["beside"]
    parts = load(data)["values"].split([math.prod(shape) for shape in shapes.values()])
    # Each in memory of its own: safetensors does not save tensors that share it.
    return {name: part.view(shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _finished(path: Path) -> tuple[int, int, int]:
    """Flush a file to the disk, so that no crash leaves it half-written, and return its size, time and CRC-32."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns, _crc32(path)


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            crc = zlib.crc32(part, crc)
    return crc
