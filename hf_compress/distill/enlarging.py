"""A Trainer whose training set gets rows that only the teacher labels."""

from typing import Any, cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from hf_compress.distill.answers import check_dataset
from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.augmenting import augmented_rows
from hf_compress.distill.row_form import RowForm
from hf_compress.distill.teacher_only import COLUMN, OPTIONS, TeacherOnlyCollator
from hf_compress.models.heads import LABELS, Head, bare

logger = logging.get_logger(__name__)

# Heads whose answers belong to a text or to its tokens, whatever the labels of the row were.
KINDS = ("sequence", "token", "question")


class EnlargingMixin(Trainer):
    """The part of a `DistillationMixin` that adds rows which only the teacher labels."""

    distillation: DistillationArguments
    teacher: PreTrainedModel | None
    head: Head | None
    model: Any
    data_collator: Any
    further_rows: dict[str, int]  # How many rows were added, by where they come from.
    _enlarged_from: tuple[Any, Any] | None = None  # The training set, and what was made of it.

    @property
    def _enlarges(self) -> bool:
        """Whether the training set gets rows that only the teacher labels."""
        return self.teacher is not None and self.distillation.has_teacher_only_rows

    def _check_enlarging(self) -> None:
        """Check that rows can be added to the training set.

        Raises:
            ValueError: they cannot; the message says why.
        """
        assert self.head is not None
        if self.head.kind not in KINDS or not self.head.takes_text:
            raise ValueError(
                f"{OPTIONS} make texts for sequence classification, regression, token classification and question "
                f"answering; this model does {self.head.name}. Leave the options out."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{OPTIONS} need one process per GPU, because `nn.DataParallel` averages over the GPUs whatever rows "
                f"each got; got {self.args.n_gpu} GPUs in one process. Start with `torchrun --nproc_per_node "
                f"{self.args.n_gpu}`."
            )
        self._tokenizer()
        if self.train_dataset is not None:
            check_rows(self.train_dataset)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        for found in (self.processing_class, getattr(self.data_collator, "tokenizer", None)):
            if isinstance(found, PreTrainedTokenizerBase):
                return found
        raise ValueError(f"{OPTIONS} need the tokenizer of the training rows. Pass it as `processing_class`.")

    def _enlarged(self, dataset: Any, collator: Any) -> tuple[Any, TeacherOnlyCollator]:
        """Return the training set with all further rows, and the collator that makes batches of it."""
        from datasets import concatenate_datasets

        check_rows(dataset)
        if self._enlarged_from is None or self._enlarged_from[0] is not dataset:
            given = dataset.format
            shown = [name for name in self._remove_unused_columns(dataset).column_names if name in given["columns"]]
            plain = dataset.with_format(None).select_columns(shown)
            with self.args.main_process_first(desc="making rows for the teacher"):
                further = self._further(plain)
            self.further_rows = {name: len(rows) for name, rows in further.items()}
            marked = plain.add_column(COLUMN, np.zeros(len(plain), dtype=bool))
            whole = concatenate_datasets([marked, *further.values()])
            whole = whole.with_format(given["type"], [*shown, COLUMN], **given["format_kwargs"])
            self._enlarged_from = dataset, whole
        return self._enlarged_from[1], TeacherOnlyCollator(collator)

    def _further(self, dataset: Any) -> dict[str, Any]:
        """Return the data sets of rows that only the teacher labels, by where they come from."""
        assert self.head is not None and self.teacher is not None
        form = RowForm.of(dataset, self.head, self._tokenizer(), LABELS | set(self.label_names))
        found = {}
        if copies := self.distillation.distill_augment:
            embeddings = bare(cast(nn.Module, self.teacher)).get_input_embeddings().weight.detach().cpu()
            found["augmented"] = augmented_rows(dataset, form, embeddings, copies, seed=self.args.data_seed or 0)
        return found


def check_rows(dataset: Any) -> None:
    """Refuse training data to which no row can be added.

    Raises:
        ValueError: the data is not a `datasets.Dataset`, its rows are made when they are read, or it has the column.
    """
    check_dataset(dataset, [COLUMN], OPTIONS)
