"""What can be wrong with a folder is found from its files alone, and said: each case is one way to tamper with it.

A folder that is *sealed* again has new hashes in report.json, as if the program had written it.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_compress.checkpoint.reader import READER_NAME
from hf_compress.release import __version__
from hf_compress.report.agreement import check_folder
from hf_compress.report.card import save_card
from hf_compress.report.report import Report
from tests.verify.conftest import Made


def differing(folder: Path) -> dict[str, str]:
    checks = check_folder(folder, Report.load(folder))
    assert {check.verdict for check in checks} <= {"true", "differs"}
    return {check.name: " ".join(check.details) for check in checks if check.verdict == "differs"}


def zero_a_layer(folder: Path) -> None:
    """Zero a weight and pack the model again, with the checksums and the seal that belong to it."""
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.zero_()
    model.save_pretrained(folder)


def edit_report(folder: Path, **changes: Any) -> None:
    replace(Report.load(folder), **changes).save(folder)


def test_a_finished_folder_agrees_with_its_report(made: Made) -> None:
    assert differing(made.folder) == {}


@pytest.mark.parametrize("sealed", [False, True])
def test_zeroed_weights_are_found_by_their_zeros(folder: Path, sealed: bool) -> None:
    zero_a_layer(folder)
    if sealed:
        save_card(folder)
    found = differing(folder)
    assert ("files" in found) != sealed
    assert re.search(
        r"100.00 % of `bert.encoder.layer.0.output.dense` are zero, the report says \d\d\.", found["sparsity"]
    )
    assert "packed_bytes is" in found["size"]


@pytest.mark.parametrize(
    ("change", "name", "sentence"),
    [
        (
            lambda path: (path / "onnx/model_quantized.onnx").write_bytes(b"x"),
            "formats",
            "The format `onnx` has 1 bytes, the report says",
        ),
        (
            lambda path: shutil.rmtree(path / "onnx"),
            "formats",
            "The report lists the format `onnx`, but `onnx/model_quantized.onnx` is missing.",
        ),
        (lambda path: (path / "recipe.json").write_text("{}"), "recipe", "`recipe.json` says `prune_sparsity` = 0.0,"),
        (lambda path: (path / "recipe.json").write_text(""), "recipe", "recipe.json is not a recipe"),
        (lambda path: (path / "recipe.json").write_text("[1]"), "recipe", "A recipe must be a mapping"),
        (lambda path: (path / "recipe.json").unlink(), "recipe", "`recipe.json` is missing"),
        (
            lambda path: [file.unlink() for file in path.glob("tokenizer*")],
            "tokenizer",
            "The folder has no tokenizer (`tokenizer_config.json`), so nobody can run the model.",
        ),
        (
            lambda path: (path / "openvino").mkdir() or (path / "openvino/openvino_model.xml").touch(),
            "formats",
            "The folder holds the format `openvino`, which the report does not know.",
        ),
    ],
)
def test_a_sealed_change_is_found_by_what_it_changes(
    folder: Path, change: Callable[[Path], object], name: str, sentence: str
) -> None:
    change(folder)
    assert set(differing(folder)) == {"files", name}
    save_card(folder)
    found = differing(folder)
    assert set(found) == {name}
    assert sentence in found[name]


def test_a_stray_file_of_weights_is_found(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "notes.txt").write_text("An author's own file, which no program loads as a model.")
    (said,) = differing(folder).values()
    assert said.startswith("`pytorch_model.bin` is not one of the files that the report records")


def test_other_weights_of_the_same_length_are_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = differing(folder)
    assert "`model.safetensors` has another content" in found["files"]
    assert "checksum" in found["size"]


@pytest.mark.parametrize(
    ("change", "name", "sentence"),
    [
        ({"achieved_sparsity": 0.9}, "sparsity", "% of the weights are zero, the report says 90.00 %."),
        ({"bits": {"bert.encoder.layer.0.output.dense": 4}}, "bits", "and 4 in the report"),
        ({"model_class": "BertForMaskedLM"}, "model", "model_class BertForSequenceClassification, the report says"),
        ({"head": "regression"}, "model", "head sequence classification, the report says regression"),
        ({"formats": {}}, "formats", "which the report does not know"),
    ],
)
def test_a_number_typed_into_the_report_is_found(
    folder: Path, change: dict[str, Any], name: str, sentence: str
) -> None:
    edit_report(folder, **change)
    save_card(folder)
    found = differing(folder)
    assert set(found) == {name}
    assert sentence in found[name]


@pytest.mark.parametrize("name", ["packed_bytes", "dense_bytes", "entropy_bytes", "analytic_bytes"])
def test_every_size_in_the_report_is_counted_again(folder: Path, name: str) -> None:
    size = Report.load(folder).size
    edit_report(folder, size=replace(size, **{name: getattr(size, name) + 1}))
    assert differing(folder)["size"].startswith(f"{name} is {getattr(size, name):,}, the report says")


def test_the_report_of_another_run_is_found(folder: Path, made: Made) -> None:
    """Another run of the same recipe: other weights in the same folder structure."""
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.add_(1)
    model.save_pretrained(folder)
    assert "`model.safetensors` has" in differing(folder)["files"]
    values = json.loads((made.folder / "report.json").read_text("utf-8"))
    values["recipe"]["pruning"]["prune_sparsity"] = 0.25
    (folder / "report.json").write_text(json.dumps(values))
    assert {"files", "recipe"} <= set(differing(folder))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: (path / "evil.py").touch(), "`evil.py` is a program that hf_compress does not write."),
        (
            lambda path: (path / READER_NAME).write_text("import os"),
            f"`{READER_NAME}` is not the program that hf_compress {__version__} writes.",
        ),
        (lambda path: name_code(path, "config.json"), "`config.json` names the program 'evil/repo--own.Own'"),
        (lambda path: name_code(path, "tokenizer_config.json"), "`tokenizer_config.json` names the program"),
    ],
)
def test_programs_that_are_not_ours_are_found(folder: Path, change: Callable[[Path], object], sentence: str) -> None:
    """Strangers execute the reader with `trust_remote_code=True`, so a sealed folder with another one is refused."""
    change(folder)
    save_card(folder)
    found = differing(folder)
    assert set(found) == {"code"}
    assert sentence in found["code"]


def name_code(folder: Path, name: str) -> None:
    values = json.loads((folder / name).read_text("utf-8"))
    values["auto_map"] = {**values.get("auto_map", {}), "AutoModel": "evil/repo--own.Own"}
    (folder / name).write_text(json.dumps(values))


def test_a_configuration_that_claims_a_huge_model_is_a_sentence(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 1 << 20, "vocab_size": 1 << 30}))
    assert {"files", "size", "sparsity"} <= set(differing(folder))


def test_a_report_that_claims_a_huge_dense_model_is_a_sentence(folder: Path) -> None:
    from hf_compress.cut.vocabulary import VocabularyFacts

    edit_report(folder, vocabulary=VocabularyFacts(whole=1 << 34, kept=29))
    assert "dense_bytes is" in differing(folder)["size"]


def test_code_of_a_repository_is_not_executed(folder: Path, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(executed)!r}, 'w')\n")
    found = differing(folder)
    assert not executed.exists()
    assert "files" in found and "model" in found
