"""Reports of models without some neurons and heads: counted, sized and checked against what was there before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress.launch.run import compress, finish
from hf_compress.models.blocks import find_groups
from hf_compress.prune.arguments import PruningArguments
from hf_compress.recipe import Recipe
from hf_compress.report.agreement import check_folder
from hf_compress.report.card import render
from hf_compress.report.structure import Structure
from hf_compress.report.variants import empty_model
from tests.golden.reports import golden_reports


@pytest.mark.parametrize(
    ("pattern", "options", "left"),
    [
        ("neurons+heads", {}, [Structure("neurons", [64, 64], [32, 32]), Structure("heads", [2, 2], [1, 1])]),
        ("neurons", {"prune_uniform": True}, [Structure("neurons", [64, 64], [32, 32])]),
    ],
)
def test_a_report_says_what_is_left_and_agrees_with_the_folder(
    pattern: str,
    options: dict[str, Any],
    left: list[Structure],
    tiny_bert: BertForSequenceClassification,
    tiny_dataset: Dataset,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_pattern=pattern, prune_every=1, **options))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=10, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(
        tiny_bert,
        arguments,
        train_dataset=tiny_dataset,
        eval_dataset=tiny_dataset,
        processing_class=tiny_tokenizer,
    )
    compress(trainer, recipe).train()
    report = finish(trainer, max_drop=100)
    folder = tmp_path / "compressed"
    assert report is not None and report.structure == left
    assert report.achieved_sparsity == pytest.approx(0.5, abs=1e-9) == report.promised_sparsity
    assert not [reason for reason in report.reasons if "promises" in reason]
    whole = 4 * sum(weight.numel() for weight in tiny_bert.parameters())
    assert whole < report.size.dense_bytes < 1.2 * whole
    assert report.parity < 1e-5
    differing = [check for check in check_folder(folder, report) if check.verdict != "true"]
    assert not differing
    assert "neurons in each layer" in (folder / "README.md").read_text().replace(", 1 of 2 heads", "")
    counts = [block.count for block in find_groups(empty_model(folder), ["neurons"])]
    assert counts == [32, 32]


def test_a_card_claims_no_heads_where_only_neurons_went() -> None:
    report = golden_reports()["structured"]
    neurons = replace(report, structure=report.structure[:1])
    assert "50 % fewer neurons and heads" in render(report) and "50 % fewer neurons\n" in render(neurons)
    assert "attention heads" in render(report) and "attention heads" not in render(neurons)
