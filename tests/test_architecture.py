"""The shape of the package, as CONTRIBUTING.md states it."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_compress"
PROGRAM = ROOT / "hf_compress_cli"
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *sorted(PROGRAM.rglob("*.py"))]
MODULES = [path for path in SOURCES if path != PACKAGE / "__init__.py"]
PRINTERS = {"hf_compress_cli", "demo", "launch"}
LONGEST = 320
LATE = {"matplotlib", "evaluate", "datasets"}


@dataclass(frozen=True)
class Place:
    """Where CONTRIBUTING.md's table puts a module, and whether it may import what stands to its left."""

    floor: int
    row: int
    position: int
    looks_left: bool

    def may_import(self, other: "Place") -> bool:
        if other.row == self.row:
            return self.looks_left and other.position < self.position
        return other.floor < self.floor


@cache
def places() -> dict[str, Place]:
    rows = re.findall(r"^\| (\d) \| ([^|]+) \| (no|left) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {
        name: Place(int(floor), row, position, sideways == "left")
        for row, (floor, names, sideways) in enumerate(rows)
        for position, name in enumerate(re.findall(r"`(\w+)`", names))
    }


def module_name(path: Path) -> str:
    """`hf_compress/pruning.py` and `hf_compress/pruning/masks.py` both belong to `pruning`."""
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path, nodes: list[ast.AST]) -> set[str]:
    """The full dotted names that the import statements among `nodes` bring into the module at `path`."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                package = list(path.relative_to(ROOT).parts[:-1])
                base = package[: len(package) - node.level + 1] + base
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """The modules of ours that the one at `path` imports, inside functions too; "" is the package itself."""
    parts = [name.split(".") for name in imported(path, list(ast.walk(tree(path))))]
    inner = {part[1] if len(part) > 1 else "" for part in parts if part[0] == "hf_compress"}
    return {name if name in places() else "" for name in inner}


def test_every_module_stands_in_the_table_of_floors_and_the_other_way_round() -> None:
    assert {module_name(path) for path in MODULES} == set(places())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_point_to_a_lower_floor(path: Path) -> None:
    name = module_name(path)
    upwards = {other for other in ours(path) - {name, ""} if not places()[name].may_import(places()[other])}
    assert not upwards, f"{name} (floor {places()[name].floor}) may not import {sorted(upwards)}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_import_each_other_and_not_the_package_that_gathers_them(path: Path) -> None:
    assert "" not in ours(path), f"{path.name} imports names from hf_compress itself; name their module"


def test_the_package_only_gathers_public_names() -> None:
    docstring, *statements = tree(PACKAGE / "__init__.py").body
    assert isinstance(docstring, ast.Expr)
    for statement in statements:
        assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)
        for alias in statement.names:
            assert alias.asname == alias.name, (
                f"`{ast.unparse(statement)}`: re-export with `{alias.name} as {alias.name}`"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_one_noun_each_and_small(path: Path) -> None:
    assert not set(path.relative_to(ROOT).with_suffix("").parts) & {
        "utils",
        "util",
        "helpers",
        "helper",
        "common",
        "misc",
        "tools",
    }
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.name} has {lines} lines: it holds two nouns, make it a package of the same name"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_star_imports_no_printing_and_no_swallowed_errors(path: Path) -> None:
    for node in ast.walk(tree(path)):
        where = f"{path.name}:{getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{where}: star import"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or module_name(path) in PRINTERS, f"{where}: only programs print"
        elif isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = [kind for kind in caught if kind is None or ast.unparse(kind) in ("Exception", "BaseException")]
            assert not broad, f"{where}: name the errors that are expected"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{path.name} does not say what it holds"
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno}: `{node.name}` has no docstring"


def test_importing_the_package_asks_for_nothing_heavy() -> None:
    """Trainer imports datasets itself, so that its being loaded proves nothing: what we ask for is read."""
    code = (
        "import json, sys; from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer, TrainerCallback; "
        "import transformers.quantizers; before = set(sys.modules); import hf_compress; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    added = set(json.loads(run.stdout))
    assert "hf_compress" in added
    assert not {name.partition(".")[0] for name in added} & LATE
    for path in SOURCES:
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if dotted in added:
            at_import = imported(path, list(tree(path).body))
            asked = {name.partition(".")[0] for name in at_import} & LATE
            assert not asked, f"`import hf_compress` loads {dotted}, which imports {sorted(asked)} at once"
