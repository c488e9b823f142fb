"""Facts about the rows that a Trainer got: names, splits and counts, as far as `datasets` keeps them."""

import sys
from collections.abc import Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_compress.report.report import DatasetFacts
from hf_compress.report.source import find_source
from hf_compress.report.trial import Found, find_preprocessing


def find(trainer: Trainer, eval_rows: Any) -> DatasetFacts:
    """The facts about `trainer.train_dataset` and about `eval_rows`, one evaluation set or several by name."""
    train = trainer.train_dataset
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
    )


def complete(facts: DatasetFacts, trainer: Trainer, eval_rows: Any) -> tuple[DatasetFacts, list[int] | None]:
    """The facts with what a stranger needs to score the model again, and the place of each row in its split.

    That is the commit of the Hub dataset and the preprocessing of its rows. What the script declared is kept. The
    places are None if they are not known.
    """
    found = find_preprocessing(trainer, eval_rows) if trainer.is_world_process_zero() else Found(None)
    source = find_source(eval_rows)
    same = facts.hub_id is not None and facts.hub_id == source.hub_id
    declared = facts.preprocessing is not None
    return replace(
        facts,
        revision=facts.revision or (source.revision if same else None),
        preprocessing=facts.preprocessing if declared else found.preprocessing,
        without_preprocessing=None if declared else found.reason or None,
    ), found.rows


def task(trainer: Trainer) -> str:
    """A short name of the task: the configuration or the name of the dataset, or else the name of the script."""
    source = find_source(trainer.train_dataset)
    return source.config or (source.name.rpartition("/")[2] if source.name else _script())


def _count(rows: Any) -> int:
    if isinstance(rows, Mapping):
        return sum(_count(part) for part in rows.values())
    return len(rows) if isinstance(rows, Sized) else 0


def _script() -> str:
    return Path(sys.argv[0]).stem or "script"
