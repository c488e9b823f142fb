"""YAML and JSON files that users write: read with limits, so that no file can mislead or exhaust the reader."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

YAML = (".yaml", ".yml")
LARGEST = 1_000_000  # Bytes of a file.
MOST = 100_000  # Values in a file, those behind aliases counted each time.


def read_document(path: str | Path) -> Any:
    """Return the value in a YAML or JSON file: mappings, lists, strings, numbers, booleans, None.

    A file named *.yaml or *.yml is read as YAML, any other as JSON. YAML numbers may be written as `1e-4`.

    Raises:
        ValueError: the file cannot be read, is not what its name says, repeats a key, is larger than 1 MB, or expands
            to more than 100,000 values.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hf_compress.documents import read_document
        >>> file = Path(tempfile.mkdtemp(), "recipe.yaml")
        >>> _ = file.write_text("learning_rate: 1e-4")
        >>> read_document(file)
        {'learning_rate': 0.0001}
    """
    path = Path(path)
    kind = "YAML" if path.suffix in YAML else "JSON"
    try:
        text = _text(path)
        return _from_yaml(text) if kind == "YAML" else json.loads(text, object_pairs_hook=_unique)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as {kind}: it is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _text(path: Path) -> str:
    if not path.is_file():  # A folder, or a pipe or device, which may have no end.
        raise ValueError("it is not a file." if path.exists() else "there is no such file.")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes.")
    return content.decode("utf-8")


def _from_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number (YAML 1.1 reads text), and refuses repeated keys (YAML would keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        repeated = _repeated(keys)
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} occurs twice", node.start_mark
            )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return how many values a node expands to, and refuse one that contains itself or is too large."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise ValueError("an alias refers to the value that it is part of.")
        return counts[id(node)]
    counts[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    total = 1
    for part in inner:
        total += _count(part, counts)
        if total > MOST:
            raise ValueError(f"its aliases expand to more than {MOST:,} values.")
    counts[id(node)] = total
    return total


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    repeated = _repeated([name for name, _ in pairs])
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} occurs twice.")
    return dict(pairs)


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
