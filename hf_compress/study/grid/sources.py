"""Models and data of a grid: where they are on this machine, and digests of their contents."""

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
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_compress.report.unseen import unseen_rows
from hf_compress.study.grid.glue import TASKS
from hf_compress.study.grid.grid import ModelEntry, StudyGrid, TaskEntry
from hf_compress.study.grid.plan import Identities, digest

# The second evaluation set, among the rows of a task by split.
EXTRA = "extra"
# Prefix of a path in an installed Python package.
PACKAGE = "package:"
# Files that determine a model's outputs. Cards and training arguments do not.
IDENTITY_FILES = ("*.safetensors", "*.bin", "config.json", "*token*.json", "vocab*", "merges.txt", "spiece.model")


class UnreachableError(ValueError):
    """A model or data set is not on this machine, and the Hub did not return it."""


@dataclass(frozen=True)
class Sources:
    """Loads the models and data of a grid.

    Args:
        grid: the grid.
        data: folder with a copy of the data; by default `grid.data`.

    Example:
        >>> from hf_compress.study.grid import Sources, StudyGrid
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> Sources(grid).model("tiny").path, Sources(grid).task("sst2").name
        ('tiny', 'sst2')
    """

    grid: StudyGrid
    data: str | None = None

    def model(self, name: str) -> ModelEntry:
        """Return the first entry of the grid with this model name."""
        return next(model for model in self.grid.models if model.name == name)

    def task(self, name: str) -> TaskEntry:
        """Return the entry of the grid with this task name."""
        return next(task for task in self.grid.tasks if task.name == name)

    def rows(self, task: TaskEntry) -> dict[str, datasets.Dataset]:
        """Return the training and evaluation rows of a task, by split. `EXTRA` are the rows of `eval_extra`.

        Raises:
            ValueError: the data has no such task or split, or too few rows for `eval_extra`.
        """
        source = self._source()
        kind = TASKS[task.name]
        loaded = self._loaded(source, task.name)
        limits = {"train": task.train_rows, kind.validation: task.eval_rows}
        missing = [split for split in limits if split not in loaded]
        if missing:
            raise ValueError(
                f"{source} has no split {', '.join(missing)} for the task {task.name}; it has {', '.join(loaded)}. "
                f"`--data` must be a folder in the layout of {self.grid.data}."
            )
        found = {
            split: loaded[split].select(range(min(limit or sys.maxsize, len(loaded[split]))))
            for split, limit in limits.items()
        }
        if task.eval_extra is not None:
            whole, used = loaded["train"], len(found["train"])
            if used + task.eval_extra > len(whole):
                raise ValueError(
                    f"`eval_extra` of the task {task.name} must be at most {len(whole) - used:,}, the rows of the "
                    f"training split behind `train_rows`; got {task.eval_extra:,}."
                )
            found[EXTRA] = whole.select(range(used, used + task.eval_extra))
        return found

    def encoded(
        self, task: TaskEntry, tokenizer: PreTrainedTokenizerBase, identity: str
    ) -> tuple[dict[str, datasets.Dataset], list[str] | None]:
        """Return the rows of a task as token ids, by split, and the names of its classes (None for a regression).

        Of the extra rows, those with the inputs of a training row are left out.

        Args:
            task: the task.
            tokenizer: the tokenizer of the model.
            identity: digest of the model, which determines the tokenizer. The cache of `datasets` finds the rows
                by it.
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
        made = {
            split: part.map(
                encode,
                batched=True,
                remove_columns=part.column_names,
                # `datasets` would hash the tokenizer, whose hash changes with its first use. The cache of the
                # teachers' answers finds rows by this fingerprint too.
                new_fingerprint=digest(known | {"rows": _rows_digest({split: part}), "split": split}),
                desc=f"Tokenizing {task.name}",
            )
            for split, part in rows.items()
        }
        if EXTRA in made:
            made[EXTRA] = made[EXTRA].select(unseen_rows(made[EXTRA], made["train"], ["input_ids"]))
        return made, names

    def identities(self, unreached: list[str] | None = None) -> Identities:
        """Return digests of the models and the data of the grid.

        Args:
            unreached: for a plan that is not run. Models and data that the Hub does not return are then identified by
                name, and a line about each is appended here. Folders are checked in any case.

        Raises:
            ValueError: a model or a data set is missing, or has too few layers.
        """

        def found(identify: Callable[[], str], name: str) -> str:
            try:
                return identify()
            except UnreachableError as error:
                if unreached is None:
                    raise
                unreached.append(str(error))
                return f"unknown:{name}"

        return Identities(
            {model.path: found(partial(model_identity, model), model.path) for model in self.grid.models},
            {task.name: found(partial(self._identity, task), task.name) for task in self.grid.tasks},
        )

    def _source(self) -> str:
        """Return the folder or Hub id of the data."""
        if self.data is None and not is_local(self.grid.data):
            return self.grid.data
        option = f"`data: {self.grid.data}`" if self.data is None else f"`--data {self.data}`"
        folder = Path(self.grid.data if self.data is None else self.data)
        if not folder.is_dir():
            raise ValueError(
                f"{option} must be a folder with GLUE, in the layout of nyu-mll/glue. It is not a folder."
            )
        return str(folder.resolve())

    def _loaded(self, source: str, task: str) -> Any:
        try:
            return datasets.load_dataset(source, task)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            if Path(source).is_dir():
                option = f"`data: {self.grid.data}`" if self.data is None else f"`--data {self.data}`"
                raise ValueError(f"{option} has no readable data of the task {task}: {reason}") from error
            if isinstance(error, datasets.exceptions.DatasetNotFoundError) and not datasets.config.HF_HUB_OFFLINE:
                raise ValueError(f"`data: {source}` is not on the Hub: {reason}") from error
            raise UnreachableError(
                f"`data: {source}`: the Hub did not return the task {task}: {reason} Give `--data FOLDER`, or run "
                "where the Hub can be reached."
            ) from error

    def _identity(self, task: TaskEntry) -> str:
        return _rows_digest(self.rows(task))


def located(path: str) -> str:
    """Return the folder or Hub id of a `path` in the grid. `package:NAME/FOLDER` is a folder in a Python package.

    Raises:
        ValueError: the package is not installed.

    Example:
        >>> from hf_compress.study.grid.sources import located
        >>> located("google-bert/bert-base-uncased")
        'google-bert/bert-base-uncased'
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


def is_local(path: str) -> bool:
    """Return whether a path means a folder rather than a Hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()


def model_identity(model: ModelEntry) -> str:
    """Return a digest of a local model's files, or the commit of a model on the Hub.

    Raises:
        UnreachableError: the Hub cannot be reached.
        ValueError: there is no such model, or it has fewer layers than the grid asks for.
    """
    place = located(model.path)
    said = f"`path: {model.path}` of the model {model.name!r}"
    folder = Path(place)
    parts = sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern)}) if folder.is_dir() else []
    if is_local(place) and not any(part.suffix in (".safetensors", ".bin") for part in parts):
        raise ValueError(f"{said} is {'a folder without model files' if folder.is_dir() else 'not a folder'}.")
    try:
        config = AutoConfig.from_pretrained(place, revision=model.revision or "main")
    except OSError as error:
        reason = " ".join(str(error).split())
        if is_local(place):
            raise ValueError(f"{said} has no readable configuration: {reason}") from error
        if isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError):
            raise ValueError(f"{said} is not on the Hub: {reason}") from error
        raise UnreachableError(
            f"{said} is not a folder, and the Hub did not return it: {reason} Give a folder, or run where the Hub can "
            "be reached."
        ) from error
    most = getattr(config.get_text_config(), "num_hidden_layers", None)
    for layers in model.layers:
        if layers is not None and most is not None and layers > most:
            raise ValueError(f"`layers` of the model {model.name!r} must be from 1 to {most}; got {layers}.")
    if not parts:
        return f"{place}@{config._commit_hash}"
    found = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            found.update(f"{part.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return found.hexdigest()


def _rows_digest(rows: Mapping[str, datasets.Dataset]) -> str:
    """Return a digest of rows. A copy of the data at another place has the same digest."""
    found = hashlib.sha256()
    for split, part in rows.items():
        for name in sorted(part.column_names):
            # The number of a row depends on its source, not on its content.
            if name != "idx":
                values = json.dumps(list(part[name]), separators=(",", ":"))
                found.update(f"{split} {name} {part.features[name]} ".encode() + values.encode())
    return found.hexdigest()
