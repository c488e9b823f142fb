"""The shape of the package, as CONTRIBUTING.md states it. Each test covers all files, and a failure names them all."""

import ast
import difflib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("hf_compress", "hf_compress_cli") for path in sorted((ROOT / folder).rglob("*.py"))]
PRINTERS = {"hf_compress/launch/launcher.py"}  # and everything in hf_compress_cli
PUBLIC = Path(__file__).with_name("public_api.txt")
LONGEST = 320
LONGEST_NAME = 60
LATE = {"matplotlib", "evaluate", "datasets"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(nodes: list[ast.stmt]) -> set[str]:
    """The full dotted names that the import statements among `nodes` bring in."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(parts: list[str]) -> str:
    """The room that a dotted name belongs to: a package, one of the four rooms of `study`, or a module beside them."""
    if parts[0] == "hf_compress_cli" or len(parts) < 2:
        return parts[0]
    return ".".join(parts[1:3]) if parts[1] == "study" and len(parts) > 2 else parts[1]


@cache
def rooms() -> dict[str, set[str]]:
    """Every room, and the rooms that its modules import, inside functions too."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts in (["hf_compress", "__init__"], ["hf_compress", "study", "__init__"]):
            continue
        here = found.setdefault(room(parts), set())
        names = [name.split(".") for name in imported(list(ast.walk(tree(path))))]
        here |= {room(name) for name in names if name[0] in ("hf_compress", "hf_compress_cli")} - {room(parts)}
    return found


def floor(name: str, above: tuple[str, ...] = ()) -> int:
    """One more than the highest floor that the room imports from."""
    assert name not in above, f"rooms import each other in a circle: {' -> '.join([*above, name])}"
    return 1 + max((floor(below, (*above, name)) for below in rooms()[name]), default=0)


def test_the_floors_in_contributing_are_the_true_ones() -> None:
    """Also that no rooms import each other in a circle: such rooms have no floor."""
    true = {name: (floor(name), tuple(sorted(below))) for name, below in rooms().items()}
    rows = re.findall(r"^\| (\d+) \| `([\w./]+)` \|([^|]*)\|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    stated = {
        name.rstrip("/").removesuffix(".py").replace("/", "."): (int(number), tuple(re.findall(r"[\w.]+", below)))
        for number, name, below in rows
    }
    listed = "\n".join(
        f"| {number} | `{name}` | {', '.join(below)} |"
        for name, (number, below) in sorted(true.items(), key=lambda i: i[1])
    )
    assert stated == true, f"the table in CONTRIBUTING.md should have these rows:\n{listed}"


def test_modules_import_modules_not_the_package() -> None:
    """From outside, the public names of `hf_compress`; inside, the module that defines a name."""
    gathering = {"hf_compress", "hf_compress.study"}
    found = []
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent.name != "hf_compress_cli":
            docstring, *statements = tree(path).body
            assert isinstance(docstring, ast.Expr), f"{relative(path)} does not say what it holds"
            wrong = [
                ast.unparse(node)
                for node in statements
                if not isinstance(node, ast.ImportFrom) or any(alias.asname != alias.name for alias in node.names)
            ]
            assert not wrong, f"{relative(path)}: only re-export, as `from M import N as N`; got {wrong}"
        elif path.parts[-2] != "hf_compress_cli":
            nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
            found += [f"{relative(path)}: {ast.unparse(node)}" for node in nodes if node.module in gathering]
    assert not found


def test_files_are_one_noun_each_and_small() -> None:
    vague = [relative(path) for path in SOURCES if {*path.relative_to(ROOT).with_suffix("").parts} & FORBIDDEN_NAMES]
    assert not vague
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}, "two nouns? make it two files"


def test_no_star_import_print_or_swallowed_error() -> None:
    found = []
    for path in SOURCES:
        prints = relative(path) in PRINTERS or path.is_relative_to(ROOT / "hf_compress_cli")
        for node in ast.walk(tree(path)):
            where = f"{relative(path)}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                found.append(f"{where}: star import")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found += [] if prints else [f"{where}: only programs print"]
            elif isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in caught):
                    found.append(f"{where}: name the errors that are expected")
    assert not found


def test_public_names_have_docstrings() -> None:
    bare = [relative(path) for path in SOURCES if not ast.get_docstring(tree(path))]
    for path in SOURCES:
        for node in tree(path).body:
            public = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if public and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{relative(path)}:{node.lineno} {node.name}")
    assert not bare


def test_importing_the_package_loads_nothing_heavy() -> None:
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
            asked = {name.partition(".")[0] for name in imported(tree(path).body)} & LATE
            assert not asked, f"`import hf_compress` loads {dotted}, which imports {sorted(asked)} at once"


def exported() -> list[str]:
    """Dotted names that the package and its rooms re-export, sorted, each with the room that exports it."""
    names = []
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent.name != "hf_compress_cli":
            where = ".".join(path.parent.relative_to(ROOT).parts)
            statements = [node for node in tree(path).body if isinstance(node, ast.ImportFrom)]
            names += [f"{where}.{alias.asname or alias.name}" for node in statements for alias in node.names]
    return sorted(names)


def test_the_public_names_are_the_frozen_ones() -> None:
    """A failure prints what changed; if that was on purpose, copy it into tests/public_api.txt in the same commit."""
    frozen = PUBLIC.read_text("utf-8").splitlines()
    difference = difflib.unified_diff(frozen, exported(), "tests/public_api.txt", "the exports", lineterm="", n=0)
    changes = "\n".join(difference)
    assert not changes, f"the public names changed:\n{changes}"
    for name in frozen:
        where, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(where), attribute), name


def outside() -> Iterator[tuple[str, ast.Module]]:
    """Everything that uses the package as a stranger would: examples, benchmarks, and `python` blocks of pages."""
    for folder in ("examples", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.py")):
            yield relative(path), tree(path)
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "skills").rglob("*.md")]
    for path in sorted(pages):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield f"{relative(path)}:{text[: match.start()].count(chr(10)) + 1}", ast.parse(match[1])


def test_examples_benchmarks_and_pages_use_public_names_only() -> None:
    public, found = set(exported()), []
    rooms_of = {name.rpartition(".")[0] for name in public}
    for where, module in outside():
        names = {name for name in imported(list(ast.walk(module))) if name.split(".")[0].startswith("hf_compress")}
        found += [f"{where} imports {name}" for name in sorted(names - public - rooms_of)]
        whole = {
            alias.asname or alias.name
            for node in ast.walk(module)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "hf_compress"
        }
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
                name = f"hf_compress.{node.attr}"
                found += [] if name in public | rooms_of else [f"{where} uses {name}"]
    assert not found, "export these names from the `__init__.py` of their room, or use others:\n" + "\n".join(found)


def test_test_names_are_sentences_of_at_most_60_characters() -> None:
    long = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        names = [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
        long += [
            f"{relative(path)}: {name}" for name in names if name.startswith("test_") and len(name) > LONGEST_NAME
        ]
    assert not long, "say it shorter:\n" + "\n".join(long)
