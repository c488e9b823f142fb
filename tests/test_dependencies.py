"""What the package imports is what pyproject.toml declares, and a missing extra is named."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from hf_compress.extras import MissingExtraError, extra
from tests.test_architecture import SOURCES, tree

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Extras for work on the project. The package imports nothing of them.
FOR_WORK = {"benchmarks", "dev", "docs", "minilm", "optimizers", "release"}
# Declared and not imported by us: torch.onnx imports it.
INDIRECT = {"onnx"}
# Brought by PyTorch's builds for CUDA, and imported by a module that is loaded on a GPU only.
BROUGHT = {"triton"}
# `compression` is in the standard library from Python 3.14 on; hf_compress_loading.py imports it there only.
STANDARD = {*sys.stdlib_module_names, "compression"}
# Packages that no other package of a plain installation brings.
HIDDEN = ("evaluate", "matplotlib", "onnxruntime", "onnxscript", "openvino", "ray", "scipy", "sklearn")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    """The distributions that requirements name, those of our own extras among them included."""
    found: set[str] = set()
    for requirement in requirements:
        ours = re.fullmatch(r"hf-compress\[([\w,-]+)\]", requirement)
        if ours:
            found |= set().union(*(declared(EXTRAS[name]) for name in ours[1].split(",")))
        else:
            found.add(normal(re.split(r"[\s>=<\[;!~]", requirement)[0]))
    return found


EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CORE = declared(PROJECT["dependencies"])


def imports(node: ast.AST, within: str | None = None, late: bool = False) -> Iterator[tuple[str, str | None, bool]]:
    """Every import below `node`: its package, the extra whose context it stands in, whether a function makes it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name.partition(".")[0], within, late
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module.partition(".")[0], within, late
        elif isinstance(child, ast.With) and ast.unparse(child.items[0]).startswith("extra("):
            call = child.items[0].context_expr
            assert isinstance(call, ast.Call)
            yield from imports(child, ast.literal_eval(call.args[0]), late)
        else:
            typing_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from imports(child, within, late or typing_only or isinstance(child, ast.FunctionDef))


@cache
def all_imports() -> list[tuple[Path, str, str | None, bool]]:
    found = []
    for path in SOURCES:
        for package, within, late in imports(tree(path)):
            if package not in STANDARD and package not in ("hf_compress", "hf_compress_cli"):
                found.append((path, package, within, late))
    return found


@cache
def distributions() -> Mapping[str, list[str]]:
    return packages_distributions()  # Seconds: it reads the metadata of every package.


def distribution(package: str) -> str:
    names = distributions().get(package, [package])
    return normal(names[0])


def test_what_is_imported_is_declared() -> None:
    anywhere = CORE | set().union(*(declared(EXTRAS[name]) for name in EXTRAS.keys() - FOR_WORK))
    wrong = []
    for path, package, within, late in all_imports():
        allowed = CORE | declared(EXTRAS[within]) if within else anywhere if late else CORE
        if distribution(package) not in allowed | BROUGHT:
            wrong.append(f"{path.relative_to(ROOT)}: {package} (extra: {within})")
    assert not wrong


def test_what_is_declared_is_imported() -> None:
    used = {distribution(package) for _, package, _, _ in all_imports()} | INDIRECT
    lists = {"dependencies": CORE} | {name: declared(EXTRAS[name]) for name in EXTRAS.keys() - FOR_WORK}
    for name, names in lists.items():
        assert names <= used, f"{name}: nothing imports {', '.join(sorted(names - used))}"


def test_dev_brings_every_extra_that_the_tests_need() -> None:
    tested = EXTRAS.keys() - FOR_WORK
    assert set().union(*(declared(EXTRAS[name]) for name in tested)) <= declared(EXTRAS["dev"])


AT_IMPORT = sorted(
    {
        (".".join(path.relative_to(ROOT).with_suffix("").parts), package, within)
        for path, package, within, late in all_imports()
        if within is not None and not late
    }
)


@pytest.mark.parametrize(("module", "package", "named"), AT_IMPORT)
def test_a_module_names_the_extra_that_it_lacks(
    module: str, package: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module(module)
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtraError, match=rf"`{package}`.*Run: pip install 'hf-compress\[{named}\]'"):
        importlib.import_module(module)


def test_the_outermost_context_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"A study needs.*\[study\]"), extra("study", "A study"):  # noqa: SIM117
        with extra("glue", "A metric"):
            import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_a_fault_of_ours_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError) as raised, extra("study", "A study"):
        import hf_compress.nothing  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(raised.value, MissingExtraError)


@pytest.mark.slow
def test_the_package_works_without_any_extra(tmp_path: Path) -> None:
    hide = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN!r}))"
    code = (
        f"{hide}; import hf_compress, hf_compress_cli.demonstration; from hf_compress_cli import app; "
        "app(['study', 'report', 'none.jsonl'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (1, ""), run.stderr
    assert run.stderr.splitlines()[-1].startswith("Error: `hf-compress study` needs the package `evaluate`, which")
