"""README.md is read by a machine here, so that what it shows works.

A fenced block of `python` must compile and import names that exist; one marked `python run` (readers see no
difference) is executed as well. In blocks of `bash`, make targets, subcommands, scripts and flags must exist; the demo
is run by the slow tests.
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
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hf_compress.launch.flags import KINDS
from hf_compress_cli import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OURS = {field.name for arguments in KINDS for field in fields(arguments)}


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language, whether it is marked `run`, its text and the line where it begins."""

    language: str
    run: bool
    text: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}"


@cache
def blocks() -> tuple[Block, ...]:
    text = README.read_text(encoding="utf-8")
    return tuple(
        Block(match[1], "run" in match[2].split(), match[3], text[: match.start()].count("\n") + 1)
        for match in re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    )


PYTHON = [block for block in blocks() if block.language in ("python", "py")]
SHELL = [block for block in blocks() if block.language in ("bash", "sh", "shell", "console")]


@dataclass(frozen=True)
class Command:
    """One shell command of the README: its words, without assignments before it and without the program's folder."""

    words: tuple[str, ...]
    line: int

    @property
    def flags(self) -> list[str]:
        return [word.partition("=")[0] for word in self.words if word.startswith("--") and word != "--"]

    def __str__(self) -> str:
        return f"line {self.line}: {' '.join(self.words[:3])}"


def commands() -> list[Command]:
    found = []
    for block in SHELL:
        for line in block.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&;|")
            lexer.whitespace_split = True
            for piped, words in itertools.groupby(lexer, key=lambda token: set(token) <= set("&;|")):
                command = list(itertools.dropwhile(re.compile(r"\w+=").match, () if piped else words))
                if command:
                    found.append(Command((Path(command[0]).name, *command[1:]), block.line))
    return found


COMMANDS = commands()


@cache
def help_of_script(path: Path) -> str:
    run = subprocess.run(
        [sys.executable, str(path), "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{path} --help fails:\n{run.stderr}"
    return run.stdout


def test_the_readme_shows_python_a_command_line_and_how_to_run_the_tests() -> None:
    assert PYTHON
    assert any(command.words[0] == "hf-compress" for command in COMMANDS)
    assert any(command.words == ("make", "test") for command in COMMANDS)
    assert any(command.words == ("make", "demo") for command in COMMANDS)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_compile_and_import_names_that_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_keyword_arguments_of_ours_in_python_blocks_exist(block: Block) -> None:
    names = {node.arg for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.keyword) and node.arg}
    prefixed = {name for name in names if re.match(r"(distill|prune|quant|compress)_", name)}
    assert prefixed <= OURS


@pytest.mark.parametrize("block", [block for block in PYTHON if block.run], ids=str)
def test_python_blocks_marked_so_run(block: Block, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_every_flag_of_ours_named_in_the_readme_exists_and_every_flag_is_named() -> None:
    named = set(re.findall(r"--((?:distill|prune|quant|compress)_\w+)", README.read_text(encoding="utf-8")))
    assert named == OURS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "make"], ids=str)
def test_make_targets_exist(command: Command) -> None:
    # -W makes the set-up look due: then every recipe is expanded, whatever has been built here.
    words = ["make", "--dry-run", "-W", "constraints.txt", *command.words[1:]]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "pip install" in run.stdout, "a target that does not set itself up"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "hf-compress"], ids=str)
def test_subcommands_of_hf_compress_and_their_flags_exist(command: Command) -> None:
    subcommands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert command.words[1] in subcommands
    found = subcommands[command.words[1]]
    if inner := getattr(found, "commands", {}):  # Of `study`, where what is no command's name is a grid to run.
        found = inner.get(command.words[2], inner["run"])
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(command.flags) <= known | {"--help"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python[\d.]*$", c.words[0])], ids=str)
def test_scripts_exist_and_know_their_flags(command: Command) -> None:
    if command.words[1] == "-m":
        assert importlib.util.find_spec(command.words[2]), f"no module {command.words[2]}"
        return
    script = ROOT / command.words[1]
    assert script.is_file()
    known = set(re.findall(r"--[\w-]+", help_of_script(script)))
    assert set(command.flags) <= known


def test_the_commands_of_ci_are_those_of_the_readme() -> None:
    assert re.search(r"\bmake test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_that_the_readme_promises_runs_and_leaves_a_card(tmp_path: Path) -> None:
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
