"""The report of a model without some layers: counted, sized, said on the card, and checked against the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, Report, compress, finish
from hf_compress.cut.depth import Depth
from hf_compress.report.agreement import check_folder
from hf_compress.report.gate import verdict
from tests.tiny import bert


@pytest.mark.parametrize(
    "formats", [["packed"], pytest.param(["onnx"], marks=pytest.mark.slow)], ids=lambda one: one[0]
)
def test_a_report_says_what_is_gone_and_agrees_with_the_folder(
    formats: list[str], tiny_dataset: Dataset, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = bert(num_hidden_layers=3)
    recipe = Recipe(
        pruning=PruningArguments(prune_sparsity=0.5, prune_pattern="neurons", prune_layers=2, prune_every=1),
        quantization=QuantizationArguments("int8"),
    )
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), max_steps=10, **quiet),
        train_dataset=tiny_dataset,
        eval_dataset=tiny_dataset,
        processing_class=tiny_tokenizer,
    )
    compress(trainer, recipe).train()
    report, folder = finish(trainer, max_drop=100, formats=formats), tmp_path / "compressed"
    assert report is not None and report.depth is not None
    assert (report.depth.before, report.depth.after) == (3, 1)
    assert [one.after for one in report.structure] == [[32]]
    assert not [reason for reason in report.reasons if "promises" in reason]
    whole = 4 * sum(weight.numel() for weight in model.parameters())
    assert whole < report.size.dense_bytes < 1.2 * whole, "the dense model has all layers"
    assert report.parity < 1e-5
    assert [name for name, facts in report.formats.items() if facts.stored_bytes > 0] == (
        [] if formats == ["packed"] else formats
    )
    assert not [check for check in check_folder(folder, report) if check.verdict != "true"]
    gone = " and ".join(map(str, report.depth.dropped))
    card = (folder / "README.md").read_text()
    assert f"Of 3 layers, numbers {gone} (counted from 0) were dropped between 10 % and 60 % of training" in card
    assert "reduced to 1 of 3 layers" in card and "with all its layers" in card
    assert Report.load(folder) == report
    other = replace(report, depth=Depth(3, [0]))
    assert [
        said.split()[2] for check in check_folder(folder, other) for said in check.details if check.name == "model"
    ] == ["depth", "prune_layers"]
    word, reasons = verdict(other, max_drop=100)
    assert (word, reasons[-1]) == ("REGRESSION", "The recipe promises 2 dropped layers, and 1 were dropped.")
