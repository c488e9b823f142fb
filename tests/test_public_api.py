"""The public names, frozen in `public_api.txt`: those that the package and the `__init__.py` of each room export."""

import ast
import difflib
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).with_name("public_api.txt")


def exported() -> list[str]:
    """Dotted names that the package and its rooms re-export, sorted, each with the room that exports it."""
    names = []
    for path in (ROOT / "hf_compress").rglob("__init__.py"):
        room = ".".join(path.parent.relative_to(ROOT).parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                names += [f"{room}.{alias.asname or alias.name}" for alias in node.names]
    return sorted(names)


def test_the_public_names_are_the_frozen_ones() -> None:
    """A failure prints what changed; if that was on purpose, copy it into tests/public_api.txt in the same commit."""
    frozen = FROZEN.read_text("utf-8").splitlines()
    difference = difflib.unified_diff(frozen, exported(), "tests/public_api.txt", "the exports", lineterm="", n=0)
    changes = "\n".join(difference)
    assert not changes, f"the public names changed:\n{changes}"


def test_every_public_name_can_be_imported() -> None:
    for name in exported():
        room, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(room), attribute), name
