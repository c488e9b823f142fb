"""A Trainer that asks a teacher: at every step, or once about every row."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_compress.distill.answer_folder import OPTION
from hf_compress.distill.answers import AnswerCollator, answer_columns, check_dataset
from hf_compress.distill.cache import TeacherCache
from hf_compress.distill.enlarging import EnlargingMixin
from hf_compress.distill.fingerprints import identity
from hf_compress.distill.layering import LayeringMixin
from hf_compress.distill.teacher import adapter_off
from hf_compress.distill.teacher_only import COLUMN
from hf_compress.models.examples import longest_text
from hf_compress.models.heads import LABELS, bare

logger = logging.get_logger(__name__)


class AskingMixin(EnlargingMixin, LayeringMixin):
    """The part of a `DistillationMixin` that asks its teacher, and keeps the answers with `--distill_cache`."""

    model_wrapped: Any
    train_dataset: Any
    _adapted: PeftModel | None
    _teacher_inputs: set[str]
    _teacher_caches: bool
    _teacher_limit: int | None  # The longest text that the teacher reads, in tokens.
    _train_batch_size: int
    _answer_names: tuple[str, ...] = ()  # The columns with the answers; empty without a cache.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches to train on, with teacher-only rows, and the teacher's answers if they are cached."""
        given = self.train_dataset, self.data_collator
        try:
            if self._enlarges:
                self.train_dataset, self.data_collator = self._enlarged(*given)
            if self._answer_names:
                self.train_dataset, self.data_collator = self._answered(self.train_dataset, self.data_collator)
            loader = super().get_train_dataloader()
            if self._enlarges:
                self._say_what_an_epoch_has(len(loader))
            return loader
        finally:
            self.train_dataset, self.data_collator = given

    @contextlib.contextmanager
    def teaching(self) -> Iterator[PreTrainedModel]:
        """Yield the teacher. If it is the student with its adapter off, the adapter is off inside the context."""
        assert self.teacher is not None
        with contextlib.nullcontext() if self._adapted is None else adapter_off(self._adapted):
            yield self.teacher

    def _answered(self, dataset: Any, collator: Any) -> tuple[Any, AnswerCollator]:
        """Return the training set with the teacher's answers, and the collator that makes batches of it."""
        assert self.head is not None and self.teacher is not None and self.distillation.distill_cache is not None
        check_dataset(
            dataset, answer_columns(self.head), OPTION
        )  # Again: `train_dataset` may have been replaced since.
        head, shown = self.head, self._remove_unused_columns(dataset).column_names
        tokenizer = getattr(collator, "tokenizer", None) or self.processing_class
        visible = dataset.format["columns"]
        cache = TeacherCache(
            self.distillation.distill_cache,
            head,
            identity(self.teacher, self.processing_class, adapter_off=self._adapted is not None),
            columns=[name for name in shown if name in visible],
            collate=lambda rows: self._prepare_inputs(collator(rows)),
            read=lambda batch: self._teacher_reads(self.model, batch),
            ask=lambda batch: head.logits(self._teach(self.model, batch)),
            side=getattr(tokenizer, "padding_side", "right"),
            # As in training, so that the same kernels run: rows of one length get the same bits. Not the size of the
            # arguments, which `auto_find_batch_size` does not lower.
            batch_size=self._train_batch_size,
        )
        answered = cache.answered(dataset)
        return answered, AnswerCollator(collator, head, cache.side, cache.dtype(answered))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # Otherwise Trainer would remove these columns, because no model takes them.
        assert self._signature_columns is not None
        ours = [*self._answer_names, *([COLUMN] if self._enlarges else [])]
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    def _split_answers(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the cached answers in a batch, under the names of the logits, and the other inputs."""
        assert self.head is not None
        answers = {
            output: inputs[column]
            for output, column in zip(self.head.names, self._answer_names, strict=False)
            if column in inputs
        }
        return answers, {name: value for name, value in inputs.items() if name not in self._answer_names}

    def _find_what_the_teacher_reads(self) -> None:
        """Find the inputs that the teacher takes and the longest text that it reads, and warn of differences."""
        assert self.head is not None
        teacher, student = bare(cast(nn.Module, self.teacher)), bare(self.model)
        arguments = set(inspect.signature(teacher.forward).parameters)
        self._teacher_inputs = arguments - LABELS - set(self.label_names)
        self._teacher_caches = "use_cache" in arguments
        self._teacher_limit = longest_text(teacher) if self.head.takes_text else None
        limit = longest_text(student)
        if self._teacher_limit is not None and (limit is None or limit > self._teacher_limit):
            logger.warning(
                f"The teacher ({type(teacher).__name__}) reads at most {self._teacher_limit} tokens, the student "
                f"{'any number' if limit is None else limit}. Longer rows will end the training: truncate them."
            )
        columns = set(getattr(self.train_dataset, "column_names", None) or ())
        dropped = columns & self._teacher_inputs - set(inspect.signature(student.forward).parameters)
        if dropped and self.args.remove_unused_columns:
            names = ", ".join(f"`{name}`" for name in sorted(dropped))
            logger.warning(
                f"The teacher ({type(teacher).__name__}) reads {names} of the training set. Trainer removes that, "
                "because the student does not take it. Without `token_type_ids`, for example, the teacher reads a "
                "pair of sentences as one."
            )

    def _teacher_reads(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs that the teacher's forward takes, without labels."""
        assert self.head is not None
        taken = {name: value for name, value in inputs.items() if name in self._teacher_inputs}
        if self.head.descriptor.decodes and "decoder_input_ids" not in taken:
            taken["decoder_input_ids"] = bare(model).prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        return taken

    def _teach(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Return the teacher's outputs for a batch, with what layerwise losses compare."""
        taken = self._teacher_reads(model, inputs)
        self._check_length(taken)
        if self._teacher_caches:
            taken["use_cache"] = False
        exact = torch.autocast(self.args.device.type, enabled=False)
        with self.teaching() as teacher, torch.no_grad(), exact, self._captured("teacher"):
            return teacher(**taken)

    def _check_length(self, inputs: Mapping[str, Any]) -> None:
        """Refuse rows that are longer than the teacher's positions, which torch would report as an index error."""
        for name in ("input_ids", "decoder_input_ids"):
            length = inputs[name].shape[-1] if name in inputs else 0
            if self._teacher_limit is not None and length > self._teacher_limit:
                raise ValueError(
                    f"The teacher ({type(bare(cast(nn.Module, self.teacher))).__name__}) reads at most "
                    f"{self._teacher_limit} tokens, and `{name}` has rows of {length}. Truncate the rows, or use a "
                    "teacher with more positions."
                )
