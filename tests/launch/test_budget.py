"""A budget of bytes is kept by the finished file, whatever training does, or is refused before anything is trained."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, compress, finish, save_compressed
from hf_compress.goals import BudgetArguments
from hf_compress.report.report import Report
from tests.invariants.harness import make, trained
from tests.tiny import NO_DROPOUT, bert

SIZES = {"num_hidden_layers": 1, "vocab_size": 500, "hidden_size": 64, "intermediate_size": 256}
LARGE: dict[str, Any] = NO_DROPOUT | SIZES
BUDGET = 0.04  # Megabytes, about 3 bits per weight of a `LARGE` model.


def within(megabytes: float, **methods: object) -> Recipe:
    return Recipe(budget=BudgetArguments(megabytes), **methods)  # type: ignore[arg-type]


def packed(model: Any, folder: Path, recipe: Recipe) -> bytes:
    return (save_compressed(model, folder, recipe) / "model.safetensors").read_bytes()


def compressed(folder: Path, rows: Dataset, recipe: Recipe, **settings: Any) -> Report:
    arguments = TrainingArguments(
        str(folder), max_steps=8, learning_rate=1e-4, report_to="none", disable_tqdm=True, **settings
    )
    trainer = compress(Trainer(bert(**LARGE), arguments, train_dataset=rows, eval_dataset=rows), recipe)
    trainer.train()
    report = finish(trainer, main_metric="loss")
    assert report is not None
    return report


@pytest.fixture(scope="module")
def finished(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("finished")
    return folder / "compressed", compressed(folder, tiny_dataset, within(BUDGET))


def test_the_file_has_at_most_the_bytes_of_the_budget(finished: tuple[Path, Report]) -> None:
    folder, report = finished
    size = (folder / "model.safetensors").stat().st_size
    assert 0.95 * BUDGET * 1e6 < size == report.size.packed_bytes <= BUDGET * 1e6


def test_one_constant_is_in_recipe_and_report(finished: tuple[Path, Report]) -> None:
    folder, report = finished
    constant = Recipe.load(folder / "recipe.json").quantization.quant_step
    assert constant is not None and constant == report.recipe.quantization.quant_step
    assert report.recipe == replace(within(BUDGET), quantization=QuantizationArguments("int8", quant_step=constant))
    assert f"--quant_step {constant}" in report.recipe.quantization.flags


def test_the_constant_gives_the_same_file_again(
    finished: tuple[Path, Report], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    folder, report = finished
    for name, recipe in (("both", report.recipe), ("step", Recipe(quantization=report.recipe.quantization))):
        compressed(tmp_path / name, tiny_dataset, recipe)
        again = tmp_path / name / "compressed" / "model.safetensors"
        assert again.read_bytes() == (folder / "model.safetensors").read_bytes(), name


@pytest.mark.parametrize("megabytes", [0.028, 0.06])
def test_a_violent_training_keeps_the_budget(megabytes: float, tmp_path: Path) -> None:
    """Without the trim, these files take 2 to 4 % more than their budgets."""
    plan = within(megabytes, quantization=QuantizationArguments(quant_scheme="int8-weight"))
    run = trained(tmp_path, plan=plan, model=bert(**LARGE), learning_rate=0.02)
    size = len(packed(run.model, tmp_path / "compressed", plan))
    assert 0.95 * 1e6 * megabytes < size <= 1e6 * megabytes


def test_the_given_sparsity_is_kept_and_the_rest_is_spent(tmp_path: Path) -> None:
    pruning = PruningArguments(prune_sparsity=0.5, prune_every=2)
    constants = {}
    for name, plan in (("dense", within(BUDGET)), ("pruned", within(BUDGET, pruning=pruning))):
        run = trained(tmp_path / name, plan=plan, model=bert(**LARGE))
        constants[name] = run.state.stateful_callbacks["hf_compress_progress"]["step_constant"]
        size = len(packed(run.model, tmp_path / name / "compressed", plan))  # Checks the zeros.
        assert 0.95 * 1e6 * BUDGET < size <= 1e6 * BUDGET
    assert constants["pruned"] < constants["dense"], "zeros leave bytes to the other weights"


def test_the_smallest_size_that_is_named_can_be_trained(tiny_dataset: Dataset, tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to="none")
    trainer = Trainer(bert(**LARGE), arguments, train_dataset=tiny_dataset)
    with pytest.raises(ValueError, match=r"`--compress_budget_mb 0.005` is too small: .*Set at least 0\.\d+,") as said:
        compress(trainer, within(0.005))
    assert type(trainer) is Trainer
    least = float(str(said.value).partition("Set at least ")[2].partition(",")[0])
    assert least < 0.03
    plan = within(least)
    run = trained(tmp_path / "least", plan=plan, model=bert(**LARGE))
    assert len(packed(run.model, tmp_path / "compressed", plan)) <= 1e6 * least


def test_zeros_lower_the_smallest_size(tiny_dataset: Dataset, tmp_path: Path) -> None:
    def least(**methods: object) -> float:
        trainer = Trainer(bert(**LARGE), TrainingArguments(str(tmp_path), report_to="none"))
        with pytest.raises(ValueError, match="is too small") as said:
            compress(trainer, within(0.001, **methods))
        return float(str(said.value).partition("Set at least ")[2].partition(",")[0])

    assert least(pruning=PruningArguments(prune_sparsity=0.9)) <= least()
    assert least(quantization=QuantizationArguments(quant_exclude=["word_embeddings"])) > least() + 0.1


def test_a_plain_trainer_with_our_callbacks_keeps_the_budget(tmp_path: Path) -> None:
    plan = within(BUDGET)
    run = make(tmp_path, plan=plan, model=bert(**LARGE), trainer_class=Trainer)
    run.train()
    report = finish(run)
    assert report is not None and report.size.packed_bytes <= 1e6 * BUDGET


def test_a_saved_file_that_is_too_large_is_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trained(tmp_path, ("int8",))
    with caplog.at_level("WARNING", "hf_compress.checkpoint.save"):
        save_compressed(run.model, tmp_path / "compressed", within(0.001))
    assert re.search(r"more than .*`--compress_budget_mb 0.001`", caplog.text)
    assert math.isfinite(run.state.log_history[-1]["train_loss"])
