"""Safetensors files from any source: opened, and errors in them that name the file and the tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from hf_compress.packing.packed import Packed

T = TypeVar("T")


def packed_tensors(path: Path, expected: Mapping[str, Sequence[int]]) -> Iterator[Packed]:
    """Yield the packed tensors of a file, opened, in the order of the file.

    Args:
        path: a safetensors file.
        expected: the shapes of the model's tensors by name. The shapes of other tensors are not checked.

    Raises:
        ValueError: it is not a safetensors file, a tensor is not packed, or a tensor has another shape.

    Example:
        >>> from pathlib import Path
        >>> from hf_compress.checkpoint import packed_tensors
        >>> [tensor.key for tensor in packed_tensors(Path("compressed/model.safetensors"), {})]  # doctest: +SKIP
        ['bert.embeddings.LayerNorm.bias', ...]
    """
    with safetensors_file(path) as file:
        for key in file.keys():  # noqa: SIM118 - the handle is no dict
            yield located(path, key, partial(Packed.open, file.get_tensor(key), key, expected.get(key)))


def located(path: Path, key: str, action: Callable[[], T]) -> T:
    """Return what `action` returns, and add the file and the tensor to a `ValueError` of it."""
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"{path}: {printable(key)}: {error}.") from error


def printable(name: str) -> str:
    """Return a name from a file with control characters escaped, so that it is safe to print."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def safetensors_file(path: Path) -> Any:
    """Open the safetensors file `path` for reading.

    Raises:
        ValueError: it is not a safetensors file, or it is damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not an intact safetensors file: {error}. Download or save it again.") from error
