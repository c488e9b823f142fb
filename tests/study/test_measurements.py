"""Results are read as measurements, or refused with an error that names the problem."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_compress.study.analysis.measurement import FIELDS, to_row
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.run.results import read_results

Make = Callable[..., Path]


def test_every_line_of_a_compressed_file_is_a_measurement(make_results: Make) -> None:
    measurements = read_measurements(make_results(seeds={1: 3}))
    assert len(measurements) == 3 * (1 + 1 + 3) * 8
    first = measurements[0]
    assert (first.family, first.model, first.layers, first.combination) == ("synthetic", "synthetic-1", 1, "dense")
    assert first.analytic_bytes == 4 * 13_900_000 and first.dense_bytes == 4 * 13_900_000 + 10_000
    assert 70 < first.score < 90, "points of a hundred"
    assert first.start is not None and first.teacher_score is None


def test_a_plain_file_and_a_folder_of_files_read_the_same(make_results: Make) -> None:
    packed, plain = make_results(), make_results("plain.jsonl")
    assert read_measurements(packed) == read_measurements(plain) == read_measurements(plain.parent), (
        "twice the same is once"
    )
    assert read_measurements([packed, plain]) == read_measurements(packed)


def test_a_study_folder_reads_like_its_collected_file(make_results: Make, tmp_path: Path) -> None:
    plain = make_results("plain.jsonl")
    study = tmp_path / "study"
    for line in map(json.loads, plain.read_text().splitlines()):
        folder = study / line["cell"]["key"]
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(line.pop("report")))
        (folder / "cell.json").write_text(json.dumps(line))
    (study / "unfinished").mkdir()
    (study / "unfinished" / "cell.json").write_text("{}")
    assert read_measurements(study) == read_measurements(plain)


def test_the_table_of_cells_reads_back_as_measurements(make_results: Make, tmp_path: Path) -> None:
    measurements = read_measurements(make_results())
    table = tmp_path / "cells.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(to_row(measurement) for measurement in measurements)
    assert read_measurements(table) == measurements


def test_the_papers_metric_is_accuracy_where_it_exists(make_results: Make) -> None:
    results = make_results(tasks=("cola",))
    assert {measurement.metric for measurement in read_measurements(results)} == {"accuracy"}
    assert {measurement.metric for measurement in read_measurements(results, "main")} == {"matthews_correlation"}
    with pytest.raises(ValueError, match="`--metric` must be one of paper, main; got 'best'"):
        read_measurements(results, "best")


def _spoilt(change: Callable[[dict[str, Any]], object]) -> Callable[[Make], Path]:
    def spoil(make: Make) -> Path:
        file = make("spoilt.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        change(lines[3])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return file

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoilt(lambda line: line.pop("report")), r"spoilt.jsonl:4 lacks `report`"),
        (_spoilt(lambda line: line["cell"].update(methods="qat")), r":4 `methods` must be one of dense, .*got 'qat'"),
        (_spoilt(lambda line: line["cell"].update(sparsity=0.5)), r"`sparsity` must be in \(0, 1\) with `mp` and 0"),
        (_spoilt(lambda line: line["report"]["compressed"].update(accuracy="good")), "`accuracy` must be a number"),
        (_spoilt(lambda line: line["report"]["size"].pop("packed_bytes")), "lacks `packed_bytes`"),
        (_spoilt(lambda line: line["cell"].update(seed="one")), "`seed` must be of type int; got 'one'"),
        (
            _spoilt(lambda line: line["cell"].update(methods="dense", key="other")),
            "Two results are of the same cell .*other",
        ),
    ],
)
def test_an_invalid_result_is_refused_by_line_and_name(
    make_results: Make, spoil: Callable[[Make], Path], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_measurements(spoil(make_results))


def test_a_model_that_diverged_scores_nothing(make_results: Make) -> None:
    spoil = _spoilt(lambda line: line["report"]["compressed"].update(accuracy="nan"))
    assert [measurement.score for measurement in read_measurements(spoil(make_results))].count(0.0) == 1


def test_a_missing_or_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.jsonl does not exist"):
        read_measurements(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="holds no results. Run `hf-compress study`"):
        read_measurements(tmp_path)
    (tmp_path / "results.txt").write_text("")
    with pytest.raises(ValueError, match="must end in .jsonl, .jsonl.zst, .csv"):
        read_measurements(tmp_path / "results.txt")
    (tmp_path / "results.jsonl.zst").write_text("plain")
    with pytest.raises(ValueError, match="is not compressed by zstd"):
        read_measurements(tmp_path / "results.jsonl.zst")
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="broken.jsonl:1 is not JSON"):
        read_measurements(tmp_path / "broken.jsonl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoilt(lambda line: line["report"]["size"].update(packed_bytes=0)), "`packed_bytes` must be .*got 0"),
        (_spoilt(lambda line: line["report"]["size"].update(analytic_bytes=-5)), "`analytic_bytes` must be"),
        (_spoilt(lambda line: line["report"]["dataset"].update(eval_rows=0)), "`rows` must be at least 1 .*got 0"),
        (_spoilt(lambda line: line.update(seconds=float("nan"))), "`seconds` must be a finite number"),
        (_spoilt(lambda line: line["cell"].update(sparsity=float("nan"))), "`sparsity` must be"),
        (_spoilt(lambda line: line["cell"].update(layers="six")), "`layers` must be of type int; got 'six'"),
        (_spoilt(lambda line: line["cell"].update(teacher=["x"])), "`teacher` must be of type str"),
        (_spoilt(lambda line: line["report"].update(dense=[1])), "`dense` must be of type dict"),
        (_spoilt(lambda line: line["report"]["size"].update(packed_bytes=10**400)), "`packed_bytes` must be"),
        (_spoilt(lambda line: line["report"]["compressed"].update(accuracy=10**400)), "`accuracy` must be a number"),
    ],
)  # fmt: skip
def test_numbers_that_no_study_has_are_refused(
    make_results: Make, spoil: Callable[[Make], Path], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_measurements(spoil(make_results))


def test_a_nan_in_a_table_of_cells_is_refused(make_results: Make, tmp_path: Path) -> None:
    row = to_row(read_measurements(make_results())[0])
    for name, value in (("score", "nan"), ("seconds", "inf"), ("start", "nan"), ("packed_bytes", "1e400")):
        with (tmp_path / "cells.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerow(row | {name: value})
        with pytest.raises(ValueError, match=f"`{name}` must be a"):
            read_measurements(tmp_path / "cells.csv")


def test_a_score_of_nan_in_json_is_that_of_a_diverged_model(make_results: Make) -> None:
    spoil = _spoilt(lambda line: line["report"]["compressed"].update(accuracy=float("nan")))
    assert [measurement.score for measurement in read_measurements(spoil(make_results))].count(0.0) == 1


@pytest.mark.parametrize("name", ["cut.jsonl.zst", "cut.jsonl", "bytes.jsonl", "folder.jsonl", "deep.jsonl"])
def test_a_cut_or_edited_file_of_results_is_refused(make_results: Make, tmp_path: Path, name: str) -> None:
    whole = make_results(f"whole{name[name.index('.') :]}").read_bytes()
    file = tmp_path / name
    if name.startswith("folder"):
        file.mkdir()
    else:
        deep = b"[" * 100_000
        file.write_bytes({"cut": whole[:-20], "bytes": b"\xff\xfe" + whole, "deep": deep}[name.partition(".")[0]])
    with pytest.raises(ValueError, match=r"cut\.|bytes\.|folder\.|deep\."):
        read_measurements(file)
    with pytest.raises(ValueError, match=r"cut\.|bytes\.|folder\.|deep\."):
        read_results(file)
