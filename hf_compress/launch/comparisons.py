"""What a run is compared by besides its dense model on its evaluation set: a control, and further labelled rows."""

import inspect
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.utils import logging

from hf_compress.launch.processes import on_first
from hf_compress.models.heads import LABELS, bare, find_head
from hf_compress.models.sentences import sentence_kind
from hf_compress.report.control import HOW, ControlRun
from hf_compress.report.sentence_rows import evaluator_rows
from hf_compress.report.unseen import unseen_rows

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Comparisons:
    """The second evaluation set and the control of a run.

    Args:
        extra: further labelled rows, as the trainer evaluates them; None if there are none.
        extra_rows: the index of each of them in its split; None if only `datasets` may know it.
        extra_dense: scores of the dense model on them, if they are given.
        control: the control; on process 0 only.
    """

    extra: Any = None
    extra_rows: Sequence[int] | None = None
    extra_dense: Mapping[str, float] | None = None
    control: ControlRun | None = None

    def updated(
        self,
        trainer: Trainer,
        *,
        extra: Any = None,
        extra_rows: Sequence[int] | None = None,
        extra_dense: Mapping[str, float] | None = None,
        control: str | Path | None = None,
    ) -> "Comparisons":
        """Return these comparisons with those that are given in their place, checked. Collective.

        Raises:
            ValueError: the extra rows are not one set, are among the training rows or cannot be evaluated, or the
                control is none or was measured on other rows.
        """
        changed = self
        if sentence_kind(bare(trainer.model)) is not None and extra is not None:
            raise ValueError(
                f"`extra_eval_dataset` is for trainers with `compute_metrics`; a {type(trainer).__name__} has "
                "evaluators instead. Leave it out, and give the trainer several evaluators."
            )
        if extra is not None:
            _check_extra(trainer, extra, extra_rows)
            changed = replace(changed, extra=extra, extra_rows=extra_rows)
        elif extra_rows is not None:
            _check_indices(self.extra, extra_rows)
            changed = replace(changed, extra_rows=extra_rows)
        if extra_dense is not None:
            changed = replace(changed, extra_dense=extra_dense)
        if control is not None:
            read: list[ControlRun] = []
            on_first(trainer, lambda: read.append(_read(trainer, control)))
            changed = replace(changed, control=read[0] if read else None)
        return changed


def warn_of_taught(trainer: Trainer, rows: Any) -> None:
    """Warn if rows of the second evaluation set are among those that only the teacher labels.

    They are not refused: made rows may equal a short text by chance.

    Args:
        trainer: distilling, with its rows made.
        rows: the second evaluation set; None if there is none.
    """
    made = getattr(trainer, "_enlarged_from", None)
    seen = 0 if rows is None or made is None else _seen(trainer, rows, made[1])[1]
    if seen:
        logger.warning(
            f"{seen:,} of the {len(rows):,} rows of `extra_eval_dataset` are among those that only the teacher "
            "labels (`--distill_extra`, `--distill_augment`). The student has not seen their labels, but their texts. "
            "Leave these texts out of `--distill_extra`."
        )


def _read(trainer: Trainer, folder: str | Path) -> ControlRun:
    """Return the control in `folder`, which has as many rows as the evaluation set of `trainer`."""
    control = ControlRun.read(folder)
    ours, rows = _evaluated(trainer), control.main.outputs.rows
    if ours not in (None, rows):
        raise ValueError(
            f"`--compress_control` must be measured on the evaluation rows of this run, which are {ours:,}; "
            f"{folder} was measured on {rows:,}. {HOW}."
        )
    return control


def _evaluated(trainer: Trainer) -> int | None:
    """Return the number of rows that `trainer` evaluates on; None if it is not known."""
    if sentence_kind(bare(trainer.model)) is not None:
        return evaluator_rows(trainer) or None
    rows = trainer.eval_dataset
    return len(rows) if isinstance(rows, Sized) and not isinstance(rows, Mapping) else None


def _check_extra(trainer: Trainer, rows: Any, indices: Sequence[int] | None) -> None:
    """Check that `rows` can be a second evaluation set.

    Raises:
        ValueError: they cannot.
    """
    if isinstance(rows, Mapping) or not isinstance(rows, Sized) or not len(rows):
        said = "no rows" if isinstance(rows, Sized) and not len(rows) else type(rows).__name__
        raise ValueError(
            f"`extra_eval_dataset` must be one set of labelled rows, prepared as the evaluation set is; got {said}."
        )
    from datasets import Dataset

    kinds = {name: parameter.kind for name, parameter in inspect.signature(trainer.evaluate).parameters.items()}
    if "eval_dataset" not in kinds and inspect.Parameter.VAR_KEYWORD not in kinds.values():
        raise ValueError(
            f"`extra_eval_dataset` needs an `evaluate` that takes `eval_dataset`; that of {type(trainer).__name__} "
            "does not. Add the argument as Trainer has it."
        )
    lacking = _labels(trainer, trainer.eval_dataset) - _labels(trainer, rows)
    if lacking and isinstance(rows, Dataset):
        raise ValueError(
            f"`extra_eval_dataset` must have labels, as the evaluation set has in {', '.join(sorted(lacking))}; got "
            f"the columns {', '.join(rows.column_names)}."
        )
    _check_indices(rows, indices)
    column, seen = _seen(trainer, rows, trainer.train_dataset)
    if seen:
        raise ValueError(
            f"`extra_eval_dataset` must hold rows that the training does not see; {seen:,} of its {len(rows):,} rows "
            "have the inputs of a training row. Leave them out: "
            f"`rows.select(hf_compress.unseen_rows(rows, trainer.train_dataset, ['{column}']))`."
        )


def _labels(trainer: Trainer, rows: Any) -> set[str]:
    """Return the columns with labels of rows; none of a collator's own, and none where columns are not known."""
    from datasets import Dataset

    known = {*LABELS, *trainer.label_names, "label", "label_ids"}
    return known & {*rows.column_names} if isinstance(rows, Dataset) else set()


def _check_indices(rows: Any, indices: Sequence[int] | None) -> None:
    if indices is not None and (rows is None or len(indices) != len(rows)):
        many = "no extra rows" if rows is None else f"{len(rows):,} extra rows"
        raise ValueError(
            f"`extra_eval_rows` must be the index in its split of each row of `extra_eval_dataset`; got "
            f"{len(indices):,} for {many}."
        )
    if indices is not None and (len({*indices}) < len(indices) or min(indices) < 0):
        raise ValueError(
            "`extra_eval_rows` must be the index in its split of each row, from 0, and name no row twice."
        )


def _seen(trainer: Trainer, rows: Any, others: Any) -> tuple[str, int]:
    """Return the main input, and how many of the rows have that of one of the others, as far as both are tables."""
    from datasets import Dataset

    try:
        column = find_head(trainer.model).main_input
    except ValueError:
        return "", 0  # A model without a known head gets no report.
    tables = [table for table in (rows, others) if isinstance(table, Dataset)]
    if len(tables) < 2 or any(column not in table.column_names for table in tables):
        return column, 0
    return column, len(rows) - len(unseen_rows(rows, others, [column]))
