"""The grid file of a study: its entries, read from YAML and checked before any training."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from transformers import TrainingArguments

from hf_compress.distill import DistillationArguments
from hf_compress.distill.teacher import SELF
from hf_compress.documents import YAML, read_document
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.study.grid.combinations import COMBINATIONS, methods_in
from hf_compress.study.grid.glue import TASKS
from hf_compress.study.grid.values import (
    distinct,
    entries,
    fits,
    in_words,
    is_number,
    is_whole,
    keys,
    seed_list,
    shown,
    text,
)

METHOD_ARGUMENTS: dict[str, type[Any]] = {
    "kd": DistillationArguments,
    "mp": PruningArguments,
    "int8": QuantizationArguments,
}
# Options of a recipe that a grid sets under its own keys.
SET_ELSEWHERE = {
    "distill_teacher": "`teacher` instead",
    "distill_student_layers": "`layers` of a model instead",
    "distill_cache": "nothing: a study caches the answers of its teachers wherever it can",
    "prune_sparsity": "`sparsities` instead",
}
# Training arguments that the study sets itself.
SET_BY_STUDY = ("output_dir", "seed", "data_seed", "do_train", "do_eval", "do_predict", "push_to_hub", "report_to")
# The smallest legal values of training arguments that Transformers checks only during training, or never.
LOWEST = {
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
}
MAX_LENGTH = 512
MOST_CELLS = 100_000


@dataclass(frozen=True)
class ModelEntry:
    """An entry of `models`: a pretrained model and the numbers of layers to cut it to; None keeps all layers.

    Args:
        name: what results call the model.
        path: a folder, a Hub id, or `package:NAME/FOLDER`.
        layers: numbers of layers; each one is a separate model size.
        seeds: seeds of this entry; by default those of the grid.
        revision: revision on the Hub.
        hub_id: Hub id to name in reports, for a model in a folder.
        attn_implementation: as for `from_pretrained`. With `bf16` on a CPU, `eager` is the fastest.
        training: training arguments of this entry; they override those of the grid.
    """

    name: str
    path: str
    layers: tuple[int | None, ...] = (None,)
    seeds: tuple[int, ...] | None = None
    revision: str | None = None
    hub_id: str | None = None
    attn_implementation: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskEntry:
    """An entry of `tasks`: a GLUE task, how many of its first rows to use (None for all), and training arguments.

    `eval_extra` rows of the training split, those behind `train_rows`, are a second evaluation set.
    """

    name: str
    train_rows: int | None = None
    eval_rows: int | None = None
    eval_extra: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyGrid:
    """The grid of a study: all combinations of models, tasks, methods, sparsities, seeds and recipe options.

    Args:
        name: the name of the study, by default that of its file.
        models: the models to compress.
        tasks: the GLUE tasks.
        data: folder or Hub id of GLUE, in the layout of nyu-mll/glue.
        max_length: longest input, in tokens.
        methods: combinations of methods, by default all eight.
        sparsities: shares of weights that pruning sets to zero.
        seeds: seeds of each cell.
        teacher: the name of a model, trained with all its layers on the task with the first seed; or "self": each
            dense model teaches itself. The teacher uses the `training` of an entry only if that entry lists all
            layers.
        training: training arguments of all runs. Those of a model override them, and those of a task override both.
        dense_training: overrides all of these for the training of dense models.
        recipe: options of a recipe, each a tuple of values. Several values make one more axis.

    Example:
        >>> from hf_compress.study.grid import StudyGrid
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> grid.methods
        ('dense', 'kd', 'mp', 'int8', 'kd+mp', 'kd+int8', 'mp+int8', 'kd+mp+int8')
        >>> list(grid.recipes("mp+int8"))
        [{'prune_sparsity': 0.6, 'quant_scheme': 'int8'}]
    """

    name: str
    models: tuple[ModelEntry, ...]
    tasks: tuple[TaskEntry, ...]
    data: str = "nyu-mll/glue"
    max_length: int = 128
    methods: tuple[str, ...] = COMBINATIONS
    sparsities: tuple[float, ...] = (0.6,)
    seeds: tuple[int, ...] = (0,)
    teacher: str = SELF
    training: Mapping[str, Any] = field(default_factory=dict)
    dense_training: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """How many cells the grid has, some of which may be the same."""
        starts = sum(len(model.layers) * len(model.seeds or self.seeds) for model in self.models) * len(self.tasks)
        return starts * sum(math.prod(map(len, self._axes(methods).values())) for methods in self.methods)

    def recipes(self, methods: str) -> Iterator[dict[str, Any]]:
        """Yield the options of each recipe of a combination, all but the name of the teacher."""
        axes = self._axes(methods)
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def _axes(self, methods: str) -> dict[str, tuple[Any, ...]]:
        """Return the values of each option of a combination."""
        chosen = methods_in(methods)
        known = {option.name for part in chosen for option in fields(METHOD_ARGUMENTS[part])}
        axes = {name: values for name, values in self.recipe.items() if name in known}
        if "mp" in chosen:
            axes["prune_sparsity"] = self.sparsities
        if "int8" in chosen:
            axes.setdefault("quant_scheme", ("int8",))
        return axes

    @classmethod
    def read(cls, path: str | Path) -> "StudyGrid":
        """Read the grid from a YAML file.

        Raises:
            ValueError: the file is missing or is not YAML, or its grid is invalid.
        """
        path = Path(path)
        if path.suffix not in YAML:
            raise ValueError(f"GRID must be a YAML file, named *.yaml or *.yml; got {path.name}.")
        values = read_document(path)
        return cls.from_dict(values, path.stem)

    @classmethod
    def from_dict(cls, values: Any, name: str = "study") -> "StudyGrid":
        """Return the grid that the values of a YAML file describe.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range. The message names it.
        """
        given = keys(values, "the grid", cls, ("models", "tasks"))
        grid: dict[str, Any] = {"name": name} | given
        grid["models"] = tuple(_model(entry) for entry in entries(given["models"], "models"))
        grid["tasks"] = tuple(_task(entry) for entry in entries(given["tasks"], "tasks"))
        grid["recipe"] = _recipe(given.get("recipe", {}))
        for option in ("training", "dense_training"):
            grid[option] = _training(given.get(option, {}), option)
        for option in {"methods", "sparsities"} & given.keys():
            grid[option] = tuple(entries(given[option], option))
        if "seeds" in given:
            grid["seeds"] = seed_list(given["seeds"], "seeds")
        result = cls(**grid)
        _check(result)
        return result


def _check(grid: StudyGrid) -> None:
    text(grid.name, "`name` of the grid"), text(grid.data, "`data`")
    unknown = [method for method in grid.methods if method not in COMBINATIONS]
    if unknown:
        raise ValueError(
            f"`methods` must be some of {', '.join(COMBINATIONS)}; got {shown(unknown[0])}. Leave it out for all."
        )
    distinct(grid.methods, "methods")
    for sparsity in grid.sparsities:
        if not (is_number(sparsity) and 0 < sparsity < 1):
            raise ValueError(
                f"`sparsities` must be shares of weights above 0 and below 1; got {shown(sparsity)}. Give 0.6 for "
                "60 %. For cells without pruning, use `methods`."
            )
    distinct(grid.sparsities, "sparsities")
    if not (is_whole(grid.max_length) and 8 <= grid.max_length <= MAX_LENGTH):
        raise ValueError(
            f"`max_length` must be a number of tokens from 8 to {MAX_LENGTH}; got {shown(grid.max_length)}."
        )
    paths: dict[str, ModelEntry] = {}
    for model in grid.models:
        first = paths.setdefault(model.name, model)
        if (first.path, first.revision) != (model.path, model.revision):
            raise ValueError(
                f"`models` has {model.name!r} twice, once at {first.path} and once at {model.path}. Give each its "
                "own name: entries with the same name must have the same `path` and `revision`."
            )
    if grid.teacher not in (SELF, *paths):
        raise ValueError(
            f"`teacher` must be {SELF!r} or the name of one of `models` ({', '.join(paths)}); got "
            f"{shown(grid.teacher)}."
        )
    distinct([task.name for task in grid.tasks], "tasks")
    if grid.cells > MOST_CELLS:
        raise ValueError(f"The grid has {grid.cells:,} cells; at most {MOST_CELLS:,} are allowed. Make two grids.")
    for methods in grid.methods:
        for options in grid.recipes(methods):
            for method in methods_in(methods):
                kind = METHOD_ARGUMENTS[method]
                kind(**{option.name: options[option.name] for option in fields(kind) if option.name in options})


def _model(entry: Any) -> ModelEntry:
    given = keys(entry, "an entry of `models`", ModelEntry, ("name", "path"))
    name = text(given["name"], "`name` of a model")
    for option in ("path", "revision", "hub_id", "attn_implementation"):
        if given.get(option) is not None or option == "path":
            text(given[option], f"`{option}` of the model {name!r}")
    layers = given.get("layers")
    counts = tuple(layers) if isinstance(layers, list) else (layers,)
    for count in counts:
        if not (count is None or (is_whole(count) and count >= 1)):
            raise ValueError(
                f"`layers` of the model {name!r} must be numbers of layers from 1, or null for all; got "
                f"{shown(count)}. For example, give [6, 3, 1]."
            )
    distinct(counts, f"layers of {name}")
    seeds = given.get("seeds")
    return ModelEntry(
        **given
        | {
            "layers": counts,
            "seeds": None if seeds is None else seed_list(seeds, f"seeds of {name}"),
            "training": _training(given.get("training", {}), f"training of the model {name}"),
        }
    )


def _task(entry: Any) -> TaskEntry:
    entry = {"name": entry} if isinstance(entry, str) else entry
    given = keys(entry, "an entry of `tasks`", TaskEntry, ("name",))
    name = given["name"]
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"`tasks` must be some of {', '.join(TASKS)}; got {shown(name)}.")
    for option in ("train_rows", "eval_rows", "eval_extra"):
        rows = given.get(option)
        if not (rows is None or (is_whole(rows) and rows >= 1)):
            raise ValueError(
                f"`{option}` of the task {name} must be a whole number, at least 1; got {shown(rows)}. Leave it out "
                f"for {'no second evaluation set' if option == 'eval_extra' else 'all rows'}."
            )
    if given.get("eval_extra") is not None and given.get("train_rows") is None:
        raise ValueError(
            f"`eval_extra` of the task {name} needs `train_rows`: it takes the rows behind those that are trained on."
        )
    return TaskEntry(**given | {"training": _training(given.get("training", {}), f"training of the task {name}")})


def _recipe(values: Any) -> dict[str, tuple[Any, ...]]:
    hints = {
        option.name: get_type_hints(kind)[option.name] for kind in METHOD_ARGUMENTS.values() for option in fields(kind)
    }
    for name in keys(values, "`recipe`", hints):
        if name in SET_ELSEWHERE:
            raise ValueError(f"`recipe` of a grid cannot set `{name}`. Use {SET_ELSEWHERE[name]}.")
    axes = {}
    for name, value in values.items():
        # For an option that takes a list, only a list of lists is an axis.
        several = isinstance(value, list) and not fits(value, hints[name])
        axes[name] = tuple(value) if several else (value,)
        if not axes[name]:
            raise ValueError(f"`recipe`: `{name}` has no value. Give one, or several as a list.")
        for one in axes[name]:
            if not fits(one, hints[name]):
                raise ValueError(f"`recipe`: `{name}` must be {in_words(hints[name])}; got {shown(one)}.")
    return axes


def _training(values: Any, where: str) -> dict[str, Any]:
    hints = get_type_hints(TrainingArguments)
    for name in keys(values, f"`{where}`", [option.name for option in fields(TrainingArguments) if option.init]):
        value = values[name]
        if name in SET_BY_STUDY:
            raise ValueError(f"`{where}` cannot set `{name}`, which the study sets itself. Leave it out.")
        if not fits(value, hints[name]):
            raise ValueError(f"`{where}`: `{name}` must be {in_words(hints[name])}; got {shown(value)}.")
        if (name in LOWEST and not value >= LOWEST[name]) or (name == "num_train_epochs" and not value > 0):
            least = f"at least {LOWEST[name]}" if name in LOWEST else "above 0"
            raise ValueError(f"`{where}`: `{name}` must be {least}; got {shown(value)}.")
    return dict(values)
