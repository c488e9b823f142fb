"""Facts about the rows that a Trainer got: names, splits and counts, as far as `datasets` keeps them."""

import re
import sys
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_compress.report.report import DatasetFacts

# `load_dataset("csv", data_files=...)` and similar calls name the dataset after its format.
FORMATS = ("csv", "json", "parquet", "text", "arrow", "generator", "pandas", "webdataset", "imagefolder")
ON_HUB = re.compile(r"^hf://datasets/([\w.-]+/[\w.-]+)@([0-9a-f]{40})?")


def find(trainer: Trainer, eval_rows: Any) -> DatasetFacts:
    """The facts about `trainer.train_dataset` and about `eval_rows`, one evaluation set or several by name."""
    train = trainer.train_dataset
    name, config, hub_id, revision = _origin(train)
    first = next(iter(eval_rows.values())) if isinstance(eval_rows, Mapping) else eval_rows
    # A stream has no length, but the rows drawn from it are known.
    drawn = trainer.state.global_step * trainer.get_total_train_batch_size(trainer.args)
    return DatasetFacts(
        name=name or _script(),
        config=config,
        train_split=_split(train) or "train",
        train_rows=len(train) if isinstance(train, Sized) else drawn,
        eval_split=_split(first) or "evaluation",
        eval_rows=_count(eval_rows),
        hub_id=hub_id,
        revision=revision,
    )


def task(trainer: Trainer) -> str:
    """A short name of the task: the configuration or the name of the dataset, or else the name of the script."""
    name, config, *_ = _origin(trainer.train_dataset)
    return config or (name.rpartition("/")[2] if name else _script())


def _origin(rows: Any) -> tuple[str | None, str | None, str | None, str | None]:
    """Name, configuration, Hub id and commit of a dataset; None for what is unknown."""
    info = getattr(rows, "info", None)
    name = getattr(info, "dataset_name", None)
    if not name or name in FORMATS:
        return None, None, None, None
    config = getattr(info, "config_name", None)
    sources = [ON_HUB.match(address) for address in getattr(info, "download_checksums", None) or {}]
    source = next((source for source in sources if source), None)
    hub_id, revision = (None, None) if source is None else (source[1], source[2])
    return hub_id or name, None if config == "default" else config, hub_id, revision


def _split(rows: Any) -> str | None:
    split = getattr(rows, "split", None)
    return None if split is None else str(split).partition("[")[0]


def _count(rows: Any) -> int:
    if isinstance(rows, Mapping):
        return sum(_count(part) for part in rows.values())
    return len(rows) if isinstance(rows, Sized) else 0


def _script() -> str:
    return Path(sys.argv[0]).stem or "script"
