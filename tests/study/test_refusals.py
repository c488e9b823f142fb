"""Each mistake is refused in one sentence, before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig
from typer.testing import CliRunner

from hf_compress.study.run.program import MOST_PARTS, StudyOptions, chosen_cells
from hf_compress_cli import app
from tests.study.stub import VALUES, grid, planned

runner = CliRunner(env={"COLUMNS": "200"})
Say = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """A function that runs a grid with changes, expects one line of error, and checks that nothing was written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_compress.study.run.program.quiet", lambda: None)
    BertConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2).save_pretrained("bert")
    Path("bert/model.safetensors").write_bytes(b"")
    Path("data").mkdir()

    def run(changes: dict[str, Any] | str, *arguments: str) -> str:
        values = {"models": [{"name": "bert", "path": "./bert"}], "tasks": ["sst2"]}
        text = changes if isinstance(changes, str) else yaml.safe_dump(values | changes)
        Path("grid.yaml").write_text(text)
        before = sorted(map(str, Path().rglob("*")))
        result = runner.invoke(app, ["study", "grid.yaml", "--out", "out", *arguments])
        assert result.exit_code == 1 and result.output.startswith("Error: "), result.output
        assert result.output.count("\n") == 1 and "Traceback" not in result.output
        assert sorted(map(str, Path().rglob("*"))) == before
        return result.output

    return run


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"models": [{"name": 5, "path": "p"}]}, "`name`"),
        ({"models": [{"name": ["a"], "path": "p"}]}, "`name`"),
        ({"models": [{"name": "a", "path": 7}]}, "`path`"),
        ({"models": [{"name": "a\x1b[31m", "path": "p"}]}, "`name`"),
        ({"models": [{"name": "a", "path": "p", "hub_id": ["x"]}]}, "`hub_id`"),
        ({"models": [{"name": "a", "path": "p", "revision": 3}]}, "`revision`"),
        ({"models": [{"name": "a", "path": "p", "layers": 10**30}]}, "`layers`"),
        ({"tasks": [["sst2"]]}, "`tasks`"),
        ({"tasks": [{"name": ["sst2"]}]}, "`tasks`"),
        ({"tasks": [{"name": "sst2", "train_rows": 10**30}]}, "`train_rows`"),
        ({"data": ["glue"]}, "`data`"),
        ({"name": {}}, "`name`"),
        ({"teacher": ["large"]}, "`teacher`"),
        ({"methods": "dense"}, "`methods`"),
        ({"methods": [["kd"]]}, "`methods`"),
        ({"sparsities": 0.6}, "`sparsities`"),
        ({"sparsities": [float("nan")]}, "`sparsities`"),
        ({"seeds": 3}, "`seeds`"),
        ({"training": {"learning_rate": "fast"}}, "`learning_rate`"),
        ({"training": {"learning_rate": float("nan")}}, "`learning_rate`"),
        ({"training": {"num_train_epochs": [1]}}, "`num_train_epochs`"),
        ({"training": {"num_train_epochs": 0}}, "`num_train_epochs`"),
        ({"training": {"bf16": "yes"}}, "`bf16`"),
        ({"training": {"max_steps": 10**30}}, "`max_steps`"),
        ({"training": {"per_device_train_batch_size": 0}}, "`per_device_train_batch_size`"),
        ({"training": {"optim": 3}}, "`optim`"),
        ({"training": {3: 4}}, "`3`"),
        ({"dense_training": {"weight_decay": "some"}}, "`weight_decay`"),
        ({"tasks": [{"name": "sst2", "training": {"warmup_steps": "long"}}]}, "`warmup_steps`"),
        ({"recipe": {"distill_alpha": "much"}}, "`distill_alpha`"),
        ({"recipe": {"distill_temperature": [1, [2]]}}, "`distill_temperature`"),
        ({"recipe": {"prune_exclude": 5}}, "`prune_exclude`"),
        ({"recipe": {"prune_every": 10**30}}, "`prune_every`"),
        ({"recipe": {"distill_alpha": True}}, "`distill_alpha`"),
    ],
)
def test_wrong_types_and_values_of_a_grid_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as raised:
        grid(**changes)
    assert named in str(raised.value), raised.value


def test_training_arguments_of_legal_types_are_taken() -> None:
    training = {
        "learning_rate": 1, "warmup_steps": 0.1, "bf16": True, "optim": "adamw_torch", "lr_scheduler_type": "linear",
        "lr_scheduler_kwargs": {"num_cycles": 2}, "max_grad_norm": 1.0, "label_names": ["labels"], "adam_beta1": 0.9,
        "eval_delay": 1.5, "neftune_noise_alpha": 5, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "optim_args": "eps=1e-6", "train_sampling_strategy": "group_by_length",
    }  # fmt: skip
    assert grid(training=training).training == training


def test_a_grid_file_with_a_key_twice_is_refused(refused: Say) -> None:
    twice = "models: [{name: bert, path: ./bert}]\ntasks: [sst2]\nseeds: [0]\nseeds: [1]\n"
    assert "'seeds' occurs twice" in refused(twice)


def test_a_grid_that_expands_without_end_is_refused(refused: Say) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    assert "grid.yaml" in refused("\n".join(lines))


def test_a_grid_of_too_many_cells_is_refused(refused: Say) -> None:
    changes = {"seeds": list(range(2000)), "sparsities": [n / 1000 for n in range(1, 900)]}
    assert "cells" in refused(changes, "--dry-run")


@pytest.mark.parametrize("part", ["1/999999999999", "1/" + "9" * 5000, "-1/2", "1/2/3", f"1/{MOST_PARTS + 1}"])
def test_a_part_beyond_all_reason_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="`--cells`") as raised:
        chosen_cells(planned(), part)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "options",
    [
        {"jobs": 10**9},
        {"threads": 10**9},
        {"cpus": float("nan")},
        {"gpus": float("inf")},
        {"retries": 10**20},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"`--{name}`"):
        StudyOptions(**options)


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"models": [{"name": "a", "path": "./none"}]}, "./none"),
        ({"models": [{"name": "a", "path": "data"}]}, "without model files"),
        ({"models": [{"name": "a", "path": "package:no_such_package/model"}]}, "no_such_package"),
        ({"models": [{"name": "a", "path": "./bert", "layers": [1, 3]}]}, "`layers`"),
        ({"data": "./none"}, "./none"),
        ({"training": {"optim": "adamm"}}, "adamm"),
    ],
)
def test_a_dry_run_sees_what_a_run_would_refuse(
    refused: Say, changes: dict[str, Any], named: str, arguments: tuple[str, ...]
) -> None:
    assert named in refused(changes, *arguments)


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_a_missing_or_empty_data_folder_is_refused(refused: Say, arguments: tuple[str, ...]) -> None:
    assert "`--data none`" in refused({}, "--data", "none", *arguments)
    assert "`--data data`" in refused({}, "--data", "data", *arguments)


def test_an_output_that_is_a_file_is_refused(refused: Say) -> None:
    Path("out").write_text("")
    assert "out must be the folder of a study" in refused({}, "--dry-run")


def test_a_dry_run_names_what_it_could_not_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_compress.study.run.program.quiet", lambda: None)
    Path("grid.yaml").write_text(yaml.safe_dump(VALUES))
    result = runner.invoke(app, ["study", "grid.yaml", "--out", "out", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "not checked" in result.output and "owner/large" in result.output and "nyu-mll/glue" in result.output
    assert not Path("out").exists()
