"""A model loaded from a compressed file keeps its zeros, grids and ranges, whatever is done to it next."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable
from tests.invariants.harness import SETTINGS, bert, rows

SCHEMES = ["int8", "int8-dynamic", "int8-weight", "int4-weight", "int8-attention"]


def train(model: PreTrainedModel, folder: Path, plan: Recipe | None = None, **settings: Any) -> Trainer:
    arguments = TrainingArguments(output_dir=str(folder), **SETTINGS | {"seed": 5} | settings)
    run = Trainer(model, arguments, train_dataset=rows(), callbacks=plan.callbacks() if plan else [])
    run.train()
    return run


def plan(sparsity: float = 0.0, scheme: str | None = None) -> Recipe:
    pruning = PruningArguments(prune_sparsity=sparsity, **{"prune_every": 2} if sparsity else {})
    return Recipe(pruning=pruning, quantization=QuantizationArguments(quant_scheme=scheme))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that gives the compressed folder of a run with a sparsity and a scheme, trained once for each."""

    @cache
    def folder(*wanted: Any) -> Path:
        base = tmp_path_factory.mktemp("further")
        return save_compressed(train(bert(), base / "run", plan(*wanted)).model, base / "compressed", plan(*wanted))

    return folder


def load(folder: Path, **settings: Any) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder, **settings).eval()


def logits(model: PreTrainedModel) -> Tensor:
    batch = {name: torch.stack([row[name] for row in rows()[:8]]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**batch).logits


def zeros(model: PreTrainedModel) -> dict[str, Tensor]:
    return {target.name: target.weight.detach() == 0 for target in prunable(model)}


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_fine_tuning_keeps_zeros_and_grids(
    scheme: str | None, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = compressed(0.6, scheme)
    model = load(folder)
    before, start = zeros(model), logits(model)
    run = train(model, tmp_path / "again")
    assert not torch.equal(logits(model), start)
    assert all((found >= before[name]).all() for name, found in zeros(model).items())
    run.save_model(str(tmp_path / "saved"))
    reloaded = load(tmp_path / "saved")
    assert torch.equal(logits(reloaded), logits(model))
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, tmp_path / "saved")]
    assert sizes[1] <= 1.05 * sizes[0]


def test_quantizing_a_pruned_file_keeps_its_zeros(compressed: Callable[..., Path], tmp_path: Path) -> None:
    model = load(compressed(0.6, None))
    before = zeros(model)
    train(model, tmp_path / "again", plan(scheme="int8"))
    assert all((found >= before[name]).all() for name, found in zeros(model).items())
    folder = save_compressed(model, tmp_path / "both", plan(scheme="int8"))
    assert torch.equal(logits(load(folder)), logits(model))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_more_sparsity_starts_from_the_zeros_there(
    scope: str, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    model = load(compressed(0.6, None))
    before, wanted = zeros(model), plan(0.8)
    wanted.pruning.prune_scope = scope
    run = train(model, tmp_path / "again", wanted)
    after = zeros(model)
    assert all((after[name] >= before[name]).all() for name in before)
    sparsity = [line["sparsity"] for line in run.state.log_history if "loss" in line]
    assert sparsity[0] == pytest.approx(0.6, abs=0.01) and sparsity == sorted(sparsity)
    assert sum(int(one.sum()) for one in after.values()) >= round(0.8 * sum(one.numel() for one in after.values())) - 9


def test_a_recipe_that_would_drop_the_grids_is_refused(compressed: Callable[..., Path], tmp_path: Path) -> None:
    model = load(compressed(0.6, "int8-weight"))
    with pytest.raises(ValueError, match="`mp50` does not quantize, but the model was loaded from a quantized file"):
        train(model, tmp_path / "again", plan(0.5))


def test_another_scheme_replaces_grids_and_ranges(compressed: Callable[..., Path], tmp_path: Path) -> None:
    model = load(compressed(0.6, "int8"))
    wanted = Recipe(quantization=QuantizationArguments(quant_scheme="int8-weight", quant_exclude=["pooler"]))
    train(model, tmp_path / "again", wanted)
    assert not any("input_range" in name for name in model.state_dict())
    folder = save_compressed(model, tmp_path / "other", wanted)
    assert torch.equal(logits(load(folder)), logits(model))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_computes_what_loading_in_that_dtype_does(
    scheme: str, dtype: torch.dtype, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = compressed(0.6, scheme)
    model, expected = load(folder).to(dtype), load(folder, dtype=dtype)
    ranges = [layer.input_range for layer in compressed_layers(model).values() if layer.has_range]
    assert all(one.dtype == torch.float32 for one in ranges)
    assert torch.equal(logits(model), logits(expected))
    model.save_pretrained(tmp_path / "again")
    first, second = (load(path, dtype=torch.float32) for path in (folder, tmp_path / "again"))
    for name in first.hf_quantizer.quantization_config.quantized:  # The same integers and scales.
        assert torch.equal(first.get_submodule(name).weight, second.get_submodule(name).weight)
    assert torch.equal(logits(load(tmp_path / "again", dtype=dtype)), logits(model))


def test_evaluation_in_half_precision_leaves_ranges_alone(tmp_path: Path) -> None:
    run = train(bert(), tmp_path / "run", plan(scheme="int8"), bf16_full_eval=True)
    before = [layer.input_range.clone() for layer in compressed_layers(run.model).values() if layer.has_range]
    run.evaluate(rows()[:8])
    after = [layer.input_range for layer in compressed_layers(run.model).values() if layer.has_range]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
