"""The cells of a grid, the dense models that they start from, and the keys by which both are found again."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hf_compress.recipe import ARGUMENTS, Recipe
from hf_compress.report import records
from hf_compress.study.grid.combinations import parts
from hf_compress.study.grid.grid import METHOD_ARGUMENTS, Grid, Model, Task

# The version of what a node computes, and part of every key. To be raised by hand when a change makes a node of the
# same description train otherwise. The package's version and the commit would make every release and every commit
# forget all results, most of which they cannot change; a report says which versions it was made with.
VERSION = 1
SECTIONS = {
    kind: section
    for kind, section in zip(ARGUMENTS, Recipe.__dataclass_fields__, strict=True)
    if kind in METHOD_ARGUMENTS.values()
}


@dataclass(frozen=True)
class Dense:
    """A model fine-tuned on a task without any method: what cells start from, and what teaches them."""

    key: str
    model: str
    layers: int | None
    task: str
    seed: int
    training: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A recipe applied to a dense model: one point of the grid.

    `model`, `layers`, `task` and `seed` are those of the dense model `starts_from`, named by its key. `methods` is one
    of `COMBINATIONS`; `sparsity` is 0 without pruning. `teacher` is a model's name, `self`, or None without
    distillation; `taught_by` is the key of that dense model. `recipe` is as `Recipe.to_dict` has it, with that name
    for the teacher.
    """

    key: str
    model: str
    layers: int | None
    task: str
    methods: str
    sparsity: float
    seed: int
    teacher: str | None
    recipe: dict[str, dict[str, Any]]
    training: dict[str, Any]
    starts_from: str
    taught_by: str | None

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of the dense models without which this cell cannot begin."""
        return (
            (self.starts_from,) if self.taught_by in (None, self.starts_from) else (self.starts_from, self.taught_by)
        )

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """The cell that `to_dict` described.

        Raises:
            ValueError: an unknown or missing field, or a value of the wrong type, each by its name.
        """
        cell: Cell = records.decode(cls, dict(values), "cell")
        return cell


@dataclass(frozen=True)
class Identities:
    """What models and data are, whatever they are called and wherever they lie: digests by path and by task."""

    models: Mapping[str, str]
    data: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All nodes of a study by their keys, cells in the order in which they are to be run."""

    dense: Mapping[str, Dense]
    cells: Mapping[str, Cell]


def plan(grid: Grid, identities: Identities) -> Plan:
    """The nodes of `grid`. Cells that come to the same, such as those whose axes do not concern them, are one."""
    planner = _Planner(grid, identities)
    cells: dict[str, Cell] = {}
    for cell in planner.cells():
        cells.setdefault(cell.key, cell)
    return Plan(planner.dense, cells)


def digest(values: Any) -> str:
    """A name of 20 characters for JSON values, the same for the same values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class _Planner:
    def __init__(self, grid: Grid, identities: Identities) -> None:
        self.grid, self.identities = grid, identities
        self.dense: dict[str, Dense] = {}
        self._found: dict[tuple[Any, ...], str] = {}
        self._recipes = {
            methods: [self._recipe(methods, options) for options in grid.recipes(methods)] for methods in grid.methods
        }

    def cells(self) -> Iterator[Cell]:
        teacher = self._teacher()
        starts = [
            (number, model, layers, task, seed)
            for model in self.grid.models
            for layers in model.layers
            for task in self.grid.tasks
            for number, seed in enumerate(model.seeds or self.grid.seeds)
        ]
        # Seed by seed, so that a study that is not run to its end is whole as far as it came.
        for _, model, layers, task, seed in sorted(starts, key=lambda start: start[0]):
            start = self._dense(model, layers, task, seed)
            taught_by = start if teacher is None else self._dense(teacher, None, task, self.grid.seeds[0])
            yield from self._cells(model, layers, task, seed, start, taught_by)

    def _teacher(self) -> Model | None:
        """The model that teaches all cells, whole; None if each is taught by the dense model that it starts from.

        What an entry of the grid says of training is for the sizes that it lists.
        """
        named = [model for model in self.grid.models if model.name == self.grid.teacher]
        whole = [model for model in named if None in model.layers]
        return next(iter([*whole, *(replace(model, training={}) for model in named)]), None)

    def _cells(
        self, model: Model, layers: int | None, task: Task, seed: int, start: str, teacher: str
    ) -> Iterator[Cell]:
        training = {**self.grid.training, **model.training, **task.training}
        for methods, recipes in self._recipes.items():
            taught = "kd" in parts(methods)
            for recipe, changed in recipes:
                known = {
                    "version": VERSION,
                    "starts_from": start,
                    "taught_by": teacher if taught else None,
                    "recipe": changed,
                    "training": training,
                    "seed": seed,
                }
                yield Cell(
                    key=digest(known),
                    model=model.name,
                    layers=layers,
                    task=task.name,
                    methods=methods,
                    sparsity=float(changed.get("prune_sparsity", 0.0)),
                    seed=seed,
                    teacher=self.grid.teacher if taught else None,
                    recipe=recipe,
                    training=training,
                    starts_from=start,
                    taught_by=teacher if taught else None,
                )

    def _recipe(self, methods: str, options: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """The recipe as plain values, and its options that are not the default, but for the teacher's name."""
        given = dict(options)
        if "kd" in parts(methods):
            given["distill_teacher"] = self.grid.teacher
        sections = {
            section: {option.name: given[option.name] for option in fields(kind) if option.name in given}
            for kind, section in SECTIONS.items()
        }
        recipe, defaults = Recipe.from_dict(sections).to_dict(), Recipe().to_dict()
        changed = {
            name: value
            for section, values in recipe.items()
            for name, value in values.items()
            if value != defaults[section][name] and name != "distill_teacher"
        }
        return recipe, changed

    def _dense(self, model: Model, layers: int | None, task: Task, seed: int) -> str:
        """The key of a dense model, which is added to the plan if it is not there."""
        place = (model.name, model.path, layers, task.name, seed)
        if place in self._found:
            return self._found[place]
        training = {**self.grid.training, **model.training, **task.training, **self.grid.dense_training}
        key = digest(
            {
                "version": VERSION,
                "model": self.identities.models[model.path],
                "layers": layers,
                "task": task.name,
                "data": self.identities.data[task.name],
                "max_length": self.grid.max_length,
                "training": training,
                "attention": model.attn_implementation,
                "seed": seed,
            }
        )
        self._found[place] = key
        self.dense.setdefault(key, Dense(key, model.name, layers, task.name, seed, training))
        return key
