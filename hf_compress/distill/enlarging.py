"""A Trainer whose training set gets rows that only the teacher labels."""

import itertools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from hf_compress.distill.answers import check_dataset
from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.augmenting import LOOKED_AT, are_pairs, augmented_rows
from hf_compress.distill.extra import ExtraSource, extra_rows
from hf_compress.distill.row_form import RowForm
from hf_compress.distill.sharing import SharingSampler
from hf_compress.distill.teacher_only import AUGMENTED, COLUMN, OPTIONS, TeacherOnlyCollator
from hf_compress.distill.words import Vocabulary
from hf_compress.models.heads import LABELS, Head, bare
from hf_compress.models.targets import token_embedding

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
    further_rows: Mapping[str, int] = MappingProxyType({})  # How many rows were added, by where they come from.
    _enlarged_from: tuple[Any, Any] | None = None  # The training set, and what was made of it.

    @property
    def _enlarges(self) -> bool:
        """Whether the training set gets rows that only the teacher labels."""
        return self.teacher is not None and self.distillation.has_teacher_only_rows

    def _set_up_enlarging(self) -> None:
        """Add rows to the training set; now, so that what cannot be read is refused before anything is trained.

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
        self._check_sampling()
        if self.train_dataset is not None:
            self._enlarged(self.train_dataset, self.data_collator)

    def _check_sampling(self) -> None:
        """Check that nothing else chooses the rows of an epoch if `--distill_extra_share` does."""
        if self.distillation.distill_extra_share is None:
            return
        strategy = self.args.train_sampling_strategy
        if strategy != "random":
            raise ValueError(
                "`--distill_extra_share` chooses the rows of each epoch, and so does `--train_sampling_strategy "
                f"{strategy}`. Leave one of the two out."
            )
        own = [one for one in type(self).__mro__ if "_get_train_sampler" in vars(one)]
        if others := [one.__name__ for one in own if one not in (EnlargingMixin, Trainer)]:
            raise ValueError(
                "`--distill_extra_share` chooses the rows of each epoch, and so does `_get_train_sampler` of "
                f"{others[0]}. Leave the option out: then every row is in each epoch."
            )

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
            self.further_rows = {name: sum(map(len, parts)) for name, parts in further.items()}
            marked = plain.add_column(COLUMN, np.zeros(len(plain), dtype=bool))
            whole = concatenate_datasets([marked, *itertools.chain(*further.values())])
            whole = whole.with_format(given["type"], [*shown, COLUMN], **given["format_kwargs"])
            self._enlarged_from = dataset, whole
        return self._enlarged_from[1], TeacherOnlyCollator(collator)

    def _further(self, dataset: Any) -> dict[str, list[Any]]:
        """Return the data sets of rows that only the teacher labels, by where they come from."""
        assert self.head is not None and self.teacher is not None
        settings, seed = self.distillation, self.args.data_seed or 0
        form = RowForm.of(dataset, self.head, self._tokenizer(), LABELS | set(self.label_names))
        embeddings = _embeddings(bare(cast(nn.Module, self.teacher)))
        vocabulary = Vocabulary.of(form.tokenizer, len(embeddings))
        found: dict[str, list[Any]] = {}
        if copies := settings.distill_augment:
            found[AUGMENTED] = [augmented_rows(dataset, form, vocabulary, embeddings, copies, seed)]
        some = dataset.select(range(0, len(dataset), max(1, len(dataset) // LOOKED_AT)))
        paired = are_pairs([form.trimmed(row)[self.head.main_input] for row in some], vocabulary.structure)
        for source in map(ExtraSource.of, settings.distill_extra):
            # Files in two folders may have one name.
            found.setdefault(source.shown, []).extend(extra_rows(source, dataset, form, vocabulary.structure, paired))
        return found

    def _say_what_an_epoch_has(self, batches: int) -> None:
        """Log how many rows of each kind an epoch has, and how many optimizer steps: more than the user may expect."""
        if not self.is_world_process_zero():
            return
        sampler = self._sharing()
        drawn = sum(self.further_rows.values()) if sampler is None else sampler.drawn
        sources = ", ".join(f"{count:,} {name}" for name, count in self.further_rows.items())
        logger.warning(
            f"An epoch has {self._labelled_rows:,} labelled rows and {drawn:,} that only the teacher labels (of "
            f"{sources}): {math.ceil(batches / self.args.gradient_accumulation_steps):,} steps."
        )

    def _sharing(self) -> SharingSampler | None:
        """Return the sampler that keeps the share of teacher-only rows; None if all of them are in each epoch."""
        share = self.distillation.distill_extra_share
        if share is None or not self._enlarges or self._enlarged_from is None:
            return None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SharingSampler(self._labelled_rows, sum(self.further_rows.values()), share, seed)

    @property
    def _labelled_rows(self) -> int:
        assert self._enlarged_from is not None
        return len(self._enlarged_from[0])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = self._sharing()
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def num_examples(self, dataloader: Any) -> int:
        """Return the number of rows in an epoch of a data loader."""
        sampler = self._sharing()
        enlarged = COLUMN in (getattr(dataloader.dataset, "column_names", None) or ())
        return len(sampler) if sampler is not None and enlarged else super().num_examples(dataloader)


def _embeddings(teacher: PreTrainedModel) -> Tensor:
    """Return the teacher's embeddings of its tokens, on the CPU.

    Raises:
        ValueError: it has none, or they are stored as integers.
    """
    weight = getattr(token_embedding(teacher), "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{OPTIONS} need a teacher with one embedding for each token, in floating point; "
            f"{type(teacher).__name__} has none. Use another teacher, or leave the options out."
        )
    return weight.detach().cpu()


def check_rows(dataset: Any) -> None:
    """Refuse training data to which no row can be added.

    Raises:
        ValueError: the data is not a `datasets.Dataset`, its rows are made when they are read, or it has the column.
    """
    check_dataset(dataset, [COLUMN], OPTIONS)
