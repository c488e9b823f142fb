"""Every public function and class has an example, and every example in a docstring prints what it shows.

All examples run in the test's own process, so they cost no further import of torch. An example imports what it uses:
a reader can copy it. One that needs an optional package is skipped where the package is missing.
"""

import ast
import doctest
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import SOURCES, tree

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
IMPORT_NAMES = {"scikit-learn": "sklearn"}


def optional_packages() -> set[str]:
    """Import names of the packages that only an extra of pyproject.toml installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    needed, optional = (
        {re.split(r"[\[<>=~!; ]", line)[0] for line in lines} for lines in (project["dependencies"], extras)
    )
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in optional - needed - {"hf-compress"}}


OPTIONAL = optional_packages()


def imported(code: ast.AST) -> set[str]:
    """Top-level names of the packages that `code` imports anywhere."""
    names = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def documented(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """`node` and all functions and classes inside it, with dotted names."""
    yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from documented(child, f"{name}.{child.name}")


def modules() -> Iterator[tuple[Path, str, ast.Module]]:
    """All modules of the package and the command line: the file, the dotted name and the syntax tree."""
    for path in SOURCES:
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield path, dotted, tree(path)


def examples() -> list[object]:
    """One case for each docstring with an example: the parsed doctest, and the optional packages that it needs.

    Docstrings are read from the source, so that collecting them imports nothing.
    """
    cases = []
    for path, dotted, module in modules():
        packages = imported(module)
        for name, node in documented(module, dotted):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node, clean=False)
            if text is None or ">>>" not in text:
                continue
            line = node.body[0].lineno - 1
            found = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, str(path), line)
            code = ast.parse("".join(example.source for example in found.examples))
            needs = sorted((packages | imported(code)) & OPTIONAL)
            cases.append(pytest.param(found, needs, id=name.partition(".")[2]))
    return cases


@pytest.mark.parametrize(("example", "needs"), examples())
def test_the_example_prints_what_it_shows(
    example: doctest.DocTest, needs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_every_public_name_has_an_example() -> None:
    """A public name is a function or class that an `__init__` exports. A constant has no docstring."""
    exported: set[str] = set()
    docstrings: dict[str, str] = {}
    for path, dotted, module in modules():
        for node in module.body:
            if isinstance(node, ast.ImportFrom) and path.name == "__init__.py":
                exported |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                docstrings[f"{dotted}.{node.name}"] = ast.get_docstring(node) or ""
    public = exported & docstrings.keys()
    assert public, "no `__init__` exports a function or class"
    without = sorted(name for name in public if ">>>" not in docstrings[name])
    assert not without, "public names without an example:\n" + "\n".join(without)
