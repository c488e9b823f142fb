"""A budget of bytes becomes bits and a sparsity that keep it, or is refused before anything is trained."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hf_compress.checkpoint.budget import LEAST_BITS, MOST_SPARSITY, RESERVE, SIZE_POWER, expected_bytes, fit_budget
from transformers import (
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from hf_compress import PruningArguments, QuantizationArguments, Recipe, compress, finish
from hf_compress.launch.flags import take_flags
from hf_compress.launch.preconditions import recipe_of
from hf_compress.layers.bits import weight_grids
from hf_compress.layers.grids import fake_quantize_symmetric
from hf_compress.models.targets import prunable, quantizable
from hf_compress.prune.criteria import magnitude_masks
from hf_compress.recipe import BudgetArguments
from hf_compress.report.card import render
from tests.tiny import NO_DROPOUT, bert

MakeBert = Callable[..., BertForSequenceClassification]


@pytest.fixture
def model(make_bert: MakeBert) -> BertForSequenceClassification:
    """A model so large that heads and scales hardly affect its size."""
    return make_bert(vocab_size=1000, hidden_size=128, intermediate_size=512)


@pytest.fixture(scope="module")
def whole() -> float:
    """Megabytes of the file of `model` under a budget that asks for nothing."""
    same = bert(**NO_DROPOUT, vocab_size=1000, hidden_size=128, intermediate_size=512)
    return fit_budget(same, within(100))[1] / 1e6


def within(megabytes: float, **methods: object) -> Recipe:
    return Recipe(budget=BudgetArguments(megabytes), **methods)  # type: ignore[arg-type]


def error_of(model: BertForSequenceClassification, recipe: Recipe) -> float:
    """The relative squared errors of all weights under `recipe`, weighted by size."""
    options, total = recipe.quantization, 0.0
    pruned = prunable(model)
    weights = [target.weight for target in pruned]
    masks = magnitude_masks(weights, recipe.pruning.prune_sparsity, "layer")
    kept = {target.name: mask for target, mask in zip(pruned, masks, strict=True)}
    for target, grid in weight_grids(quantizable(model), options.scheme, options.quant_bits):
        weight = target.weight.detach()
        rounded = fake_quantize_symmetric(weight * kept.get(target.name, torch.tensor(1)), grid)
        total += weight.numel() ** SIZE_POWER * float((weight - rounded).square().sum() / weight.square().sum())
    return total


def test_bits_are_lowered_before_weights_are_pruned(model: BertForSequenceClassification) -> None:
    dense, bytes_of_dense = fit_budget(model, within(100))
    assert (dense.quantization, dense.pruning.prune_sparsity) == (QuantizationArguments("int8"), 0)
    assert dense.budget == within(100).budget
    chosen, expected = fit_budget(model, within(0.6 * bytes_of_dense / 1e6))
    assert chosen.quantization.quant_bits and not chosen.pruning.enabled
    assert 0.95 * chosen.budget.bytes < expected <= (1 - RESERVE) * chosen.budget.bytes
    narrow, _ = fit_budget(model, within(0.24 * bytes_of_dense / 1e6))
    bits = weight_grids(quantizable(model), narrow.quantization.scheme, narrow.quantization.quant_bits)
    assert {grid.bits for _, grid in bits} == {LEAST_BITS}
    assert 0 < narrow.pruning.prune_sparsity < MOST_SPARSITY
    denser = replace(narrow, pruning=PruningArguments(prune_sparsity=round(narrow.pruning.prune_sparsity - 0.01, 2)))
    assert expected_bytes(model, denser) > (1 - RESERVE) * narrow.budget.bytes


def test_a_greater_budget_never_has_more_error(model: BertForSequenceClassification, whole: float) -> None:
    chosen = [fit_budget(model, within(share * whole)) for share in (0.22, 0.33, 0.4, 0.41, 0.7, 1.1)]
    errors = [error_of(model, recipe) for recipe, _ in chosen]
    assert errors == sorted(errors, reverse=True)
    for recipe, expected in chosen:
        assert expected <= recipe.budget.bytes
        assert expected == expected_bytes(model, recipe)


def test_bits_by_layer_have_less_error_than_the_same_for_all(model: BertForSequenceClassification) -> None:
    for bits in (4, 5, 6):
        same = within(100, quantization=QuantizationArguments(quant_scheme="int8", quant_bits=[f".={bits}"]))
        # Choices are compared by an estimate of their bytes.
        chosen, _ = fit_budget(model, within(1.005 * expected_bytes(model, same) / (1 - RESERVE) / 1e6))
        assert error_of(model, chosen) < error_of(model, same)


def test_the_flags_that_are_printed_give_the_same_again(model: BertForSequenceClassification, whole: float) -> None:
    chosen, expected = fit_budget(model, within(0.4 * whole))
    assert fit_budget(model, within(0.4 * whole)) == (chosen, expected)
    line = ["script.py", *shlex.split(chosen.quantization.flags)]
    line += ["--compress_budget_mb", str(chosen.budget.compress_budget_mb)]
    again = take_flags(line).recipe
    assert again == chosen
    assert fit_budget(model, again) == (chosen, expected)


def test_what_is_given_stays(model: BertForSequenceClassification, whole: float) -> None:
    given = QuantizationArguments(quant_scheme="int8-weight", quant_bits=["word_embeddings=7", "query=2"])
    chosen, _ = fit_budget(model, within(0.6 * whole, quantization=given))
    assert chosen.quantization.quant_scheme == "int8-weight"
    assert chosen.quantization.quant_bits[-2:] == given.quant_bits and len(chosen.quantization.quant_bits) > 2
    bits = {
        target.name: grid.bits
        for target, grid in weight_grids(quantizable(model), given.scheme, chosen.quantization.quant_bits)
    }
    assert bits["bert.embeddings.word_embeddings"] == 7
    assert bits["bert.encoder.layer.0.attention.self.query"] == 2
    pruning = PruningArguments(prune_sparsity=0.3, prune_scope="global")
    chosen, _ = fit_budget(model, within(0.6 * whole, pruning=pruning))
    assert chosen.pruning == pruning and chosen.quantization.quant_bits
    eight = QuantizationArguments(quant_scheme="int8", quant_bits=[".=8"])
    chosen, _ = fit_budget(model, within(0.6 * whole, quantization=eight))
    assert chosen.quantization == eight and chosen.pruning.prune_sparsity > 0.3
    groups = QuantizationArguments(quant_scheme="int4-weight")
    chosen, _ = fit_budget(model, within(0.5 * whole, quantization=groups))
    assert all("embeddings" in item for item in chosen.quantization.quant_bits)
    with pytest.raises(
        ValueError, match=r"too small: with `--quant_scheme int8 --quant_bits .=8` and `--prune_sparsity 0.3` the file"
    ):
        fit_budget(model, within(0.3 * whole, pruning=pruning, quantization=eight))


def test_the_smallest_size_that_is_named_fits(model: BertForSequenceClassification) -> None:
    said = r"is too small: with `--quant_scheme int8`, 3 bits wherever no others are given and `--prune_sparsity 0.9` "
    with pytest.raises(ValueError, match=said + r"the file would have ([0-9.]+) MB") as refused:
        fit_budget(model, within(0.01))
    named = float(str(refused.value).partition("would have ")[2].partition(" MB")[0])
    chosen, _ = fit_budget(model, within(1.01 * named))  # The message rounds it to three digits.
    assert chosen.pruning.prune_sparsity <= MOST_SPARSITY


def test_weights_of_one_name_each_and_of_several_are_packed_once() -> None:
    config = T5Config(
        vocab_size=500, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    whole = fit_budget(model, within(100))[1] / 1e6
    chosen, expected = fit_budget(model, within(0.5 * whole))
    options = chosen.quantization
    bits = {t.name: grid.bits for t, grid in weight_grids(quantizable(model), options.scheme, options.quant_bits)}
    assert len({bits[name] for name in bits if "embed_tokens" in name or name == "shared"}) == 1
    assert 0.4 * whole * 1e6 < expected <= 0.5 * whole * 1e6


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_budget_that_is_no_size_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"`--compress_budget_mb` must be a number of megabytes above 0"):
        BudgetArguments(value)


def train(model: BertForSequenceClassification, rows: Dataset, recipe: Recipe, folder: Path) -> Trainer:
    settings = TrainingArguments(
        str(folder), max_steps=20, learning_rate=1e-4, save_steps=10, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows)
    return compress(trainer, recipe)


@pytest.mark.parametrize("share", [0.7, 0.4, 0.24])
def test_the_choice_is_trained_kept_and_described(
    share: float, model: BertForSequenceClassification, whole: float, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    budget = round(share * whole, 3)
    trainer = train(model, tiny_dataset, within(budget), tmp_path)
    chosen = recipe_of(trainer)
    assert chosen is not None and chosen.quantization.quant_bits
    trainer.train()
    report = finish(trainer, main_metric="loss")
    assert report is not None and report.recipe == chosen
    assert chosen.name.endswith(f"+{budget:g}MB")
    expected = expected_bytes(model, chosen)
    assert report.size.packed_bytes <= chosen.budget.bytes
    assert report.size.packed_bytes == pytest.approx(expected, rel=0.03)
    assert Recipe.load(tmp_path / "compressed" / "recipe.json") == chosen
    assert report.bits and set(report.bits.values()) <= set(range(LEAST_BITS, 8))
    assert "The budget for the file was" in render(report)
    assert f"{min(report.bits.values())} bits" in render(report)


def test_a_resumed_run_makes_the_same_choice(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    def start() -> Trainer:
        model = make_bert(hidden_size=64, intermediate_size=256)
        return train(model, tiny_dataset, within(0.06), tmp_path)

    first = start()
    first.train()
    resumed = start()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert recipe_of(resumed) == recipe_of(first)


def test_a_file_that_is_too_large_is_spoken_of(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The callbacks alone choose nothing."""
    recipe = within(0.001, pruning=PruningArguments(prune_sparsity=0.5))
    settings = TrainingArguments(str(tmp_path), max_steps=20, save_strategy="no", report_to="none")
    trainer = Trainer(make_bert(), settings, train_dataset=tiny_dataset, callbacks=recipe.callbacks())
    trainer.train()
    with caplog.at_level("WARNING", "hf_compress.checkpoint.save"):
        finish(trainer)
    assert "more than `--compress_budget_mb 0.001` allows" in caplog.text
