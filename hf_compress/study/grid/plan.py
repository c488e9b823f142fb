"""The plan of a study: its cells, the dense models they start from, and the keys that identify both."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hf_compress.recipe import ARGUMENTS, Recipe
from hf_compress.report import records
from hf_compress.study.grid.combinations import methods_in
from hf_compress.study.grid.grid import METHOD_ARGUMENTS, ModelEntry, StudyGrid, TaskEntry

# Version of the computation, part of every key. Raise it by hand when a change makes the same description train
# differently. The version of the package or the commit would invalidate all results with each release, and most
# releases change none. Each report names the versions it was made with.
VERSION = 1
RECIPE_SECTIONS = {
    kind: section
    for kind, section in zip(ARGUMENTS, Recipe.__dataclass_fields__, strict=True)
    if kind in METHOD_ARGUMENTS.values()
}


@dataclass(frozen=True)
class DenseModel:
    """A model fine-tuned on a task without any method. Cells start from it, and it can teach them.

    Example:
        >>> from hf_compress.study.grid import DenseModel
        >>> DenseModel("a1b2", "tiny", None, "sst2", seed=1, training={"num_train_epochs": 3}).task
        'sst2'
    """

    key: str
    model: str
    layers: int | None
    task: str
    seed: int
    training: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a recipe applied to a dense model.

    Args:
        key: identifies the cell; the same for the same weights, data, options and seed.
        model: name of the dense model's architecture.
        layers: number of layers it was cut to; None for all.
        task: the GLUE task.
        methods: one of `COMBINATIONS`.
        sparsity: 0 without pruning.
        seed: seed of the training.
        teacher: name of a model, "self", or None without distillation.
        recipe: as `Recipe.to_dict` returns it, with the teacher's name in the grid.
        training: training arguments.
        starts_from: key of the dense model that training starts from.
        taught_by: key of the dense model that teaches, or None.

    Example:
        >>> from hf_compress.study.grid import Cell, Identities, StudyGrid, make_plan
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> plan = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> cell = next(cell for cell in plan.cells.values() if cell.methods == "mp")
        >>> cell.sparsity, cell.teacher, cell.needs == tuple(plan.dense)
        (0.6, None, True)
        >>> Cell.from_dict(cell.to_dict()) == cell
        True
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
        """Keys of the dense models that must exist before this cell can run."""
        return (
            (self.starts_from,) if self.taught_by in (None, self.starts_from) else (self.starts_from, self.taught_by)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """Return the cell from what `to_dict` returned.

        Raises:
            ValueError: a field is unknown or missing, or has the wrong type. The message names it.
        """
        cell: Cell = records.decode(cls, dict(values), "cell")
        return cell


@dataclass(frozen=True)
class Identities:
    """Digests of models by path and of data by task. They depend on contents, not on names or places.

    Example:
        >>> from hf_compress.study.grid import Identities
        >>> Identities(models={"owner/tiny": "0f3a"}, data={"sst2": "77c1"}).models["owner/tiny"]
        '0f3a'
    """

    models: Mapping[str, str]
    data: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All nodes of a study by key: dense models, and cells in the order to run them.

    Example:
        >>> from hf_compress.study.grid import Identities, StudyGrid, make_plan
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> plan = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> [cell.methods for cell in plan.cells.values()]
        ['dense', 'kd', 'mp', 'int8', 'kd+mp', 'kd+int8', 'mp+int8', 'kd+mp+int8']
        >>> [model.model for model in plan.dense.values()]
        ['tiny']
    """

    dense: Mapping[str, DenseModel]
    cells: Mapping[str, Cell]


def make_plan(grid: StudyGrid, identities: Identities) -> Plan:
    """Return the nodes of a grid. Cells with the same key are one cell, for example where an axis does not apply.

    Example:
        >>> from hf_compress.study.grid import Identities, StudyGrid, make_plan
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> whole = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> len(whole.cells), len(whole.dense)
        (8, 1)
    """
    planner = _Planner(grid, identities)
    cells: dict[str, Cell] = {}
    for cell in planner.cells():
        cells.setdefault(cell.key, cell)
    return Plan(planner.dense, cells)


def digest(values: Any) -> str:
    """Return 20 hexadecimal digits that identify JSON values.

    Raises:
        ValueError: the values hold NaN or infinity.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class _Planner:
    def __init__(self, grid: StudyGrid, identities: Identities) -> None:
        self.grid, self.identities = grid, identities
        self.dense: dict[str, DenseModel] = {}
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
        # Seed by seed: a study that stops early then has complete grids for its first seeds.
        for _, model, layers, task, seed in sorted(starts, key=lambda start: start[0]):
            start = self._dense(model, layers, task, seed)
            taught_by = start if teacher is None else self._dense(teacher, None, task, self.grid.seeds[0])
            yield from self._cells(model, layers, task, seed, start, taught_by)

    def _teacher(self) -> ModelEntry | None:
        """Return the model that teaches all cells, with all its layers; None if each dense model teaches itself.

        Training arguments of an entry apply to the sizes that the entry lists.
        """
        named = [model for model in self.grid.models if model.name == self.grid.teacher]
        whole = [model for model in named if None in model.layers]
        return next(iter([*whole, *(replace(model, training={}) for model in named)]), None)

    def _cells(
        self, model: ModelEntry, layers: int | None, task: TaskEntry, seed: int, start: str, teacher: str
    ) -> Iterator[Cell]:
        training = {**self.grid.training, **model.training, **task.training}
        for methods, recipes in self._recipes.items():
            taught = "kd" in methods_in(methods)
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
        """Return the recipe as plain values, and its options that differ from the default, but for the teacher."""
        given = dict(options)
        if "kd" in methods_in(methods):
            given["distill_teacher"] = self.grid.teacher
        sections = {
            section: {option.name: given[option.name] for option in fields(kind) if option.name in given}
            for kind, section in RECIPE_SECTIONS.items()
        }
        recipe, defaults = Recipe.from_dict(sections).to_dict(), Recipe().to_dict()
        changed = {
            name: value
            for section, values in recipe.items()
            for name, value in values.items()
            if value != defaults[section][name] and name != "distill_teacher"
        }
        return recipe, changed

    def _dense(self, model: ModelEntry, layers: int | None, task: TaskEntry, seed: int) -> str:
        """Return the key of a dense model, and add it to the plan if it is new."""
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
        self.dense.setdefault(key, DenseModel(key, model.name, layers, task.name, seed, training))
        return key
