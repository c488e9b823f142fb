"""The example grids are valid, and each mistake in a grid is named in one line."""

from pathlib import Path
from typing import Any

import pytest

from hf_compress.study.grid.combinations import COMBINATIONS
from hf_compress.study.grid.glue import TASKS
from hf_compress.study.grid.grid import StudyGrid
from tests.study.stub import VALUES, grid

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "study").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_grids_that_come_along_can_be_read(file: Path) -> None:
    read = StudyGrid.read(file)
    assert read.name == file.stem
    assert read.methods == COMBINATIONS


def test_the_papers_grid_is_the_papers() -> None:
    read = StudyGrid.read(next(file for file in EXAMPLES if file.stem == "paper"))
    assert [task.name for task in read.tasks] == sorted(TASKS, key=[t.name for t in read.tasks].index)
    assert len(read.models) == 6 and len(read.tasks) == 8
    assert {0.4, 0.6} <= set(read.sparsities)


def test_the_eight_subsets_are_named_as_results_name_them() -> None:
    assert COMBINATIONS == ("dense", "kd", "mp", "int8", "kd+mp", "kd+int8", "mp+int8", "kd+mp+int8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sparsity": [0.6]}, "`sparsity`"),
        ({"sparsities": [0.6, 1.0]}, "1.0"),
        ({"sparsities": [0.6, 0.6]}, "twice"),
        ({"sparsities": []}, "at least one"),
        ({"seeds": [-1]}, "-1"),
        ({"seeds": [True]}, "True"),
        ({"methods": ["mp+kd"]}, "'mp+kd'"),
        ({"teacher": "huge"}, "'huge'"),
        ({"tasks": ["wnli"]}, "'wnli'"),
        ({"tasks": [{"name": "sst2", "train_rows": 0}]}, "`train_rows`"),
        ({"models": [{"name": "a", "path": "b", "layers": 0}]}, "`layers`"),
        ({"models": [{"name": "a"}]}, "`path`"),
        ({"models": [{"name": "a", "path": "b"}, {"name": "a", "path": "c"}]}, "its own name"),
        ({"training": {"learning_rat": 1}}, "`learning_rat`"),
        ({"training": {"seed": 1}}, "`seed`"),
        ({"recipe": {"prune_sparsity": 0.5}}, "`sparsities`"),
        ({"recipe": {"prune_scop": "layer"}}, "`prune_scop`"),
        ({"recipe": {"distill_alpha": [0.5, 2]}}, "`--distill_alpha`"),
        ({"recipe": {"distill_alpha": []}}, "no value"),
        ({"max_length": 100000}, "`max_length`"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as refused:
        grid(**changes)
    assert named in str(refused.value)


def test_a_missing_file_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        StudyGrid.read(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("models: [")
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        StudyGrid.read(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- models")
    with pytest.raises(ValueError, match="mapping"):
        StudyGrid.read(tmp_path / "list.yaml")


def test_a_rate_may_be_written_without_a_point(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "models: [{name: a, path: b}]\ntasks: [sst2]\ntraining: {learning_rate: 1e-4, optim: adamw_torch}\n"
    )
    assert StudyGrid.read(tmp_path / "grid.yaml").training == {"learning_rate": 1e-4, "optim": "adamw_torch"}


def test_the_grid_that_is_tested_with_is_legal() -> None:
    assert StudyGrid.from_dict(VALUES).teacher == "large"
