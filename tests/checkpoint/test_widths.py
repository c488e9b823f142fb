"""Checkpoints of models without some neurons and heads load everywhere, and hostile widths are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.save import save_compressed
from hf_compress.cut.removal import remove_groups
from hf_compress.models.widths import widths_of
from hf_compress.recipe import Recipe
from tests.checkpoint.test_format import _equal, read
from tests.checkpoint.test_stock import stock, weights, with_and_without  # noqa: F401 - a fixture
from tests.cut.test_removal import BOTH, unread
from tests.invariants.test_models import CONFIGS
from tests.quantized import quantized

IDS = torch.arange(20).reshape(2, 10)
FFN, OUT = "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(IDS).logits


@pytest.fixture
def smaller(make_bert: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    model = make_bert()
    unread(model, BOTH, whole=True)
    remove_groups(model, BOTH)
    return model


@pytest.fixture
def folder(smaller: PreTrainedModel, tmp_path: Path) -> Path:
    return quantized(smaller, tmp_path / "packed", "int8")


@pytest.mark.parametrize("scheme", [None, "int8", "int8-attention", "int8-dynamic", "int8-weight", "int4-weight"])
def test_a_saved_model_has_its_widths_and_logits(scheme: str | None, smaller: PreTrainedModel, tmp_path: Path) -> None:
    folder = quantized(smaller, tmp_path / "packed", scheme)
    config = json.loads((folder / "config.json").read_text())
    assert config["intermediate_size"] == 64
    assert config["quantization_config"]["widths"][FFN] == [32, 32]
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(reloaded), logits(smaller))
    assert widths_of(reloaded) == widths_of(smaller)
    reloaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_integers_stay_integers_in_smaller_layers(folder: Path) -> None:
    dense = AutoModelForSequenceClassification.from_pretrained(folder)
    integers = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=CompressionConfig(run="int8")
    )
    assert integers.get_submodule(FFN).weight.dtype == torch.int8
    assert integers.get_submodule(FFN).weight.shape == (32, 32)
    assert torch.allclose(logits(integers), logits(dense), atol=1e-6)


@pytest.mark.parametrize("places", ["cpu", "auto", {"bert": "disk", "classifier": "cpu"}], ids=["cpu", "auto", "disk"])
def test_a_device_map_puts_smaller_layers_in_their_places(places: Any, folder: Path, tmp_path: Path) -> None:
    expected = logits(AutoModelForSequenceClassification.from_pretrained(folder))
    placed = AutoModelForSequenceClassification.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "offload"
    )
    assert torch.equal(logits(placed), expected)


def test_shards_and_inventory_have_the_smaller_shapes(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "shards")), logits(model))
    shapes = {fact.name: fact.shape for fact in inventory.tensors(tmp_path / "shards")}
    assert shapes[f"{FFN}.weight"] == (32, 32) == shapes[f"{OUT}.weight"]
    _equal(model.state_dict(), read(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        ("bert", AutoModelForMaskedLM),
        ("gpt2", AutoModelForCausalLM),
        ("deberta-v2", AutoModelForMaskedLM),
        ("modernbert", AutoModelForMaskedLM),
        ("llama", AutoModelForCausalLM),
        ("albert", AutoModelForMaskedLM),
        ("distilbert", AutoModelForMaskedLM),
    ],
)
def test_transformers_alone_reads_smaller_layers(
    family: str, auto_class: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = auto_class.from_config(CONFIGS[family]()).eval()
    unread(model, BOTH, whole=True)
    remove_groups(model, BOTH)
    folder = quantized(model, tmp_path / "packed", "int8")
    expected = logits(model)
    loaded, ours = with_and_without(folder, request, auto_class)
    assert torch.equal(logits(ours), expected) and torch.equal(logits(loaded), expected)
    assert all(torch.equal(tensor, weights(ours)[name]) for name, tensor in weights(loaded).items())
    for name, (outputs, inputs) in widths_of(ours).items():
        layer = loaded.get_submodule(name)
        assert not isinstance(layer, nn.Linear) or (layer.out_features, layer.in_features) == (outputs, inputs), name


def test_a_model_that_is_only_smaller_is_packed(smaller: PreTrainedModel, tmp_path: Path) -> None:
    """Nothing is pruned or quantized any more, but an ordinary file could not say the widths."""
    folder = save_compressed(smaller, tmp_path / "packed", Recipe())
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(folder)), logits(smaller))


def test_widths_are_under_the_seal(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["widths"]["bert.encoder.layer.1.output.dense"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="shape"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    config["quantization_config"]["widths"]["bert.pooler.dense"] = [32, 32]  # What it has.
    config["quantization_config"]["widths"]["bert.encoder.layer.1.output.dense"] = [32, 32]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was not saved together"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    "widths",
    [
        [],
        "all",
        {FFN: 3},
        {FFN: [3]},
        {FFN: [3, 3, 3]},
        {FFN: [0, 3]},
        {FFN: [-1, 3]},
        {FFN: [True, 3]},
        {FFN: [1.5, 3]},
        {FFN: ["3", 3]},
        {FFN: [None, 3]},
        {FFN: [1 << 31, 3]},
        {3: [3, 3]},
    ],
)
def test_widths_of_another_form_are_refused(widths: Any) -> None:
    with pytest.raises(ValueError, match="`quantization_config.widths` must map"):
        CompressionConfig(widths=widths)


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({"nowhere": [1, 1]}, "no linear layer"),
        ({FFN: [1 << 30, 1 << 30]}, "at most 64 and 32"),
        ({FFN: [63, 32]}, "shape"),
    ],
)
def test_widths_that_are_not_those_of_the_file_are_refused(widths: Any, said: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["widths"] |= widths
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match=said):
        inventory.tensors(folder)
