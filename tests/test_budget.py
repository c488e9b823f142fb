"""A budget of bytes becomes a scheme and a sparsity that keep it, or is refused before anything is trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, compress, finish
from hf_compress.budget import LADDER, RESERVE, expected_bytes, fit
from hf_compress.card import render
from hf_compress.compression import recipe_of
from hf_compress.recipe import BudgetArguments

MakeBert = Callable[..., BertForSequenceClassification]


@pytest.fixture
def model(make_bert: MakeBert) -> BertForSequenceClassification:
    """Large enough that heads and scales do not decide about its size."""
    return make_bert(vocab_size=1000, hidden_size=128, intermediate_size=512)


def within(megabytes: float, **methods: object) -> Recipe:
    return Recipe(budget=BudgetArguments(megabytes), **methods)  # type: ignore[arg-type]


def test_the_first_rung_that_fits_is_taken_at_the_lowest_sparsity(model: BertForSequenceClassification) -> None:
    dense, bytes_of_dense = fit(model, within(100))
    assert (dense.quantization.quant_scheme, dense.pruning.prune_sparsity) == ("int8", 0)
    assert dense.budget == within(100).budget
    chosen, expected = fit(model, within(0.9 * bytes_of_dense / 1e6))
    assert chosen.quantization.quant_scheme == "int8" and 0 < chosen.pruning.prune_sparsity < LADDER[0][1]
    assert expected <= (1 - RESERVE) * chosen.budget.bytes
    sparsity = round(chosen.pruning.prune_sparsity - 0.01, 2)
    denser = replace(chosen, pruning=PruningArguments(prune_sparsity=sparsity), budget=BudgetArguments(100))
    assert fit(model, denser)[1] > (1 - RESERVE) * chosen.budget.bytes
    narrow, _ = fit(model, within(0.45 * bytes_of_dense / 1e6))
    assert narrow.quantization.quant_scheme == LADDER[-1][0]


def test_what_is_given_stays(model: BertForSequenceClassification) -> None:
    whole = fit(model, within(100))[1] / 1e6
    scheme = QuantizationArguments(quant_scheme="int8-weight")
    chosen, _ = fit(model, within(0.7 * whole, quantization=scheme))
    assert chosen.quantization == scheme and chosen.pruning.prune_sparsity > 0
    pruning = PruningArguments(prune_sparsity=0.3, prune_scope="global")
    chosen, _ = fit(model, within(0.8 * whole, pruning=pruning))
    assert chosen.pruning == pruning and chosen.quantization.quant_scheme == LADDER[-1][0]
    with pytest.raises(ValueError, match=r"too small: with `--quant_scheme int8` and `--prune_sparsity 0.3` the file"):
        fit(model, within(0.3 * whole, pruning=pruning, quantization=QuantizationArguments(quant_scheme="int8")))


def test_the_smallest_size_that_is_named_fits(model: BertForSequenceClassification) -> None:
    with pytest.raises(ValueError, match=r"is too small: .* the file would have ([0-9.]+) MB") as refused:
        fit(model, within(0.01))
    named = float(str(refused.value).partition("would have ")[2].partition(" MB")[0])
    chosen, _ = fit(model, within(1.01 * named))  # It is said in three digits.
    assert chosen.pruning.prune_sparsity <= LADDER[-1][1]


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


def test_the_choice_is_trained_kept_and_described(
    model: BertForSequenceClassification, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    budget = round(0.7 * fit(model, within(100))[1] / 1e6, 3)
    trainer = train(model, tiny_dataset, within(budget), tmp_path)
    chosen = recipe_of(trainer)
    assert chosen is not None and chosen.pruning.enabled and chosen.quantization.enabled
    trainer.train()
    report = finish(trainer, main_metric="loss")
    assert report is not None and report.recipe == chosen
    assert chosen.name.endswith(f"+{budget:g}MB")
    expected = expected_bytes(model, chosen)
    assert report.size.packed_bytes <= chosen.budget.bytes
    assert report.size.packed_bytes == pytest.approx(expected, rel=0.01)
    assert Recipe.load(tmp_path / "compressed" / "recipe.json") == chosen
    assert "The file was to have at most" in render(report)


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
    with caplog.at_level("WARNING", "hf_compress.checkpoint"):
        finish(trainer)
    assert "more than `--compress_budget_mb 0.001` asks for" in caplog.text
