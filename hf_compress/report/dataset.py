"""Facts about the rows that a Trainer got: names, splits and counts, as far as `datasets` keeps them."""

import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_compress.report.predictions import Recorder
from hf_compress.report.report import DatasetFacts
from hf_compress.report.source import find_source
from hf_compress.report.trial import find_preprocessing


def find(
    trainer: Trainer, eval_rows: Any, declared: DatasetFacts | None = None, recorder: Recorder | None = None
) -> DatasetFacts:
    """The facts about the training set of `trainer` and about `eval_rows`, one evaluation set or several by name.

    They include what a stranger needs to score the model again: the commit of the Hub dataset, and how a row becomes
    inputs of the model. Process 0 finds the latter by trial.

    Args:
        trainer: after training.
        eval_rows: the evaluation set, as the trainer gets it.
        declared: what the script says about the rows, which is kept.
        recorder: gets the index of each evaluation row in its split, if that is found.
    """
    facts = declared or described(trainer, eval_rows, trainer.train_dataset)
    source = find_source(eval_rows)
    if facts.revision is None and facts.hub_id is not None and facts.hub_id == source.hub_id:
        facts = replace(facts, revision=source.revision)
    if facts.preprocessing is None and trainer.is_world_process_zero():
        found = find_preprocessing(trainer, eval_rows)
        if recorder is not None:
            recorder.rows = found.rows
        facts = replace(facts, preprocessing=found.preprocessing, without_preprocessing=found.reason or None)
        facts = replace(facts, eval_part=facts.eval_part or part(facts, found.rows))
    return facts


def find_extra(facts: DatasetFacts, rows: Any, indices: Sequence[int] | None) -> DatasetFacts:
    """The facts with a second evaluation set in the place of the first.

    Args:
        facts: of the training set and the first evaluation set.
        rows: the second evaluation set, as the trainer gets it.
        indices: the index in its split of each row; None if it is not known.
    """
    known = replace(
        facts,
        eval_split=find_source(rows).split or "extra",
        eval_rows=_count(rows),
        eval_split_rows=_whole(rows),
        eval_part=None,
    )
    return replace(known, eval_part=part(known, indices))


def part(facts: DatasetFacts, rows: Sequence[int] | None) -> str | None:
    """The part of the evaluation split that the rows are, as `datasets` writes it; None if it is all or unknown."""
    if not rows or list(rows) != list(range(rows[0], rows[0] + len(rows))) or len(rows) == facts.eval_split_rows:
        return None
    return f"{facts.eval_split}[{rows[0] or ''}:{rows[0] + len(rows)}]"


def described(trainer: Trainer, eval_rows: Any, train: Any) -> DatasetFacts:
    """The facts as far as `datasets` keeps names and splits.

    Args:
        trainer: after training.
        eval_rows: the evaluation set, or several by name; None if there is none.
        train: the training set.
    """
    source = find_source(train)
    first = next(iter(eval_rows.values())) if isinstance(eval_rows, Mapping) else eval_rows
    # A stream has no length, but the rows drawn from it are known.
    drawn = trainer.state.global_step * trainer.get_total_train_batch_size(trainer.args)
    return DatasetFacts(
        name=source.name or _script(),
        config=source.config,
        train_split=source.split or "train",
        train_rows=len(train) if isinstance(train, Sized) else drawn,
        eval_split=find_source(first).split or "evaluation",
        eval_rows=_count(eval_rows),
        hub_id=source.hub_id,
        eval_split_rows=_whole(first),
    )


def _whole(rows: Any) -> int | None:
    """The rows of the whole split that these rows are from."""
    split = (getattr(getattr(rows, "info", None), "splits", None) or {}).get(find_source(rows).split)
    return getattr(split, "num_examples", None) or None


def task(trainer: Trainer) -> str:
    """A short name of the task: the configuration or the name of the dataset, or else the name of the script."""
    return task_of(trainer.train_dataset)


def task_of(train: Any) -> str:
    """The same for a training set."""
    source = find_source(train)
    return source.config or (source.name.rpartition("/")[2] if source.name else _script())


def _count(rows: Any) -> int:
    if isinstance(rows, Mapping):
        return sum(_count(part) for part in rows.values())
    return len(rows) if isinstance(rows, Sized) else 0


def _script() -> str:
    return Path(sys.argv[0]).stem or "script"
