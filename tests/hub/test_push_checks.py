"""What a push refuses before the Hub is asked anything: a folder that is not what its report says."""

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hf_compress.hub import check, push
from hf_compress.report.card import SECTIONS, render, save_card
from hf_compress.report.gate import REGRESSION, judged
from hf_compress.report.report import FormatFacts, Report
from hf_compress.report.section import Section
from tests.hub.accounts import GOOD_TOKEN
from tests.hub.local import LocalHub

ID = "me/small"


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["finished"], tmp_path / "compressed"))


def refused(hub: LocalHub, folder: Path, words: str) -> str:
    with pytest.raises(ValueError, match=words) as error:
        push(folder, ID, token=GOOD_TOKEN)
    assert not hub.requests, "nothing is asked of the Hub before the folder is checked"
    return str(error.value)


def edit(folder: Path, **fields: object) -> None:
    """Type other values into report.json, and render the card from it."""
    replace(Report.load(folder), **fields).save(folder)
    (folder / "README.md").write_text(render(Report.load(folder)), "utf-8")


@pytest.mark.parametrize("name", ["report.json", "README.md", "config.json", "model.safetensors", "size.png"])
def test_a_folder_that_lacks_a_file_is_not_pushed(local_hub: LocalHub, folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(local_hub, folder, re.escape(name))


def _zero(path: Path) -> None:
    """Set the second half of the file to zero: weights, not their names."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "zeroed weights": lambda folder: _zero(folder / "model.safetensors"),
    "longer weights": lambda folder: _append(folder / "model.safetensors"),
    "another tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "a missing tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "another configuration": lambda folder: (folder / "config.json").write_text('{"a": 1}'),
    "an empty recipe": lambda folder: (folder / "recipe.json").write_text(""),
    "another recipe": lambda folder: (folder / "recipe.json").write_text("{}"),
    "another picture": lambda folder: (folder / "size.png").write_bytes(b"painted"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_file_that_the_report_does_not_record_is_refused(local_hub: LocalHub, folder: Path, tampering: str) -> None:
    TAMPERINGS[tampering](folder)
    refused(local_hub, folder, "is not what its report says")


@pytest.mark.parametrize("content", ["", "{}", "[]", "null"])
def test_a_recorded_recipe_must_be_that_of_the_report(local_hub: LocalHub, folder: Path, content: str) -> None:
    (folder / "recipe.json").write_text(content)
    save_card(folder)
    refused(local_hub, folder, "recipe")


def test_a_score_typed_into_the_report_is_refused(local_hub: LocalHub, folder: Path) -> None:
    edit(folder, compressed={**Report.load(folder).compressed, "accuracy": 0.999})
    refused(local_hub, folder, "The predictions of the compressed model give `accuracy`")


def test_a_report_that_records_no_files_is_refused(local_hub: LocalHub, folder: Path) -> None:
    edit(folder, files={})
    refused(local_hub, folder, "records no files")


def test_a_format_of_the_card_must_be_there(local_hub: LocalHub, folder: Path) -> None:
    edit(folder, formats={"openvino": FormatFacts(1, 0.0, {"accuracy": 0.8})})
    refused(local_hub, folder, "openvino")


def test_text_models_need_a_tokenizer(local_hub: LocalHub, folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    save_card(folder)
    refused(local_hub, folder, "tokenizer")


def test_a_link_out_of_the_folder_is_refused(local_hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    refused(local_hub, folder, "config.json")


def test_a_link_that_no_report_records_stays_here(local_hub: LocalHub, folder: Path) -> None:
    (folder / "home").symlink_to(Path.home())
    push(folder, ID, token=GOOD_TOKEN)
    assert "home" not in local_hub.repository(ID).files()


def test_a_card_edited_between_our_marks_is_not_pushed(local_hub: LocalHub, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text("utf-8").replace("## ", "## Best "), "utf-8")
    refused(local_hub, folder, "edited")


def test_words_around_our_marks_are_pushed(local_hub: LocalHub, folder: Path) -> None:
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nMy words.\n")
    push(folder, ID, token=GOOD_TOKEN)
    assert local_hub.repository(ID).files()["README.md"].endswith(b"\nMy words.\n")


def test_a_card_of_another_template_is_not_pushed(
    local_hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The words of this card are the same under both templates, so the text alone does not show its age.
    monkeypatch.setitem(SECTIONS, "empty", Section("empty", "Empty", 99, lambda report: {}, ""))
    said = refused(local_hub, folder, "another version of the card's template")
    *_, code = shlex.split(said.partition("run: ")[2])
    exec(code, {})
    assert push(folder, ID, token=GOOD_TOKEN)


def test_a_regression_is_pushed_only_if_it_is_meant(local_hub: LocalHub, folder: Path) -> None:
    report = judged(Report.load(folder), 1.0)
    edit(folder, verdict=report.verdict, reasons=report.reasons, max_drop=report.max_drop)
    assert report.verdict == REGRESSION
    refused(local_hub, folder, rf"regression. {re.escape(report.reasons[0])}.*`--regression-too`")
    assert push(folder, ID, token=GOOD_TOKEN, regression_too=True)


@pytest.mark.parametrize(
    "secret",
    ["hf_AnotherSecretOfMineAAAAAAAAAAAAAAA", "ghp_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "https://me:password@host/"],
)
def test_a_text_file_with_any_secret_is_not_pushed(local_hub: LocalHub, folder: Path, secret: str) -> None:
    (folder / "notes.txt").write_text(f"Use {secret} to read it.")
    save_card(folder)
    assert secret not in refused(local_hub, folder, r"notes\.txt holds what looks like a secret")


@pytest.mark.parametrize("name", ["notes.txt", "extra.bin", "logs/events"])
def test_a_folder_that_holds_the_token_is_not_pushed(
    local_hub: LocalHub, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_compress.hub.leaks.READ_BYTES", 985)  # The token crosses a border.
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(980) + b"my own token" + b"\xff" * 8)
    save_card(folder)
    with pytest.raises(ValueError, match=re.escape(f"{name} holds the Hub token that is in use")):
        push(folder, ID, token="my own token")
    assert not local_hub.requests


def test_the_author_s_words_may_hold_no_secret(local_hub: LocalHub, folder: Path) -> None:
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\nUse my token {GOOD_TOKEN}\n")
    refused(local_hub, folder, r"README\.md holds the Hub token")


def test_a_hidden_file_may_hold_the_token(local_hub: LocalHub, folder: Path) -> None:
    (folder / ".env").write_text(f"HF_TOKEN={GOOD_TOKEN}")
    push(folder, ID, token=GOOD_TOKEN)
    assert ".env" not in local_hub.repository(ID).files()


def test_a_whole_folder_passes(folder: Path) -> None:
    assert check(folder) == Report.load(folder)
