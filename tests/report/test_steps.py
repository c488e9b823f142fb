"""What report and card say of a run within a budget: the size, the one constant, and bits per weight as stored."""

import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from hf_compress import BudgetArguments, Recipe, compress, finish
from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.report.agreement import check_folder
from hf_compress.report.card import render
from hf_compress.report.describing import steps_of
from hf_compress.report.descriptors import citations
from hf_compress.report.facts import Steps
from hf_compress.report.report import Report
from tests.golden.reports import golden, golden_reports
from tests.tiny import NO_DROPOUT, bert

BUDGET_MB = 0.04


@pytest.fixture(scope="module")
def made(tiny_dataset: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Path, list[str]]]:
    """The finished folder of a run within a budget, and what the log warned of."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hf_compress")
    logger.addHandler(handler)
    with tempfile.TemporaryDirectory() as root:
        set_seed(0)
        arguments = TrainingArguments(
            root,
            max_steps=8,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            bert(**NO_DROPOUT),
            arguments,
            train_dataset=tiny_dataset,
            eval_dataset=tiny_dataset.select(range(8)),
            processing_class=tiny_tokenizer,
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        )
        compress(trainer, Recipe(budget=BudgetArguments(compress_budget_mb=BUDGET_MB)))
        trainer.train()
        finish(trainer)
        logger.removeHandler(handler)
        yield Path(root, "compressed"), said


def test_a_run_within_a_budget_reports_what_it_chose(made: tuple[Path, list[str]]) -> None:
    folder, _ = made
    report = Report.load(folder)
    stored = [fact for fact in inventory.tensors(folder) if fact.grid_bits is not None]
    bits = 8 * sum(fact.stored_bytes for fact in stored) / sum(fact.numel for fact in stored)
    assert report.steps == Steps(pytest.approx(bits), feedback=True)
    assert report.bits == {}
    assert {check.verdict for check in check_folder(folder, report) if check.name != "files"} == {"true"}


def test_the_log_says_once_how_to_choose_the_same_again(made: tuple[Path, list[str]]) -> None:
    folder, said = made
    (line,) = [line for line in said if "--quant_step" in line]
    step = Report.load(folder).recipe.quantization.quant_step
    assert f"`--quant_step {step:g}`" in line and f"`--compress_budget_mb {BUDGET_MB:g}`" in line
    expected = re.search(r"about ([\d.]+) MB", line)
    assert expected is not None
    assert float(expected[1]) * 1e6 == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.1)


def test_the_card_says_budget_file_constant_and_bits(made: tuple[Path, list[str]]) -> None:
    report = Report.load(made[0])
    card = render(report)
    assert f"The budget for the file was 40.0 kB; it has {report.size.packed_bytes / 1e3:.1f} kB." in card
    assert f"{report.recipe.quantization.quant_step:g} (`--quant_step`) over the root of its sensitivity" in card
    assert report.steps is not None
    assert f"a rounded weight takes {report.steps.bits_per_weight:.2f} bits" in card


@pytest.mark.parametrize("steps", [Steps(7.5, feedback=True), None])
def test_other_bits_than_those_of_the_file_are_found(steps: Steps | None, made: tuple[Path, list[str]]) -> None:
    folder, report = made[0], Report.load(made[0])
    bits = {check.name: check for check in check_folder(folder, replace(report, steps=steps))}["bits"]
    assert bits.verdict == "differs"
    plain = replace(report.recipe, quantization=replace(report.recipe.quantization, quant_step=None))
    bits = {check.name: check for check in check_folder(folder, replace(report, recipe=plain))}["bits"]
    assert any("do not agree" in sentence for sentence in bits.details)


def test_methods_that_were_not_used_are_not_cited() -> None:
    budget = golden_reports()["budget"]
    assert any("gptq" in entry for entry in citations(budget)) and "error feedback" in render(budget)
    adapter = replace(budget, steps=Steps(2.4, feedback=False))
    assert not any("gptq" in entry for entry in citations(adapter)) and "error feedback" not in render(adapter)
    assert any("gish-pierce" in entry for entry in citations(adapter))
    assert not any("gish-pierce" in entry for entry in citations(golden()))


def test_only_models_of_texts_have_rare_tokens() -> None:
    budget = golden_reports()["budget"]
    assert "rare tokens have larger steps" in render(budget)
    assert "rare tokens" not in render(replace(budget, pipeline_tag="image-classification"))


def test_a_file_without_steps_reports_none(made: tuple[Path, list[str]]) -> None:
    facts = inventory.tensors(made[0])
    assert steps_of(CompressionConfig(), facts, feedback=True) is None
    assert steps_of(None, facts, feedback=True) is None
