"""`verify` finds what is false about a published model, measures its score again, and never runs its code."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_compress.report.card import save_card
from hf_compress.report.comparing import with_intervals
from hf_compress.report.outputs import part_of
from hf_compress.report.predictions import PREDICTIONS_NAME
from hf_compress.report.report import Report
from hf_compress.report.rescoring import known_metrics, scores_of, stored_outputs
from hf_compress.verify import Data, Scored, Verification, score_folder, verify_folder
from hf_compress.verify.comparing import check_score
from hf_compress_cli import app
from tests.hub.local import LocalHub
from tests.hub.seeds import sentences
from tests.verify.conftest import ROWS, Made


def verdicts(verification: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in verification.checks if check.verdict != "true"}


def details(verification: Verification, name: str) -> str:
    return " ".join(next(check.details for check in verification.checks if check.name == name))


# What is said of the scores where nobody can tell which data they are from.
UNCHECKED = dict.fromkeys(("score", "score on further rows"), "cannot be checked")


@pytest.fixture(scope="module")
def verified(made: Made) -> Verification:
    return verify_folder(made.folder, Data(str(made.data)))


def test_everything_about_a_finished_folder_is_true(verified: Verification) -> None:
    assert verdicts(verified) == {}
    assert (verified.verdict, verified.status) == ("true", 0)
    names = [check.name for check in verified.checks]
    assert names[:2] == ["report", "card"] and names[-3:] == ["format onnx", "score", "score on further rows"]


def test_the_score_is_that_of_the_report_row_by_row(verified: Verification, made: Made) -> None:
    found = verified.remeasured
    assert found is not None and (found.rows, found.agreement) == (ROWS, 1.0)
    assert found.measured["accuracy"] == Report.load(made.folder).compressed["accuracy"] > 0.8
    assert details(verified, "score").endswith("100.00 % of the predictions on 24 rows are those of the report.")


def test_both_evaluation_sets_are_scored_again(verified: Verification, made: Made) -> None:
    found, extra = verified.remeasured_extra, Report.load(made.folder).extra
    assert found is not None and extra is not None and extra.rows > 2
    assert (found.data, found.rows, found.agreement) == (f"{made.data} train", extra.rows, 1.0)
    assert found.measured["accuracy"] == pytest.approx(extra.compressed["accuracy"])


@pytest.mark.parametrize(("settings", "verdict"), [({}, "differs"), ({"bf16": True}, "true")])
def test_a_score_in_16_bits_may_differ_in_more_rows(made: Made, settings: dict[str, bool], verdict: str) -> None:
    report = replace(Report.load(made.folder), hyperparameters=settings)
    _, stored = stored_outputs(made.folder, report)
    times = np.arange(50 * ROWS) % ROWS
    kept = part_of(stored["compressed"], times.tolist())
    again = replace(kept, predicted=np.where(np.arange(50 * ROWS) % 50 == 0, 1 - kept.predicted, kept.predicted))
    scored = Scored("films", list(range(50 * ROWS)), again, {"accuracy": 0.9})
    check, _ = check_score(report, scored, kept, {row: row for row in scored.rows})
    assert check.verdict == verdict and "98.00 % of the predictions" in " ".join(check.details)


@pytest.mark.slow
def test_the_first_rows_are_compared_with_the_same_rows(made: Made) -> None:
    found = verify_folder(made.folder, Data(str(made.data), rows=7)).remeasured
    _, stored = stored_outputs(made.folder, Report.load(made.folder))
    right = (stored["compressed"].labels == stored["compressed"].predicted)[:7]
    assert found is not None and found.rows == 7
    assert found.reported["accuracy"] == found.measured["accuracy"] == pytest.approx(right.mean())


def test_every_format_is_scored_without_the_script(made: Made) -> None:
    report = Report.load(made.folder)
    scored = score_folder(made.folder, Data(str(made.data)), format="onnx")
    assert scored.scores == pytest.approx(report.formats["onnx"].scores)
    with pytest.raises(ValueError, match="does not hold the format `openvino`"):
        score_folder(made.folder, Data(str(made.data)), format="openvino")


def test_without_rows_the_score_cannot_be_checked(made: Made) -> None:
    found = verify_folder(made.folder)
    assert (verdicts(found), found.status) == (UNCHECKED, 2)
    assert "not a dataset of the Hub. Name one with `--dataset`" in details(found, "score")


@pytest.mark.slow
def test_nothing_is_written_into_the_folder(folder: Path, made: Made) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}
    verify_folder(folder, Data(str(made.data), rows=2))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]} == before


def seal(folder: Path, **changes: Any) -> None:
    """Write report and card as if the program had measured `changes`."""
    replace(Report.load(folder), **changes).save(folder)
    save_card(folder)


def test_a_score_typed_into_the_report_is_found(folder: Path) -> None:
    report = Report.load(folder)
    seal(folder, compressed=report.compressed | {"accuracy": 0.999})
    found = verify_folder(folder)
    assert verdicts(found)["scores"] == "differs" and found.status == 1
    assert "give `accuracy`" in details(found, "scores") and "the report 0.999." in details(found, "scores")


@pytest.mark.slow
def test_an_interval_typed_into_the_report_is_found(folder: Path) -> None:
    report = Report.load(folder)
    narrow = replace(report.intervals["accuracy"], low=report.compressed["accuracy"])
    seal(folder, intervals=report.intervals | {"accuracy": narrow})
    assert "The predictions give the interval of `accuracy`" in details(verify_folder(folder), "scores")


def test_predictions_that_were_edited_too_are_measured(folder: Path, made: Made) -> None:
    """The whole folder agrees with itself: only the model on the data can tell."""
    table = pq.read_table(folder / PREDICTIONS_NAME)
    index = table.column_names.index("compressed")
    flipped = pa.array(1 - table.column("label").to_numpy())
    table = table.set_column(index, "compressed", flipped)
    logits = table.column_names.index("compressed_logits")
    pq.write_table(table.remove_column(logits), folder / PREDICTIONS_NAME)
    report = Report.load(folder)
    _, stored = stored_outputs(folder, report)
    typed = replace(report, compressed={"accuracy": 0.0}, formats={}, max_drop=None, verdict=None)
    typed = with_intervals(typed, stored["compressed"], None, {})
    assert scores_of(stored["compressed"], known_metrics(typed, stored), typed) == {"accuracy": 0.0}
    shutil.rmtree(folder / "onnx")
    seal(folder, **{name: getattr(typed, name) for name in ("compressed", "formats", "intervals", "without_interval")})
    found = verify_folder(folder, Data(str(made.data)))
    assert verdicts(found) == {"score": "differs"}
    assert "the report says 0.0000, so it is" in details(found, "score")
    assert "outside the 95 % interval of the reported one" in details(found, "score")


@pytest.mark.slow
def test_other_weights_of_the_same_length_do_not_run_alike(folder: Path, made: Made) -> None:
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.neg_()
    model.save_pretrained(folder)
    seal(folder)
    found = verdicts(verify_folder(folder, Data(str(made.data))))
    assert (found["format onnx"], found["score"]) == ("differs", "differs")


@pytest.mark.slow
def test_a_card_edited_between_our_marks_is_found(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text(f"{card}\nMy own words.\n", "utf-8")
    assert verdicts(verify_folder(folder)) == UNCHECKED
    score = f"{100 * Report.load(folder).compressed['accuracy']:.2f}"
    assert score in card
    (folder / "README.md").write_text(card.replace(score, "99.99"), "utf-8")
    assert verdicts(verify_folder(folder))["card"] == "differs"


def test_results_for_the_hub_that_were_edited_are_found(folder: Path) -> None:
    (folder / ".eval_results").mkdir(exist_ok=True)
    (folder / ".eval_results" / "hf_compress.yaml").write_text("- value: 99.9\n")
    assert ".eval_results/hf_compress.yaml" in details(verify_folder(folder), "card")


@pytest.mark.slow
def test_other_data_under_the_same_name_are_found(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "films"
    other.mkdir()
    data = sentences(ROWS, 1)
    data.map(lambda row: {"label": 1 - row["label"]}).to_parquet(other / "validation.parquet")
    found = verify_folder(made.folder, Data(str(other)))
    assert verdicts(found) == UNCHECKED | {"score": "differs"}
    assert "outside the 95 % interval" in details(found, "score")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Data("no/such-data"), "no/such-data could not be loaded"),
        (Data(split="test"), "could not be loaded"),
        (Data(config="none"), "could not be loaded"),
    ],
)
def test_data_that_cannot_be_loaded_is_a_sentence(made: Made, data: Data, sentence: str) -> None:
    data = data if data.dataset else replace(data, dataset=str(made.data))
    found = verify_folder(made.folder, data)
    assert verdicts(found)["score"] == "cannot be checked"  # Further rows may be of another split.
    assert sentence in details(found, "score")


@pytest.mark.slow
def test_data_without_the_columns_is_a_sentence(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "films"
    other.mkdir()
    sentences(4, 1).rename_column("sentence", "text").to_parquet(other / "validation.parquet")
    found = verify_folder(made.folder, Data(str(other)))
    assert "has no column sentence" in details(found, "score")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"schema": 1}', "[" * 100_000, '{"a": ' * 50_000, "\xff", "null", " " * 17_000_000],
    ids=range(9),
)
def test_a_malformed_report_is_a_sentence(folder: Path, content: str) -> None:
    (folder / "report.json").write_text(content, "latin-1")
    found = verify_folder(folder)
    assert (verdicts(found), found.status) == ({"report": "differs"}, 1)
    assert "report.json" in details(found, "report") or "schema" in details(found, "report")


@pytest.mark.parametrize("value", [None, 7, -1.5, "text", [], {}, [[]], {"a": []}, True, 1e308, 10**400])
def test_no_value_in_a_report_is_a_traceback(folder: Path, value: object) -> None:
    """Each field of the report gets the value, in turn; a sentence says so, or the checks go on."""
    values = json.loads((folder / "report.json").read_text("utf-8"))
    for name in values:
        (folder / "report.json").write_text(json.dumps(values | {name: value}))
        try:
            Report.load(folder)
        except ValueError:
            continue


def test_a_folder_without_a_report_claims_nothing(tmp_path: Path) -> None:
    found = verify_folder(tmp_path)
    assert (verdicts(found), found.status) == ({"report": "cannot be checked"}, 2)


@pytest.mark.parametrize("name", ["report.json", "README.md", "model.safetensors", "onnx", ".eval_results"])
def test_links_to_elsewhere_are_not_followed(folder: Path, made: Made, name: str) -> None:
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(made.folder / name)
    found = verify_folder(folder)
    assert ([check.name for check in found.checks], found.status) == (["files"], 1)
    assert f"`{name}` is a link to something outside the folder" in details(found, "files")


def test_a_pipe_in_place_of_a_file_does_not_block(folder: Path) -> None:
    (folder / "recipe.json").unlink()
    os.mkfifo(folder / "recipe.json")
    assert "no ordinary file" in details(verify_folder(folder), "files")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights/data.pkl"])
def test_nothing_is_unpickled(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({"x": Bomb(tmp_path / "exploded")}))
    (folder / "model.safetensors").unlink()
    save_card(folder)
    found = verify_folder(folder)
    assert found.status == 1 and not (tmp_path / "exploded").exists()
    assert "may be loaded in place of the packed file" in details(found, "score")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("tokenizer.json", "score"),
        ("onnx/model_quantized.onnx", "format onnx"),
        ("config.json", "model"),
        ("model.safetensors", "size"),
        (PREDICTIONS_NAME, "scores"),
    ],
)
def test_a_sealed_file_of_nonsense_is_a_sentence(folder: Path, made: Made, name: str, check: str) -> None:
    content = np.random.default_rng(0).bytes((folder / name).stat().st_size)
    (folder / name).write_bytes(content)
    save_card(folder)
    found = verify_folder(folder, Data(str(made.data), rows=3))
    assert check in verdicts(found)
    assert details(found, check)


@pytest.mark.slow
def test_a_repository_of_the_hub_is_verified_by_its_id(local_hub: LocalHub, made: Made, tmp_path: Path) -> None:
    foreign = tmp_path / "published"
    shutil.copytree(made.folder, foreign)
    (foreign / "notes.txt").write_text("An author's own file.")
    local_hub.add("me/small", foreign)
    found = verify_folder("me/small", Data(str(made.data), rows=5))
    assert (verdicts(found), found.status) == ({}, 0)


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--dataset", "DATA", "--rows", "5"], 0, "true: the report of this model holds"),
        ([], 2, "cannot be checked: nothing differs, but the score was not measured again."),
    ],
)
def test_the_command_ends_with_its_verdict(made: Made, arguments: list[str], status: int, line: str) -> None:
    arguments = [str(made.data) if word == "DATA" else word for word in arguments]
    result = CliRunner().invoke(app, ["verify", str(made.folder), *arguments])
    assert result.exit_code == status, result.output
    assert result.output.splitlines()[-1].startswith(line)
    assert "files                     true" in result.output
    assert "Loading" not in result.output, "libraries say nothing"


def test_the_command_prints_a_document_for_programs(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    values = json.loads(result.stdout)
    assert (result.exit_code, values["verdict"], values["status"]) == (1, "differs", 1)
    assert values["schema"] == "hf_compress.verification/1"
    assert {check["name"]: check["verdict"] for check in values["checks"]}["files"] == "differs"


def test_no_such_repository_is_one_sentence_and_status_2(local_hub: LocalHub) -> None:
    result = CliRunner().invoke(app, ["verify", "me/nothing"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is no path me/nothing here") and len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_control_characters_of_a_report_stay_out_of_the_terminal(folder: Path) -> None:
    seal(folder, model_class="Bert\x1b[2J\nreport   true")
    result = CliRunner().invoke(app, ["verify", str(folder)])
    assert "\x1b" not in result.output and "\nreport   true" not in result.output
