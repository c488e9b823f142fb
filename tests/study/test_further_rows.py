"""A task may be scored on later rows of its training split: the sharper set counts, and rows are paired with rows."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from hf_compress.report.outputs import Outputs
from hf_compress.study.analysis.findings import Findings
from hf_compress.study.analysis.measurement import standard_error
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.analysis.paired import paired
from hf_compress.study.grid.answers import Answers
from hf_compress.study.grid.grid import StudyGrid
from hf_compress.study.grid.sources import EXTRA, Sources
from hf_compress.study.report.certainty import noise
from hf_compress.study.report.certainty import paired as paired_table
from hf_compress.study.report.claims import claims
from hf_compress.study.report.plots import draw_all
from tests.study.conftest import synthetic_results

DEV, FURTHER = 200, 4000


def answered(labels: np.ndarray, accuracy: float, random: np.random.Generator) -> dict[str, Any]:
    """Answers that are right on this share of the rows."""
    wrong = random.permutation(len(labels)) >= round(accuracy * len(labels))
    answers = Answers.of(Outputs("classes", labels, np.where(wrong, 1 - labels, labels)))
    assert answers is not None
    return asdict(answers)


def lines(further: bool = True) -> list[dict[str, Any]]:
    """Simulated results whose predictions are kept. On SST-2 cells score 5 points more on the further rows."""
    random, found = np.random.default_rng(0), synthetic_results(seeds={1: 3})
    labels = {rows: random.integers(2, size=rows) for rows in (DEV, FURTHER)}
    for line in found:
        report, task = line["report"], line["cell"]["task"]
        score = round(DEV * report["compressed"]["accuracy"]) / DEV
        report["compressed"]["accuracy"], report["dataset"]["eval_rows"] = score, DEV
        line["answers"] = {"main": answered(labels[DEV], score, random)}
        if further and task == "sst2":
            scores = {"accuracy": score + 0.05}
            report["extra"] = {"rows": FURTHER, "compressed": scores, "dense": {"accuracy": 0.9}, "intervals": {}}
            line["answers"]["extra"] = answered(labels[FURTHER], score + 0.05, random)
    return found


def read(folder: Path, results: list[dict[str, Any]]) -> Findings:
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    return Findings(read_measurements(folder / "results.jsonl"))


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return read(tmp_path_factory.mktemp("further"), lines())


def test_the_further_rows_count_where_every_cell_has_them(findings: Findings) -> None:
    for o in findings.measurements:
        assert o.dev_score is not None and o.error is not None and o.dev_error is not None
        if o.task == "sst2":
            assert (o.on, o.rows, o.start, o.teacher_score) == ("extra", FURTHER, 90.0, None)
            assert o.score == o.extra_score == pytest.approx(o.dev_score + 5)
            assert o.error == o.extra_error and o.error < 0.3 * o.dev_error
        else:
            assert (o.on, o.rows, o.score, o.extra_score) == ("dev", DEV, o.dev_score, None)


def test_one_cell_without_further_rows_leaves_a_task_on_dev(tmp_path: Path) -> None:
    results = lines()
    del next(line for line in results if line["cell"]["task"] == "sst2")["report"]["extra"]
    found = read(tmp_path, results)
    assert {o.on for o in found.measurements} == {"dev"} and found.further == {}
    assert all(o.score == o.dev_score for o in found.measurements)


def test_tables_and_claims_say_which_rows_they_use(findings: Findings) -> None:
    assert findings.named_tasks == ["cola", "mrpc", "sst2 on 4,000 further rows"]
    assert "scores of sst2 (4,000) are those on further labelled rows" in claims(findings).note
    rows = {row["task"]: row for row in noise(findings).rows}
    assert (rows["sst2"]["on"], rows["cola"]["on"]) == ("further rows", "dev split")
    assert rows["sst2"]["extra_error"] < 0.3 * rows["sst2"]["dev_error"] and rows["cola"]["extra_error"] is None


def test_a_long_title_does_not_reach_the_other_plot(
    findings: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{task} on 10,000 further rows" for task in ("cola", "mnli", "qqp", "sst2", "stsb")]
    monkeypatch.setattr(Findings, "named_tasks", names)
    draw_all(findings, tmp_path)
    lines = [line.text or "" for line in ElementTree.parse(tmp_path / "figure1.svg").iterfind(".//{*}text")]
    assert all(name in " ".join(lines) for name in names)
    assert max(map(len, lines)) <= 62


def test_cells_are_paired_with_their_controls_by_rows(findings: Findings) -> None:
    found = {(one.task, *one.point): one for one in findings.paired}
    assert len(found) == 3 * 3 * 7, "every point but the controls, on every task"
    one = found["sst2", "synthetic-1", "int8", 0.0]
    assert (one.seeds, one.on, one.rows) == (3, "extra", FURTHER)
    cells = [o for o in findings.measurements if (o.task, o.model) == ("sst2", "synthetic-1")]
    mean = {name: np.mean([o.score for o in cells if o.combination == name]) for name in ("int8", "dense")}
    assert one.difference == pytest.approx(mean["int8"] - mean["dense"])
    assert one.interval[0] < one.difference < one.interval[1]
    # These predictions are independent, so the spread is known.
    share = mean["dense"] / 100
    width = 2 * 1.96 * 100 * np.sqrt(2 * share * (1 - share) / FURTHER / 3)
    assert one.interval[1] - one.interval[0] == pytest.approx(width, rel=0.1)
    alone = found["sst2", "synthetic-6", "int8", 0.0]
    assert alone.seeds == 1 and alone.interval[1] - alone.interval[0] == pytest.approx(width * 3**0.5, rel=0.15)
    assert len(paired_table(findings).rows) == len(found)


def test_results_without_predictions_are_not_paired(tmp_path: Path) -> None:
    results = lines()
    for line in results:
        if line["cell"]["methods"] == "dense" and line["cell"]["task"] == "mrpc":
            line["answers"] = {}
        if line["cell"]["methods"] == "int8" and line["cell"]["task"] == "cola":
            line["answers"]["main"]["predicted"] = line["answers"]["main"]["labels"]  # Not what gave the score.
    found = {(one.task, one.point.combination) for one in read(tmp_path, results).paired}
    assert {task for task, _ in found} == {"cola", "sst2"}
    assert ("sst2", "int8") in found and ("cola", "int8") not in found and ("cola", "kd") in found
    nothing = read(tmp_path, [{**line, "answers": {}} for line in lines()])
    assert paired(nothing.measurements) == []
    assert paired_table(nothing).markdown().startswith("No result keeps the predictions")


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_answers_come_back_from_their_text(kind: str) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 50)).astype(np.float32) if kind == "numbers" else random.integers(3, size=(2, 50))
    answers = Answers.of(Outputs(kind, *values))  # type: ignore[arg-type]
    assert answers is not None
    found = answers.outputs()
    assert np.array_equal(found.labels, values[0]) and np.array_equal(found.predicted, values[1])


def test_answers_are_a_bit_a_row() -> None:
    labels = np.random.default_rng(0).integers(2, size=10_000)
    answers = Answers.of(Outputs("classes", labels, labels))
    assert answers is not None and len(answers.predicted) < 2500


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "tokens"}, "`kind` of answers"),
        ({"rows": 0}, "`rows` of answers must be from 1"),
        ({"rows": 3}, "must have 3 bytes; got"),
        ({"labels": "%"}, "compressed by zlib, in base64"),
        ({"labels": "AAAA"}, "compressed by zlib, in base64"),
    ],
)
def test_spoilt_answers_are_refused(change: dict[str, Any], why: str) -> None:
    labels = np.array([0, 1])
    answers = Answers.of(Outputs("classes", labels, labels))
    assert answers is not None
    with pytest.raises(ValueError, match=why):
        Answers(**asdict(answers) | change).outputs()


def test_the_error_of_a_score_is_half_its_interval_over_two() -> None:
    report = {"intervals": {"pearson": {"low": 0.80, "high": 0.88}}}
    assert standard_error(report, "pearson", 84.0, 100) == pytest.approx(8 / 2 / 1.96, rel=1e-3)
    assert standard_error({}, "accuracy", 90.0, 872) == pytest.approx(100 * (0.9 * 0.1 / 872) ** 0.5)
    assert standard_error({}, "pearson", 84.0, 100) is None


def test_further_rows_need_rows_that_are_left() -> None:
    values = {"models": [{"name": "tiny", "path": "tiny"}]}
    with pytest.raises(ValueError, match="`eval_extra` of the task sst2 needs `train_rows`"):
        StudyGrid.from_dict(values | {"tasks": [{"name": "sst2", "eval_extra": 5}]})
    with pytest.raises(ValueError, match="`eval_extra` of the task sst2 must be a whole number, at least 1; got 0"):
        StudyGrid.from_dict(values | {"tasks": [{"name": "sst2", "train_rows": 9, "eval_extra": 0}]})


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Sources]:
    """A function that returns the sources of a task with six training rows, of which the last two are the first."""
    texts = ["the film was warm", "the song was cold", "a dull story", "a fresh story", "the film was warm", "a story"]
    rows = Dataset.from_dict({"sentence": texts, "label": [1, 0, 0, 1, 1, 0]})
    rows = rows.cast_column("label", ClassLabel(names=["negative", "positive"]))
    loaded = DatasetDict({"train": rows, "validation": rows.select([0])})
    monkeypatch.setattr(Sources, "_loaded", lambda *_: loaded)

    def sources(task: dict[str, Any]) -> Sources:
        values = {"models": [{"name": "tiny", "path": "tiny"}], "tasks": [{"name": "sst2"} | task]}
        return Sources(StudyGrid.from_dict(values), str(tmp_path))

    return sources


def test_further_rows_follow_the_training_rows_and_differ(
    glue: Callable[[dict[str, Any]], Sources], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    sources = glue({"train_rows": 2, "eval_extra": 4})
    task = sources.task("sst2")
    assert sources.rows(task)[EXTRA]["sentence"][:] == [
        "a dull story",
        "a fresh story",
        "the film was warm",
        "a story",
    ]
    made, _ = sources.encoded(task, tiny_tokenizer, "tiny")
    assert made[EXTRA]["label"][:] == [0, 1, 0], "one of them is a training row"
    plain = glue({"train_rows": 2})
    assert EXTRA not in plain.rows(plain.task("sst2"))
    too_many = glue({"train_rows": 2, "eval_extra": 5})
    with pytest.raises(ValueError, match="must be at most 4, the rows .* behind `train_rows`; got 5"):
        too_many.rows(too_many.task("sst2"))
