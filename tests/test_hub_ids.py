"""A compressed model is named by its id on the Hub wherever its folder would be, at any revision."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from typer.testing import CliRunner

from hf_compress.distill.teacher import load_teacher
from hf_compress.folders import local_folder
from hf_compress.launch.option_file import read_options
from hf_compress.models.heads import find_head
from hf_compress_cli import app
from tests.checkpoint.test_format import RECIPES, compressed
from tests.hub.local import LocalHub

ID, IDS = "me/packed", torch.arange(20).reshape(2, 10)
runner = CliRunner()


@pytest.fixture
def folder(make_bert: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    return compressed(make_bert(), RECIPES["pruned int8"], tmp_path / "packed")


@pytest.fixture
def hub(local_hub: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A Hub with the folder as me/packed, and nothing in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    local_hub.add(ID, folder)
    return local_hub


def first_commit(hub: LocalHub) -> str:
    """The commit of the packed model, before another one replaces its configuration."""
    commit = str(hub.api().model_info(ID).sha)
    hub.add(ID, {"config.json": b"{}", "recipe.json": b"{}"})
    return commit


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_repository_loads_by_its_id(hub: LocalHub, folder: Path) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(ID)
    assert torch.equal(logits(loaded), logits(AutoModelForSequenceClassification.from_pretrained(folder)))


def test_inspect_shows_a_repository_at_a_revision(hub: LocalHub, folder: Path) -> None:
    commit = first_commit(hub)
    shown = json.loads(runner.invoke(app, ["inspect", f"{ID}@{commit}", "--json"]).stdout)
    assert shown == json.loads(runner.invoke(app, ["inspect", str(folder), "--json"]).stdout)
    assert runner.invoke(app, ["inspect", ID]).exit_code == 1


def test_only_what_is_asked_for_is_downloaded(hub: LocalHub) -> None:
    hub.add(ID, {"onnx/model.onnx": b"large"})
    copy = local_folder(ID, only=["*.json"])
    assert {path.name for path in copy.iterdir()} == {"config.json", "recipe.json"}


def test_bench_measures_repositories_by_their_ids(hub: LocalHub, folder: Path) -> None:
    options = ["--batch-size", "1", "--length", "4", "--rounds", "1", "--variants", "torch-dense", "--json"]
    result = runner.invoke(app, ["bench", ID, str(folder), *options])
    assert result.exit_code == 0, result.output
    names = [variant["name"] for variant in json.loads(result.stdout)["variants"]]
    assert names == ["me/packed: torch-dense", "packed: torch-dense"]


def test_bench_saves_into_folders_only(hub: LocalHub) -> None:
    result = runner.invoke(app, ["bench", ID, "--save"])
    assert result.exit_code == 1
    assert f"`--save` writes into folders, but {ID} is on the Hub" in " ".join(result.output.split())


def test_a_recipe_is_read_from_an_earlier_result(hub: LocalHub, folder: Path) -> None:
    commit = first_commit(hub)
    options = read_options(f"{ID}@{commit}")
    assert options == read_options(folder) and options["prune_sparsity"] == 0.8
    with pytest.raises(ValueError, match="`--compress_config me/nothing`: There is no path me/nothing here"):
        read_options("me/nothing")
    with pytest.raises(ValueError, match="must be a YAML or JSON file, or a folder or Hub id"):
        read_options("runs/recipe.yaml")


@pytest.mark.parametrize("revision", ["", "@"])
def test_a_compressed_teacher_has_an_id(revision: str, hub: LocalHub, folder: Path) -> None:
    head = find_head(AutoModelForSequenceClassification.from_pretrained(folder))
    name = f"{ID}@{first_commit(hub)}" if revision else ID
    assert torch.equal(logits(load_teacher(name, head)), logits(load_teacher(str(folder), head)))


def test_a_teacher_that_the_hub_lacks_is_refused(hub: LocalHub, make_bert: Any) -> None:
    head = find_head(make_bert())
    with pytest.raises(ValueError, match="`--distill_teacher me/packed@v9`: me/packed has no revision v9"):
        load_teacher(f"{ID}@v9", head)
    with pytest.raises(ValueError, match="`--distill_teacher me/nothing` must be a path or Hub id"):
        load_teacher("me/nothing", head)


@pytest.mark.parametrize("path", ["/no/such", "./such", "~/such"])
def test_a_teacher_at_a_path_that_is_not_there_is_refused(path: str, make_bert: Any) -> None:
    with pytest.raises(ValueError, match=f"`--distill_teacher {path}`: {path} is neither an existing path nor a Hub"):
        load_teacher(path, find_head(make_bert()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "me/nothing",
            "and the Hub has no repository me/nothing that you may read.",
        ),
        ("me/packed@v9", "me/packed has no revision v9. Give a branch, a tag or a commit"),
    ],
)
def test_inspect_says_what_the_hub_lacks(given: str, said: str, hub: LocalHub) -> None:
    result = runner.invoke(app, ["inspect", given])
    assert result.exit_code == 1 and said in " ".join(result.output.split())
