"""A scheme that is added through its registry alone: flags, training, resuming, saving, loading, card."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import HfArgumentParser, PreTrainedModel, Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, Report, save_compressed
from hf_compress.layers import SCHEMES, Grid, Scheme
from hf_compress.prune import CRITERIA, SCHEDULES, Criterion, Schedule
from hf_compress.report import save_card

MakeBert = Callable[..., PreTrainedModel]
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe with an added scheme, criterion and schedule."""
    row = Grid(bits=6, per="row")
    scheme = Scheme(name="int6-weight", weight=row, embedding=row, help="6 bits", card="six bits per weight")
    monkeypatch.setitem(SCHEMES, scheme.name, scheme)
    gentle = Criterion("gentle", lambda e: e.weight.square(), "small squares", "weights with small squares")
    monkeypatch.setitem(CRITERIA, gentle.name, gentle)
    sudden = Schedule("sudden", lambda share, start, end: end if share == 1 else start, "late", "all at the end")
    monkeypatch.setitem(SCHEDULES, sudden.name, sudden)
    pruning = PruningArguments(prune_sparsity=0.5, prune_criterion="gentle", prune_schedule="sudden", prune_every=1)
    return Recipe(pruning=pruning, quantization=QuantizationArguments(quant_scheme="int6-weight"))


def trainer(model: PreTrainedModel, data: Dataset, folder: Path, plan: Recipe) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=8, save_steps=4, learning_rate=1e-3, use_cpu=True, report_to="none"
    )
    return Trainer(model, arguments, train_dataset=data, callbacks=plan.callbacks())


def test_an_added_scheme_trains_resumes_and_reloads(
    plan: Recipe, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    whole = trainer(make_bert(), tiny_dataset, tmp_path / "run", plan)
    whole.train()
    resumed = trainer(make_bert(seed=1), tiny_dataset, tmp_path / "run", plan)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    folder = save_compressed(whole.model, tmp_path / "compressed", plan)
    ids = torch.arange(20).reshape(2, 10)
    reloaded = type(whole.model).from_pretrained(folder).eval()
    assert torch.equal(reloaded(ids).logits, whole.model.eval()(ids).logits)
    assert (
        "help" not in (folder / "config.json").read_text() and "six bits" not in (folder / "config.json").read_text()
    )


def test_the_flag_takes_an_added_scheme(plan: Recipe) -> None:
    (parsed,) = HfArgumentParser(QuantizationArguments).parse_args_into_dataclasses(["--quant_scheme", "int6-weight"])
    assert parsed == plan.quantization


def test_the_card_says_the_words_of_what_was_added(plan: Recipe, tmp_path: Path) -> None:
    report = Report.load(GOLDEN)
    recipe = {"pruning": plan.to_dict()["pruning"], "quantization": plan.to_dict()["quantization"]}
    replace(report, recipe=Recipe.from_dict(report.recipe.to_dict() | recipe)).save(tmp_path)
    save_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert all(words in card for words in ("six bits per weight", "eights with small squares", "all at the end"))
