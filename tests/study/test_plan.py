"""The cells of a grid: what they share, and what changes their keys."""

import dataclasses
import json
import time
from collections import Counter
from typing import Any

import pytest

from hf_compress.recipe import Recipe
from hf_compress.study.grid.combinations import COMBINATIONS
from hf_compress.study.grid.plan import Cell, make_plan
from hf_compress.study.run.program import chosen_cells
from tests.study.stub import grid, identities, planned


def test_every_combination_has_a_cell() -> None:
    cells = planned(seeds=[0, 1], sparsities=[0.4, 0.6]).cells.values()
    # Three sizes, two tasks, two seeds; four subsets prune, at two sparsities each.
    assert len(cells) == 3 * 2 * 2 * (4 + 4 * 2)
    assert Counter(cell.methods for cell in cells) == {
        methods: 12 * (2 if "mp" in methods else 1) for methods in COMBINATIONS
    }
    assert {cell.sparsity for cell in cells if "mp" not in cell.methods} == {0.0}


def test_cells_share_their_dense_models_and_teachers() -> None:
    whole = planned()
    assert len(whole.dense) == 3 * 2
    for cell in whole.cells.values():
        start = whole.dense[cell.starts_from]
        assert (start.model, start.layers, start.task, start.seed) == (cell.model, cell.layers, cell.task, cell.seed)
        if "kd" in cell.methods:
            assert cell.teacher == "large" and cell.taught_by is not None
            teacher = whole.dense[cell.taught_by]
            assert (teacher.model, teacher.layers, teacher.task) == ("large", None, cell.task)
        else:
            assert cell.teacher is None and cell.taught_by is None


def test_a_dense_model_teaches_itself_if_no_other_is_named() -> None:
    for cell in planned(teacher="self").cells.values():
        assert cell.taught_by == (cell.starts_from if "kd" in cell.methods else None)
        assert cell.needs == (cell.starts_from,)


def test_a_cell_survives_json() -> None:
    for cell in planned().cells.values():
        assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell
        assert Recipe.from_dict(cell.recipe).to_dict() == cell.recipe


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"num_train_epochs": 3}},
        {"max_length": 64},
        {"dense_training": {"num_train_epochs": 1}},
        {"seeds": [1]},
        {"tasks": [{"name": "sst2", "training": {"learning_rate": 1e-3}}]},
    ],
)
def test_what_changes_a_result_changes_the_key(changes: dict[str, Any]) -> None:
    assert not planned().cells.keys() & planned(**{"tasks": ["sst2"]} | changes).cells.keys()


def test_other_weights_and_other_data_are_other_cells() -> None:
    before, of = planned(tasks=["sst2"]), grid(tasks=["sst2"])
    known = identities(of)
    models = dataclasses.replace(known, models=dict(known.models) | {"owner/large": "changed"})
    data = dataclasses.replace(known, data={"sst2": "changed"})
    assert not before.cells.keys() & make_plan(of, data).cells.keys()
    kept = {before.cells[key].methods for key in before.cells.keys() & make_plan(of, models).cells.keys()}
    assert kept == {
        "dense",
        "mp",
        "int8",
        "mp+int8",
    }  # Cells of the smaller models. Cells that the large one teaches are new.


def test_names_places_and_defaults_do_not_change_the_key() -> None:
    renamed = [{"name": "s", "path": "owner/small", "layers": [1, 2]}, {"name": "l", "path": "owner/large"}]
    assert planned().cells.keys() == planned(models=renamed, teacher="l").cells.keys()
    assert planned().cells.keys() == planned(recipe={"distill_alpha": 0.9, "prune_scope": "layer"}).cells.keys()


def test_the_keys_of_results_that_exist_stay_as_they_are() -> None:
    """A change on purpose must raise `plan.VERSION`; all results of all studies are then made again."""
    cells = planned(tasks=["sst2"]).cells.values()
    first = next(cell for cell in cells if cell.methods == "kd+mp+int8")
    assert first.key == "0a407645a484e8dc0f00"


def test_a_list_of_recipe_values_is_one_more_axis() -> None:
    cells = planned(recipe={"distill_temperature": [1.0, 4.0]}, tasks=["sst2"]).cells.values()
    counts = Counter(cell.methods for cell in cells)
    assert counts == {methods: 3 * (2 if "kd" in methods else 1) for methods in COMBINATIONS}


def test_a_models_own_seeds_go_before_those_of_the_grid() -> None:
    models = [{"name": "large", "path": "p"}, {"name": "large", "path": "p", "layers": 1, "seeds": [3, 4]}]
    cells = planned(models=models, seeds=[0]).cells.values()
    assert {(cell.layers, cell.seed) for cell in cells} == {(None, 0), (1, 3), (1, 4)}


def test_parts_are_the_whole_and_no_cell_is_in_two() -> None:
    whole = planned(seeds=[0, 1, 2])
    parts = [chosen_cells(whole, f"{number}/4") for number in range(1, 5)]
    assert sorted(key for part in parts for key in part) == sorted(whole.cells)
    assert max(map(len, parts)) - min(map(len, parts)) <= 8
    starts = [{whole.cells[key].starts_from for key in part} for part in parts]
    assert sum(map(len, starts)) == len(set.union(*starts))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_does_not_exist_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="--cells"):
        chosen_cells(planned(), part)


def test_ten_thousand_cells_are_planned_within_five_seconds() -> None:
    start = time.process_time()
    whole = planned(
        seeds=list(range(44)), sparsities=[0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95], tasks=["sst2", "mrpc"]
    )
    assert len(whole.cells) >= 9_500
    assert time.process_time() - start < 5
