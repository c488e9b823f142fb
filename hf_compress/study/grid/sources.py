"""The models and the data of a grid: where they lie on this machine, and what they are wherever they lie."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_compress.study.grid.glue import TASKS
from hf_compress.study.grid.grid import Grid, Model, Task
from hf_compress.study.grid.plan import Identities, digest

# In front of the name of an installed package and a folder in it.
PACKAGE = "package:"
# What a model is made of; the rest of a folder (cards, training arguments) does not change its outputs.
PARTS = ("*.safetensors", "*.bin", "config.json", "*token*.json", "vocab*", "merges.txt", "spiece.model")


@dataclass(frozen=True)
class Sources:
    """Where to load the models of a grid from, and the folder with a copy of its data, if that is not on the Hub."""

    grid: Grid
    data: str | None = None

    def model(self, name: str) -> Model:
        """The entry of the grid that says where the model `name` is."""
        return next(model for model in self.grid.models if model.name == name)

    def task(self, name: str) -> Task:
        """The entry of the grid that says how many rows of the task to use."""
        return next(task for task in self.grid.tasks if task.name == name)

    def rows(self, task: Task) -> dict[str, datasets.Dataset]:
        """The rows of `task` to train on and those to evaluate on, by split.

        Raises:
            ValueError: the data has no such task or split.
        """
        source = self.grid.data if self.data is None else str(Path(self.data).resolve())
        kind = TASKS[task.name]
        loaded = datasets.load_dataset(source, task.name)
        limits = {"train": task.train_rows, kind.validation: task.eval_rows}
        missing = [split for split in limits if split not in loaded]
        if missing:
            raise ValueError(
                f"{source} has no split {', '.join(missing)} of {task.name}, but {', '.join(loaded)}. `--data` must "
                f"be a folder in the layout of {self.grid.data}."
            )
        return {
            split: loaded[split].select(range(min(limit or sys.maxsize, len(loaded[split]))))
            for split, limit in limits.items()
        }

    def encoded(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, identity: str
    ) -> tuple[dict[str, datasets.Dataset], list[str] | None]:
        """The rows of `task` as token ids, by split, and the names of its classes, None for a regression.

        Args:
            identity: what determines the tokenizer, by which the rows are found again in the cache of `datasets`.
        """
        rows, kind = self.rows(task), TASKS[task.name]
        length = min(self.grid.max_length, tokenizer.model_max_length)
        regression = kind.regression

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = dict(
                tokenizer(*(batch[column] for column in kind.sentences), truncation=True, max_length=length)
            )
            encoded["label"] = [float(label) if regression else label for label in batch["label"]]
            return encoded

        names = None if regression else list(rows["train"].features["label"].names)
        known = {"tokenizer": identity, "length": length}
        return {
            split: part.map(
                encode,
                batched=True,
                remove_columns=part.column_names,
                # Said rather than guessed by `datasets`, for whom a tokenizer is another once it has been used; and
                # the teachers' answers are found by it.
                new_fingerprint=digest(known | {"rows": _rows_digest({split: part}), "split": split}),
                desc=f"Tokenizing {task.name}",
            )
            for split, part in rows.items()
        }, names

    def identities(self, *, guess: bool = False) -> Identities:
        """What the models and the data of the grid are.

        Args:
            guess: whether names will do for what cannot be reached, as in a plan that is not to be run.

        Raises:
            ValueError: one of them is not there.
        """

        def found(identify: Callable[[], str], name: str) -> str:
            try:
                return identify()
            except (ValueError, OSError):
                if not guess:
                    raise
                return f"unknown:{name}"

        return Identities(
            {model.path: found(partial(model_identity, model), model.path) for model in self.grid.models},
            {task.name: found(partial(self._identity, task), task.name) for task in self.grid.tasks},
        )

    def _identity(self, task: Task) -> str:
        return _rows_digest(self.rows(task))


def located(path: str) -> str:
    """The folder or Hub id that the `path` of a grid's model means: `package:NAME/FOLDER` is in a Python package.

    Raises:
        ValueError: the package is not installed.
    """
    if not path.startswith(PACKAGE):
        return path
    package, _, inner = path.removeprefix(PACKAGE).partition("/")
    try:
        return str(files(package).joinpath(inner))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`path: {path}` needs the Python package {package}, which is not installed. Install it with pip, or "
            "give a folder or a Hub id."
        ) from error


def model_identity(model: Model) -> str:
    """A digest of a local model's files, or the commit of one on the Hub.

    Raises:
        ValueError: it is neither.
    """
    place = located(model.path)
    folder = Path(place)
    if folder.is_dir():
        parts = sorted({path for pattern in PARTS for path in folder.glob(pattern)})
        if not parts:
            raise ValueError(f"`path: {model.path}` of the model {model.name!r} is a folder without a model in it.")
        found = hashlib.sha256()
        for part in parts:
            with part.open("rb") as file:
                found.update(f"{part.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        return found.hexdigest()
    try:
        config = AutoConfig.from_pretrained(place, revision=model.revision or "main")
    except OSError as error:
        raise ValueError(
            f"`path: {model.path}` of the model {model.name!r} is no folder, and could not be found on the Hub: "
            f"{error}. Give a folder, or go where the Hub can be reached."
        ) from error
    return f"{place}@{config._commit_hash}"


def _rows_digest(rows: Mapping[str, datasets.Dataset]) -> str:
    """A digest of the rows themselves, so that a copy of the data is the same data."""
    found = hashlib.sha256()
    for split, part in rows.items():
        for name in sorted(part.column_names):
            # A row's number says where it came from, and not what it is.
            if name != "idx":
                values = json.dumps(list(part[name]), separators=(",", ":"))
                found.update(f"{split} {name} {part.features[name]} ".encode() + values.encode())
    return found.hexdigest()
