"""A finished folder, made once: a tiny BERT, trained on rows of a dataset, compressed, with an ONNX graph."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_compress import PruningArguments, QuantizationArguments, Recipe, compress, finish, unseen_rows
from hf_compress.report.report import DatasetFacts
from tests.hub.seeds import sentences
from tests.tiny import NO_DROPOUT, bert

ROWS, TRAINED = 24, 48


@dataclass(frozen=True)
class Made:
    """A finished folder and the dataset that its scores are measured on."""

    folder: Path
    data: Path


@pytest.fixture(scope="package")
def made(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[Made]:
    """The folder of a run of a few steps. Tests change a copy (`folder`), never this one."""
    with tempfile.TemporaryDirectory() as root:
        data = Path(root, "films")
        data.mkdir()
        sentences(64, 0).to_parquet(data / "train.parquet")
        sentences(ROWS, 1).to_parquet(data / "validation.parquet")
        rows = load_dataset(str(data))
        encoded = rows.map(
            lambda batch: tiny_tokenizer(batch["sentence"], truncation=True, max_length=7),
            batched=True,
            remove_columns=["sentence"],
        )
        train, later = encoded["train"].select(range(TRAINED)), encoded["train"].select(range(TRAINED, 64))
        further = unseen_rows(later, train, ["input_ids"])
        set_seed(0)
        trainer = Trainer(
            bert(**NO_DROPOUT),
            TrainingArguments(
                output_dir=str(Path(root, "run")),
                max_steps=50,
                learning_rate=1e-2,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=8,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=train,
            eval_dataset=encoded["validation"],
            processing_class=tiny_tokenizer,
            data_collator=DataCollatorWithPadding(tiny_tokenizer),
            compute_metrics=_accuracy,
        )
        pruning, int8 = PruningArguments(prune_sparsity=0.5, prune_every=1), QuantizationArguments("int8")
        compress(trainer, Recipe(pruning=pruning, quantization=int8))
        trainer.train()
        facts = DatasetFacts("films", None, "train", TRAINED, "validation", ROWS)
        finish(
            trainer,
            dataset=facts,
            main_metric="accuracy",
            dense={"accuracy": 0.5},
            formats=["onnx"],
            extra_eval_dataset=later.select(further),
            extra_eval_rows=[TRAINED + index for index in further],
        )
        yield Made(Path(root, "run", "compressed"), data)


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A copy of the finished folder that a test may change."""
    return Path(shutil.copytree(made.folder, tmp_path / "compressed"))


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
