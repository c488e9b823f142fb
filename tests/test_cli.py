"""`hf-compress` shows what a folder holds, and says what is wrong in one line."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from transformers import BertForSequenceClassification
from typer.core import TyperGroup
from typer.testing import CliRunner

from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.save import save_compressed
from hf_compress.models.targets import prunable
from hf_compress.prune.arguments import PruningArguments
from hf_compress.recipe import Recipe
from hf_compress.report.bench import VARIANTS
from hf_compress_cli import app

ROOT = Path(__file__).parents[1]
runner = CliRunner(env={"COLUMNS": "160"})


def commands(group: TyperGroup, *words: str) -> list[list[str]]:
    """The words of every command in `group` and in the groups in it."""
    found = []
    for name, command in group.commands.items():
        found += [[*words, name], *(commands(command, *words, name) if isinstance(command, TyperGroup) else [])]
    return found


COMMANDS = commands(typer.main.get_command(app))


def test_help_imports_nothing_that_takes_seconds() -> None:
    """In a process of its own: here all is imported. Only `run` shows flags that Transformers' parser knows."""
    code = """if True:
        import contextlib, io, json, sys
        from hf_compress_cli import app
        said = io.StringIO()
        for words in json.loads(sys.argv[1]):
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                app([*words, "--help"], prog_name="hf-compress")
        print(json.dumps([said.getvalue(), sorted(sys.modules)]))
    """
    calls = [[], *(words for words in COMMANDS if words != ["run"])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], env=environment, capture_output=True, text=True, check=True
    )
    said, modules = json.loads(ran.stdout)
    assert said.count("Usage: hf-compress") == len(calls)
    assert not {"hf_compress", "torch", "transformers", "datasets", "numpy"} & set(modules)


@pytest.fixture
def folder(tiny_bert: BertForSequenceClassification, tmp_path: Path) -> Path:
    """A tiny BERT with half of its prunable weights zero, packed."""
    with torch.no_grad():
        for target in prunable(tiny_bert):
            target.weight.view(-1)[::2] = 0
    return save_compressed(tiny_bert, tmp_path / "compressed", Recipe(pruning=PruningArguments(prune_sparsity=0.5)))


def test_inspect_sums_up_by_layer_and_in_all(folder: Path) -> None:
    result = runner.invoke(app, ["inspect", str(folder)])
    assert result.exit_code == 0, result.output
    rows = {
        line.split("  ")[1].strip(): line
        for line in result.stdout.splitlines()
        if line.strip() and line.startswith("  ")
    }
    layers = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert list(rows) == ["part or layer", "embeddings", *layers, "rest of the encoder", "head", "total"]
    facts = inventory.tensors(folder)
    assert f"{sum(fact.stored_bytes for fact in facts):,}" in rows["total"]
    assert f"{sum(fact.numel for fact in facts):,}" in rows["total"]
    assert f"{(folder / 'model.safetensors').stat().st_size:,} bytes in safetensors files" in result.stdout
    assert "bytes of headers" in result.stdout


def test_inspect_says_how_much_each_method_touched(folder: Path, tmp_path: Path) -> None:
    result, facts = runner.invoke(app, ["inspect", str(folder)]), inventory.tensors(folder)
    pruned = [fact for fact in facts if fact.sparsity > 0.4 and len(fact.shape) == 2]
    weights = 100 * sum(fact.numel for fact in pruned) / sum(fact.numel for fact in facts)
    size = 100 * sum(fact.stored_bytes for fact in pruned) / sum(fact.stored_bytes for fact in facts)
    said = f"in pruned layers: {weights:.1f} % of the weights, {size:.1f} % of the bytes; dense: embeddings"
    assert said in result.stdout.replace("\n", " ") and "as integers" not in result.stdout
    values = json.loads(runner.invoke(app, ["inspect", str(folder), "--json"]).stdout)
    assert values["touched"]["pruned"]["weights"] == sum(fact.numel for fact in pruned)
    dense = save_compressed(BertForSequenceClassification.from_pretrained(folder), tmp_path / "dense", Recipe())
    assert "as integers or pruned: nothing" in runner.invoke(app, ["inspect", str(dense)]).stdout


def test_inspect_shows_what_each_codec_would_take(folder: Path) -> None:
    result = runner.invoke(app, ["inspect", str(folder), "--codecs"])
    assert result.exit_code == 0, result.output
    assert "mask planes" in result.stdout and "gaps pairs" in result.stdout
    values = json.loads(runner.invoke(app, ["inspect", str(folder), "--codecs", "--json"]).stdout)
    for row in values["tensors"]:
        sizes = [size for size in row["bytes_by_codec"].values() if size is not None]
        assert len(sizes) >= 3 and row["stored_bytes"] == min(sizes)


def test_inspect_shows_each_tensor_with_its_shape(folder: Path) -> None:
    result = runner.invoke(app, ["inspect", str(folder), "--tensors"])
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if "layer.0.intermediate.dense.weight" in line]
    assert "64 x 32" in row
    assert "50.0 %" in row


def test_the_json_of_inspect_holds_every_tensor_and_their_sum(folder: Path) -> None:
    result = runner.invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert {row["name"]: row["stored_bytes"] for row in values["tensors"]} == {
        fact.name: fact.stored_bytes for fact in inventory.tensors(folder)
    }
    for key in ("weights", "stored_bytes", "dense_bytes"):
        assert values["total"][key] == sum(row[key] for row in values["tensors"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "EMPTY"], "EMPTY"),
        (["inspect", "no such folder/at all"], "no such folder/at all is neither an existing path nor a Hub id"),
        (
            ["inspect", "someone/nothing"],
            "and the Hub is switched off by HF_HUB_OFFLINE",
        ),
        (["push", "EMPTY", "someone/small"], "lacks report.json"),
    ],
)
def test_a_user_s_mistake_is_one_message_without_traceback(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, [argument.replace("EMPTY", str(tmp_path)) for argument in arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert message.replace("EMPTY", str(tmp_path)) in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_demo_runs_the_demonstration_in_the_folder_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders: list[Path] = []
    demonstration = SimpleNamespace(main=folders.append)
    monkeypatch.setitem(sys.modules, "hf_compress_cli.demonstration", demonstration)
    monkeypatch.setattr("hf_compress_cli.demonstration", demonstration, raising=False)
    assert runner.invoke(app, ["demo", "--out", str(tmp_path)]).exit_code == 0
    assert folders == [tmp_path]


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path) -> list[object]:
        raise AssertionError("a bug")

    monkeypatch.setattr(inventory, "tensors", broken)
    assert isinstance(runner.invoke(app, ["inspect", str(tmp_path)]).exception, AssertionError)


def test_help_lists_the_commands_one_line_each() -> None:
    assert [words[0] for words in COMMANDS if len(words) == 1] == [
        "run", "finish", "quantize", "inspect", "bench", "push", "verify", "demo", "study", "cache",
    ]  # fmt: skip
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    lines = [line.strip("│ ") for line in result.stdout.splitlines()]
    for (name,) in (words for words in COMMANDS if len(words) == 1):
        (summary,) = [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]
        assert summary.endswith("."), "the summary of a command fits one line"


def test_there_is_one_file_per_command() -> None:
    files = {path.stem for path in (ROOT / "hf_compress_cli").glob("*.py")}
    assert {words[0] for words in COMMANDS} == files - {"__init__", "console", "demonstration", "errors"}


def test_help_of_bench_names_every_variant() -> None:
    shown = " ".join(runner.invoke(app, ["bench", "--help"]).stdout.split())
    assert all(variant in shown for variant in VARIANTS)


@pytest.mark.parametrize("options", [["--json", "FOLDER", "FOLDER"], ["--markdown", "--tensors", "FOLDER"]])
def test_inspect_refuses_details_of_several_models(options: list[str], folder: Path) -> None:
    result = runner.invoke(app, ["inspect", *(option.replace("FOLDER", str(folder)) for option in options)])
    assert result.exit_code == 2 and "need exactly one PATH_OR_REPO" in result.stderr


def test_names_in_a_file_do_not_reach_the_terminal_as_markup(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    name = "[red]\x1b[31mlayer[/red]"
    fact = dataclasses.replace(inventory.tensors(folder)[0], name=name)
    monkeypatch.setattr(inventory, "tensors", lambda folder: [fact])
    result = runner.invoke(app, ["inspect", str(folder), "--tensors"])
    assert result.exit_code == 0, result.output
    assert "[red]\\x1b[31mlayer[/red]" in result.stdout and "\x1b" not in result.stdout
