"""README.md, docs/, CONTRIBUTING.md, AGENTS.md and the skill are checked here, so that what they show works.

Blocks of `python` must compile and import names that exist. Blocks marked `python run` (readers see no difference) are
executed: those of one page in order, in one namespace. In blocks of `bash`, make targets, commands, scripts and flags
must exist. Tests that a page names must exist. The slow tests run the demo and build the site.
"""

import ast
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from inspect import ismodule
from pathlib import Path

import pytest
import typer
from transformers import TrainingArguments
from typer.testing import CliRunner

import hf_compress
from hf_compress.launch.arguments import ALL_ARGUMENTS
from hf_compress_cli import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
SKILL = ROOT / "skills" / "hf-compress" / "SKILL.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", SKILL, *sorted((ROOT / "docs").rglob("*.md"))]
OURS = {field.name for arguments in ALL_ARGUMENTS for field in fields(arguments)}
# What stands in commands for a script of the reader's own.
ANY_SCRIPT = "train.py"
# Scripts of Transformers that pages run, and ours with the same arguments that tests run in their place.
STOCK = {
    "run_image_classification.py": "tests/launched/train_images.py",
    "run_audio_classification.py": "tests/launched/train_sounds.py",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its page, its language, whether it is marked `run`, its text and its line."""

    page: str
    language: str
    run: bool
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def blocks() -> tuple[Block, ...]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(relative(path), match[1], "run" in match[2].split(), match[3], line))
    return tuple(found)


PYTHON = [block for block in blocks() if block.language in ("python", "py")]
SHELL = [block for block in blocks() if block.language in ("bash", "sh", "shell", "console")]


@dataclass(frozen=True)
class Command:
    """One shell command of a page: its words, without assignments before it and without the program's folder."""

    words: tuple[str, ...]
    where: str

    @property
    def flags(self) -> list[str]:
        return [word.partition("=")[0] for word in self.words if word.startswith("--") and word != "--"]

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def commands() -> Iterator[Command]:
    for block in SHELL:
        for line in block.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&;|")
            lexer.whitespace_split = True
            for piped, words in itertools.groupby(lexer, key=lambda token: set(token) <= set("&;|")):
                command = list(itertools.dropwhile(re.compile(r"\w+=").match, () if piped else words))
                if command:
                    yield Command((Path(command[0]).name, *command[1:]), str(block))


COMMANDS = list(commands())


def of(program: str) -> list[Command]:
    found = [command for command in COMMANDS if re.fullmatch(program, command.words[0])]
    assert found, f"no page shows {program}"
    return found


@cache
def flags_of_script(path: Path) -> set[str]:
    """The flags that a script takes, read from its source: running `--help` of each would import torch each time."""
    tree, known = ast.parse(path.read_text(encoding="utf-8")), {"--help"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"--[\w-]+", node.value):
            known |= {node.value, node.value.replace("--", "--no-", 1)}
        elif isinstance(node, ast.ClassDef):
            known |= {
                f"--{line.target.id}"
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            }
        elif isinstance(node, ast.Name) and node.id.endswith("TrainingArguments"):
            known |= {f"--{field.name}" for field in fields(TrainingArguments)} | {f"--{name}" for name in OURS}
    return known


def imports(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """The modules that a block imports, each with the name it takes from there, if any."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def test_the_readme_is_short_and_its_lines_are() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def test_relative_links_of_all_pages_lead_somewhere() -> None:
    """On GitHub too, where nothing builds the site."""
    wrong = [
        f"{relative(page)}: no {link}"
        for page in PAGES
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_the_readme_shows_how_to_start() -> None:
    shown = {command.words[:2] for command in COMMANDS if command.where.startswith("README")}
    assert {("make", "demo"), ("hf-compress", "run"), ("hf-compress", "push")} <= shown


def test_python_blocks_compile_and_import_what_exists() -> None:
    missing = []
    for block in PYTHON:
        for module, name in imports(ast.parse(block.text, str(block))):
            if name is not None and not hasattr(importlib.import_module(module), name):
                missing.append(f"{block}: {module} has no {name}")
            elif importlib.util.find_spec(module) is None:
                missing.append(f"{block}: no module {module}")
    assert not missing, "\n".join(missing)


def test_python_blocks_use_names_of_ours_that_exist() -> None:
    wrong = []
    for block in PYTHON:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.keyword) and re.match(r"(distill|prune|quant|compress)_", node.arg or ""):
                wrong += [f"{block}: no option {node.arg}"] if node.arg not in OURS else []
            elif (
                isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_compress"
            ):
                wrong += [f"{block}: no hf_compress.{node.attr}"] if not hasattr(hf_compress, node.attr) else []
    assert not wrong, "\n".join(wrong)


def test_python_blocks_marked_run_run(tmp_path: Path) -> None:
    """In a process of its own, as a reader would: some pages add to registries."""
    pages: dict[str, list[tuple[str, str]]] = {}
    for block in PYTHON:
        if block.run:
            pages.setdefault(block.page, []).append((str(block), block.text))
    assert pages
    code = [
        f"for blocks in {list(pages.values())!r}:",
        "    namespace = {'__name__': '__main__'}",
        "    for name, text in blocks:",
        "        exec(compile(text, name, 'exec'), namespace)",
    ]
    words, environment = [sys.executable, "-c", "\n".join(code)], os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_flags_of_ours_that_pages_name_exist() -> None:
    wrong = [
        f"{relative(page)}: no --{name}"
        for page in PAGES
        for name in re.findall(r"--((?:distill|prune|quant|compress)_\w+)", page.read_text(encoding="utf-8"))
        if name not in OURS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("target", sorted({word for c in of("make") for word in c.words[1:] if word.islower()}))
def test_make_targets_exist_and_set_themselves_up(target: str) -> None:
    # -W makes the set-up look due: then every recipe is expanded, whatever has been built here.
    words = ["make", "--dry-run", "-W", "constraints.txt", target]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "pip install" in run.stdout, "a target that does not set itself up"


def test_commands_of_hf_compress_and_their_flags_exist() -> None:
    wrong = []
    known_commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in of("hf-compress"):
        found, words = known_commands.get(command.words[1]), command.words[2:]
        if found is None:
            wrong.append(f"{command}: no such command")
            continue
        if inner := getattr(found, "commands", {}):  # Of `study`, what is not a command's name is a grid to run.
            found = inner[words[0]] if words[0] in inner else inner["run"]
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        script = next((word for word in words if word.endswith(".py")), None)
        if command.words[1] == "run":
            known = flags_of(script)
        wrong += [f"{command}: no {flag}" for flag in command.flags if flag not in known | {"--help"}]
    assert not wrong, "\n".join(wrong)


def flags_of(script: str | None) -> set[str]:
    """The flags of a script under the launcher; a reader's own takes those of Trainer and a few usual ones."""
    ours = {f"--{name}" for name in OURS}
    if script is None or script == ANY_SCRIPT:
        return ours | {f"--{field.name}" for field in fields(TrainingArguments)} | {"--model_name_or_path"}
    return ours | flags_of_script(ROOT / STOCK.get(script, script))


def test_launched_modules_scripts_and_configs_exist() -> None:
    wrong = []
    for command in of(r"torchrun|accelerate"):
        words = command.words
        wrong += [] if importlib.util.find_spec(words[words.index("-m") + 1]) else [f"{command}: no such module"]
        if "--config_file" in words:
            config = words[words.index("--config_file") + 1]
            wrong += [] if (ROOT / config).is_file() else [f"{command}: no {config}"]
        script = next(word for word in words if word.endswith(".py"))
        after = words[words.index(script) :]
        wrong += [f"{command}: no {w}" for w in after if w.startswith("--") and w not in flags_of(script)]
    assert not wrong, "\n".join(wrong)


def test_scripts_exist_and_know_their_flags() -> None:
    wrong = []
    for command in of(r"python[\d.]*"):
        if command.words[1] == "-m":
            wrong += [] if importlib.util.find_spec(command.words[2]) else [f"{command}: no such module"]
            continue
        script = ROOT / command.words[1]
        # A script that takes our flags off the command line has them all.
        takes_ours = script.is_file() and "take_flags" in script.read_text(encoding="utf-8")
        known = (flags_of_script(script) if script.is_file() else set()) | (flags_of(None) if takes_ours else set())
        wrong += [f"{command}: no {flag}" for flag in command.flags if flag not in known]
        wrong += [] if script.is_file() else [f"{command}: no such script"]
    assert not wrong, "\n".join(wrong)


def test_tests_that_the_guarantees_name_exist() -> None:
    """`...::name` is in the file that was named last; `name...` is the beginning of a name."""
    wrong, last = [], None
    for path, name in re.findall(r"`([\w./]*?)(?:::)?((?:\.\.\.)?test_\w+\.{0,3}|)`", GUARANTEES.read_text("utf-8")):
        if path.endswith(".py"):
            last = ROOT / path
            if not last.is_file():
                wrong.append(f"no {path}")
                continue
        if name and last is not None and last.is_file():
            beginning = name.removesuffix("...").removeprefix("...")
            ending = r"\w*" if name.endswith("...") else r"\b"
            if not re.search(rf"^ *def {beginning}{ending}\(", last.read_text("utf-8"), re.MULTILINE):
                wrong.append(f"{relative(last)} has no {name}")
    assert not wrong, "\n".join(wrong)


def test_the_api_page_has_every_public_name() -> None:
    public = {name for name, value in vars(hf_compress).items() if not name.startswith("_") and not ismodule(value)}
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert public - set(re.findall(r"^\.\. auto\w+:: (\w+)", page, re.MULTILINE)) == set()


def test_the_skill_has_a_name_and_a_description() -> None:
    front = re.match(r"---\nname: ([a-z-]+)\ndescription: (.+)\n---\n", SKILL.read_text(encoding="utf-8"))
    assert front is not None
    assert front[1] == SKILL.parent.name
    assert len(front[2]) <= 1024


def test_the_commands_of_ci_are_those_of_contributing() -> None:
    steps = set(re.findall(r"^step (make [\w-]+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE))
    shown = set(re.findall(r"`(make [\w-]+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert steps - {"make setup"} <= shown


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_of_the_readme_runs_and_leaves_a_card(tmp_path: Path) -> None:
    # Called from `make test-slow` it would speak of folders last.
    make = ["make", "--no-print-directory", "--dry-run", "demo"]
    dry = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    words = shlex.split(dry.stdout.splitlines()[-1])
    assert words[0].endswith("/hf-compress")
    result = CliRunner().invoke(app, [*words[1:-1], str(tmp_path / words[-1])], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    cards = list((tmp_path / words[-1]).rglob("README.md"))
    assert cards
    assert all((card.parent / "report.json").is_file() for card in cards)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    flags = (tmp_path / "reference" / "flags.html").read_text(encoding="utf-8")
    assert {name for name in OURS if f"--{name}" not in flags} == set()
