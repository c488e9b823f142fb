"""What the tests of teacher-only rows share: tokenized sentences, and trainers that add such rows to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from hf_compress.distill import DistillationArguments, DistillationTrainer
from tests.tiny import NO_DROPOUT, bert

MODELS: dict[str, dict[str, Any]] = {
    "one of two": {"num_labels": 2},
    "regression": {"num_labels": 1},
    "whole numbers": {"num_labels": 1},
    "independent": {"num_labels": 3, "problem_type": "multi_label_classification"},
}


@pytest.fixture
def encoded(tiny_sentences: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """24 tokenized sentences without padding, with labels."""
    few = tiny_sentences.select(range(24))
    tokens = few.map(lambda rows: tiny_tokenizer(rows["sentence"]), batched=True)
    return tokens.remove_columns("sentence").rename_column("label", "labels")


@pytest.fixture
def enlarging(tmp_path: Path, encoded: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """A function that builds a trainer with `--distill_augment 2`, in float64; keywords change its settings."""

    def make(
        data: Dataset = encoded,
        problem: str = "one of two",
        model: PreTrainedModel | None = None,
        trainer_class: type[Trainer] = DistillationTrainer,
        options: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        sizes = NO_DROPOUT | MODELS[problem]
        defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no"}
        return trainer_class(
            model=model or bert(**sizes).double(),
            args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **defaults | settings),
            train_dataset=data,
            eval_dataset=encoded,
            processing_class=tiny_tokenizer,
            teacher=bert(seed=1, **sizes).double(),
            distillation=DistillationArguments(**{"distill_augment": 2, "distill_alpha": 0.6} | (options or {})),
            **more or {},
        )

    return make
