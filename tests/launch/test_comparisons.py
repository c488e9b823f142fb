"""A run is compared with its control and on further rows: paired, on the same rows, or refused in a sentence."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_compress import PruningArguments, Recipe, Report, compress, finish, unseen_rows
from hf_compress.launch.comparisons import warn_of_taught
from hf_compress.report import read_predictions
from hf_compress.report.comparing import OTHER_CONTROL
from hf_compress.report.extra_set import on_extra, sharper
from hf_compress.report.gate import drop
from hf_compress.report.predictions import EXTRA_NAME
from hf_compress.report.rescoring import check_scores
from tests.conftest import BAD, GOOD, PLAIN
from tests.tiny import NO_DROPOUT, bert

PRUNED = Recipe(pruning=PruningArguments(prune_sparsity=0.7, prune_every=1))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@dataclass
class Rows:
    """Sentences that all differ: 60 to train on, 20 to evaluate on, 40 further ones."""

    tokenizer: PreTrainedTokenizerFast
    all: Dataset

    @property
    def train(self) -> Dataset:
        return self.all.select(range(60))

    @property
    def dev(self) -> Dataset:
        return self.all.select(range(60, 80))

    @property
    def further(self) -> Dataset:
        return self.all.select(range(80, 120))

    def trainer(self, folder: Path, **changes: Any) -> Trainer:
        arguments = TrainingArguments(
            str(folder),
            max_steps=6,
            learning_rate=2e-3,
            per_device_train_batch_size=8,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        set_seed(0)
        settings = {"train_dataset": self.train, "eval_dataset": self.dev} | changes
        return Trainer(
            bert(**NO_DROPOUT),
            arguments,
            compute_metrics=accuracy,
            processing_class=self.tokenizer,
            data_collator=DataCollatorWithPadding(self.tokenizer),
            **settings,
        )

    def finished(self, folder: Path, recipe: Recipe, **options: Any) -> Report:
        trainer = compress(self.trainer(folder), recipe, **options)
        trainer.train()
        report = finish(trainer)
        assert report is not None
        return report


@pytest.fixture(scope="module")
def rows(tiny_tokenizer: PreTrainedTokenizerFast) -> Rows:
    draw, texts = random.Random(0), dict[str, int]()
    while len(texts) < 120:
        words = [draw.choice(PLAIN) for _ in range(4)] + [draw.choice(GOOD if len(texts) % 2 else BAD)]
        texts.setdefault(" ".join(words), len(texts) % 2)
    encoded = tiny_tokenizer(list(texts))
    return Rows(tiny_tokenizer, Dataset.from_dict({**encoded, "labels": list(texts.values())}))


@pytest.fixture(scope="module")
def control(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sst2-control"
    rows.finished(folder, Recipe(), extra_eval_dataset=rows.further, extra_eval_rows=range(80, 120))
    return folder


@pytest.fixture(scope="module")
def both(rows: Rows, control: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The report of a pruned model with control and further rows, and its folder."""
    folder = tmp_path_factory.mktemp("pruned")
    further = {"extra_eval_dataset": rows.further, "extra_eval_rows": range(80, 120)}
    return rows.finished(folder, PRUNED, control=control, **further), folder / "compressed"


def test_a_control_is_compared_row_by_row_on_both_sets(both: tuple[Report, Path], control: Path) -> None:
    report, folder = both
    kept = Report.load(control / "compressed")
    first, second, their_second = report, on_extra(report), on_extra(kept)
    assert second is not None and their_second is not None
    assert (first.dataset.eval_rows, second.dataset.eval_rows) == (20, 40)
    for seen, theirs, name in ((first, kept, "predictions.parquet"), (second, their_second, EXTRA_NAME)):
        assert seen.control is not None and seen.without_control is None
        assert (seen.control.name, seen.control.steps) == ("sst2-control", 6)
        assert seen.control.scores == theirs.compressed
        columns = read_predictions(folder, name)
        right = {model: columns[model] == columns["label"] for model in ("control", "compressed")}
        found = seen.control.comparison["accuracy"]
        assert found.value == pytest.approx(right["compressed"].mean() - right["control"].mean())
        assert found.count == len(columns["label"]) and found.low <= found.value <= found.high
        assert found.p_value is not None
    assert read_predictions(folder, EXTRA_NAME)["row"].tolist() == list(range(80, 120))
    assert report.extra is not None and report.extra.part == "extra[80:120]"


def test_scores_of_both_sets_follow_from_the_kept_predictions(both: tuple[Report, Path]) -> None:
    report, folder = both
    assert check_scores(folder, report).verdict == "true"
    assert report.control is not None and report.extra is not None
    better = {"accuracy": report.extra.compressed["accuracy"] + 0.1, "loss": report.extra.compressed["loss"]}
    faked = Report.from_dict(report.to_dict() | {"extra": {**report.to_dict()["extra"], "compressed": better}})
    check = check_scores(folder, faked)
    assert check.verdict == "differs" and check.details[0].startswith("Extra rows: ")


def test_the_set_with_more_rows_counts(both: tuple[Report, Path]) -> None:
    report, _ = both
    assert sharper(report) == on_extra(report)
    assert drop(report) is None, "no dense model was there"


def test_the_card_says_both_sets_and_the_control(both: tuple[Report, Path]) -> None:
    card = (both[1] / "README.md").read_text("utf-8")
    assert "On 40 further rows" in card and "### On further rows" in card
    assert card.count("| | control | this model | change |") == 2
    assert "`sst2-control` is the same training without any method (6 steps)" in card


def test_a_control_of_other_rows_is_not_compared(rows: Rows, control: Path, tmp_path: Path) -> None:
    others = rows.all.select(range(81, 101))
    trainer = compress(rows.trainer(tmp_path, eval_dataset=others), PRUNED, control=control)
    trainer.train()
    report = finish(trainer)
    assert report is not None and report.control is None
    assert report.without_control == OTHER_CONTROL
    assert OTHER_CONTROL in (tmp_path / "compressed" / "README.md").read_text("utf-8")


def test_what_is_no_control_is_refused_before_training(
    rows: Rows, control: Path, both: tuple[Report, Path], tmp_path: Path
) -> None:
    for folder, why in (
        (tmp_path / "nowhere", r"must be the folder of a finished control, with report\.json"),
        (both[1], r"was compressed \(mp70\)"),
    ):
        with pytest.raises(ValueError, match=why):
            compress(rows.trainer(tmp_path), PRUNED, control=folder)
    fewer = rows.trainer(tmp_path, eval_dataset=rows.dev.select(range(7)))
    with pytest.raises(ValueError, match="evaluation rows of this run, which are 7; .* was measured on 20"):
        compress(fewer, PRUNED, control=control / "compressed")


def test_training_rows_are_no_further_rows(rows: Rows, tmp_path: Path) -> None:
    mixed = rows.all.select(range(50, 100))
    with pytest.raises(ValueError, match="10 of its 50 rows have the inputs of a training row"):
        compress(rows.trainer(tmp_path), PRUNED, extra_eval_dataset=mixed)
    left = mixed.select(unseen_rows(mixed, rows.train, ["input_ids"]))
    assert left["input_ids"][:] == rows.all.select(range(60, 100))["input_ids"][:]
    compress(rows.trainer(tmp_path), PRUNED, extra_eval_dataset=left)


def test_further_rows_that_the_teacher_labels_are_warned_of(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("hf_compress.launch.comparisons.logger.warning", said.append)
    trainer = rows.trainer(tmp_path)
    warn_of_taught(trainer, rows.further)
    trainer._enlarged_from = (rows.train, rows.all.select(range(85)))
    warn_of_taught(trainer, None)
    assert not said
    warn_of_taught(trainer, rows.further)
    assert said[0].startswith("5 of the 40 rows of `extra_eval_dataset` are among those that only the teacher")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"extra_eval_dataset": {"one": None}}, "must be one set of labelled rows.*got dict"),
        ({"extra_eval_dataset": []}, "got no rows"),
        ({"extra_eval_rows": [1]}, "got 1 for no extra rows"),
    ],
)
def test_further_rows_must_be_one_set(rows: Rows, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compress(rows.trainer(tmp_path), PRUNED, **options)


def test_further_rows_without_labels_or_index_are_refused(rows: Rows, tmp_path: Path) -> None:
    (label,) = {"label", "labels"} & {*rows.dev.column_names}
    with pytest.raises(ValueError, match=f"must have labels, as the evaluation set has in {label}; got the columns"):
        compress(rows.trainer(tmp_path), PRUNED, extra_eval_dataset=rows.further.remove_columns(label))
    for indices in ([-1, *range(39)], [0, *range(39)]):
        with pytest.raises(ValueError, match=r"of each row, from 0, and name no row twice"):
            compress(rows.trainer(tmp_path), PRUNED, extra_eval_dataset=rows.further, extra_eval_rows=indices)


@pytest.mark.slow
def test_further_rows_that_only_datasets_knows_keep_their_index(rows: Rows, tmp_path: Path) -> None:
    chosen = rows.all.select([80, 90, 85])
    trainer = compress(rows.trainer(tmp_path), PRUNED)
    trainer.train()
    report = finish(trainer, extra_eval_dataset=chosen, extra_dense={"eval_accuracy": 0.5})
    assert report is not None and report.extra is not None
    assert read_predictions(tmp_path / "compressed", EXTRA_NAME)["row"].tolist() == [80, 90, 85]
    assert report.extra.dense == {"accuracy": 0.5} and report.extra.comparison == {}
    assert np.isclose(report.extra.compressed["accuracy"] * 3 % 1, 0)
