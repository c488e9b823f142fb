"""Models with convolutions go through everything that models of linear layers go through."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    CLIPConfig,
    ConvNextConfig,
    PreTrainedModel,
    Trainer,
)

from hf_compress import CompressionConfig, PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.checkpoint.inventory import tensors
from hf_compress.goals import BudgetArguments
from hf_compress.layers.integer import Integer
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.heads import find_head
from hf_compress.models.layer_kinds import CONVOLUTIONS, kind
from hf_compress.models.targets import prunable
from hf_compress.prune.coverage import pruned_layers
from tests.checkpoint.test_format import RECIPES, compressed
from tests.invariants.harness import PRUNE, QUANT, make, recipe, same, trained
from tests.invariants.test_heads import VIT, vit, wav2vec2

IMAGE = AutoModelForImageClassification


def convnext() -> PreTrainedModel:
    """Convolutions of patches, depthwise ones, and between stages."""
    return IMAGE.from_config(ConvNextConfig(depths=[1, 1], hidden_sizes=[16, 32], num_stages=2, num_labels=3))


def clip() -> PreTrainedModel:
    tower = {**VIT, "image_size": 8, "patch_size": 4}
    return IMAGE.from_config(CLIPConfig(vision_config=tower, text_config={**VIT, "vocab_size": 9}, num_labels=3))


def waveforms() -> PreTrainedModel:
    return AutoModelForAudioClassification.from_config(wav2vec2(num_labels=3))


def rows(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    batch = find_head(model).example_batch(model, rows=16) | {"labels": torch.arange(16) % 3}
    return [{name: values[row] for name, values in batch.items()} for row in range(16)]


def convolutions(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if kind(module) in CONVOLUTIONS}


def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize(("build", "count"), [(convnext, 4), (clip, 1), (waveforms, 2)])
def test_convolutions_survive_all_methods(build: Any, count: int, round_trip: Any) -> None:
    model = build()
    found = convolutions(model)
    trip = round_trip(model, rows(model))
    trip.check()
    assert len(found) == count and found <= trip.pruned and found <= trip.quantized
    stored = {facts.name.removesuffix(".weight"): facts for facts in trip.facts}
    assert all(stored[name].grid_bits == 8 and len(stored[name].shape) > 2 for name in found)


def test_a_weight_normed_convolution_stays_in_floating_point(tmp_path: Path) -> None:
    """The positions of Wav2Vec2: direction and length are parameters, and the weight is computed from them."""
    model = waveforms()
    folder = compressed(model, RECIPES["pruned int8"], tmp_path / "packed")
    found = [facts for facts in tensors(folder) if "pos_conv_embed" in facts.name]
    assert len(found) == 3 and all(facts.grid_bits is None for facts in found)
    assert not any("pos_conv_embed" in target.name for target in prunable(model))
    batch = find_head(model).example_batch(model)
    assert torch.equal(logits(AutoModelForAudioClassification.from_pretrained(folder), batch), logits(model, batch))


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "int4-weight", "steps", "very pruned int8"])
def test_a_file_of_convolutions_loads_to_the_same_bits(recipe: str, tmp_path: Path) -> None:
    model = convnext()
    folder = compressed(model, RECIPES[recipe], tmp_path / "packed")
    batch = find_head(model).example_batch(model)
    loaded = IMAGE.from_pretrained(folder)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert convolutions(model) <= set(loaded.config.quantization_config.quantized)
    loaded.save_pretrained(tmp_path / "again")
    files = [(place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "again")]
    assert files[0] == files[1]


@pytest.mark.parametrize("recipe", ["int8", "int4-weight", "steps"])
def test_integers_in_memory_leave_convolutions_floating(recipe: str, tmp_path: Path) -> None:
    model = convnext()
    folder = compressed(model, RECIPES[recipe], tmp_path / "packed")
    batch = find_head(model).example_batch(model)
    loaded = IMAGE.from_pretrained(folder, quantization_config=CompressionConfig(run="int8"))
    layers = compressed_layers(loaded)
    found = convolutions(loaded)
    assert all(isinstance(layer, Integer) != (name in found) for name, layer in layers.items())
    assert all(layers[name].weight.is_floating_point() for name in found)
    expected = logits(model, batch)
    assert float((logits(loaded, batch) - expected).abs().max()) < 1e-2 * float(expected.std())
    loaded.save_pretrained(tmp_path / "again")
    files = [(place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "again")]
    assert files[0] == files[1]


def test_a_resumed_run_ends_with_the_same_convolutions(tmp_path: Path) -> None:
    plan = Recipe(
        pruning=PruningArguments(prune_sparsity=0.6, prune_every=2),
        quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.3),
    )

    def run(resumes: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = convnext()
        given: dict[str, Any] = {"model": model, "data": rows(model), "plan": plan, "trainer_class": Trainer}
        trainer = make(tmp_path, save_strategy="steps", save_steps=7, **given)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7") if resumes else None)
        return dict(model.state_dict())

    whole = run(resumes=False)
    assert same(whole, run(resumes=True))
    assert any(name.endswith("dwconv.input_range") for name in whole)


def test_a_budget_is_kept_in_a_model_of_convolutions(tmp_path: Path) -> None:
    """Their steps follow the sensitivity as those of linear layers do; only error feedback leaves them out."""
    plan = Recipe(
        quantization=QuantizationArguments(quant_scheme="int8"), budget=BudgetArguments(compress_budget_mb=0.016)
    )
    model = convnext()
    trained(tmp_path / "run", model=model, data=rows(model), plan=plan, trainer_class=Trainer)
    folder = save_compressed(model, tmp_path / "packed", plan)
    size = (folder / "model.safetensors").stat().st_size
    assert 0.95 * 16_000 < size <= 16_000
    found, batch = convolutions(model), find_head(model).example_batch(model)
    steps = {name: layer.step for name, layer in compressed_layers(model).items() if name in found}
    assert len(steps) == 4 and all(step is not None and bool((step > 0).all()) for step in steps.values())
    assert torch.equal(logits(IMAGE.from_pretrained(folder), batch), logits(model, batch))


def test_structure_is_removed_around_convolutions(tmp_path: Path) -> None:
    plan = Recipe(
        pruning=PruningArguments(prune_sparsity=0.5, prune_pattern="neurons+heads", prune_every=2),
        quantization=QuantizationArguments(quant_scheme="int8"),
    )
    model = IMAGE.from_config(vit(num_labels=3))
    trained(tmp_path / "run", model=model, data=rows(model), plan=plan, trainer_class=Trainer)
    loaded = IMAGE.from_pretrained(save_compressed(model, tmp_path / "packed", plan))
    config, batch = loaded.config.quantization_config, find_head(model).example_batch(model)
    assert config.widths and convolutions(loaded) <= set(config.quantized) - set(config.pruned)
    assert torch.allclose(logits(loaded, batch), logits(model, batch), atol=1e-5)


def test_convolutions_beside_an_adapter_are_compressed(tmp_path: Path) -> None:
    model = IMAGE.from_config(vit(num_labels=3))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))
    trained(tmp_path / "run", [PRUNE, QUANT], model=adapted, data=rows(model), trainer_class=Trainer)
    folder = save_compressed(adapted, tmp_path / "packed", recipe([PRUNE, QUANT]))
    loaded, batch = IMAGE.from_pretrained(folder), find_head(model).example_batch(model)
    (name,) = convolutions(loaded)
    weight = loaded.get_submodule(name).weight
    assert float((weight == 0).float().mean()) >= 0.6
    assert torch.equal(logits(loaded, batch), logits(adapted, batch))


def test_the_log_says_once_what_each_method_leaves_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The positions of Wav2Vec2 are a tenth of this model, so that it is a warning; of a BERT it is information."""
    caplog.set_level(logging.INFO, "hf_compress.callbacks")
    model = waveforms()
    trained(tmp_path, [PRUNE, QUANT], model=model, data=rows(model), trainer_class=Trainer)
    said = [record for record in caplog.records if "% of the weights" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING", "WARNING"]
    assert [record.getMessage().split()[0] for record in said] == ["`--prune_sparsity", "`--quant_scheme"]
    assert all("pos_conv_embed.conv.parametrizations.weight.original1 (" in one.getMessage() for one in said)
    caplog.clear()
    trained(tmp_path, [PRUNE, QUANT], trainer_class=Trainer)
    said = [record for record in caplog.records if "% of the weights" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO", "INFO"]
    assert said[1].getMessage().endswith("These stay in floating point: the head, biases and norms.")


@pytest.mark.parametrize("pattern", ["2:4", "4x1"])
def test_patterns_of_matrices_leave_convolutions_dense(pattern: str) -> None:
    arguments = PruningArguments(0.5, prune_pattern=pattern)
    found = {target.name for target in pruned_layers(convnext(), arguments)}
    assert found and not found & convolutions(convnext())
    with pytest.raises(ValueError, match=rf"`--prune_pattern {pattern}` prunes linear layers only.*unstructured"):
        pruned_layers(convnext(), PruningArguments(0.5, prune_pattern=pattern, prune_exclude=["pwconv"]))
