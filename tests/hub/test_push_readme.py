"""The README of a repository keeps what its author wrote, whatever is pushed."""

import shutil
from pathlib import Path

import pytest

from hf_compress.hub.push import publish, push
from hf_compress.hub.readme import united
from hf_compress.report.card import render
from hf_compress.report.merging import BEGIN, END
from hf_compress.report.report import Report
from tests.hub.accounts import GOOD_TOKEN, OTHER_TOKEN
from tests.hub.faults import drop, lost
from tests.hub.local import LocalHub

ID = "me/small"
GOLDEN = Path(__file__).parents[1] / "golden"
THEIRS = "---\nlicense: mit\ntags:\n- films\nthumbnail: x.png\n---\n# My model\n\nWritten by hand.\n"


@pytest.fixture(scope="module")
def report() -> Report:
    return Report.load(GOLDEN)


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["finished"], tmp_path / "compressed"))


def with_words(card: str, words: str) -> str:
    return f"{card}\n{words}\n"


def test_a_new_repository_gets_the_folder_s_readme(report: Report) -> None:
    assert united(report, with_words(render(report), "Mine."), "") == with_words(render(report), "Mine.")


def test_a_handwritten_readme_keeps_its_text_and_metadata(report: Report) -> None:
    card = united(report, render(report), THEIRS)
    for words in ("license: mit", "- films", "thumbnail: x.png", "# My model\n\nWritten by hand.", BEGIN, END):
        assert card.count(words) == 1
    assert united(report, render(report), card) == card, "uniting again changes nothing"


def test_the_card_is_replaced_between_our_marks(report: Report) -> None:
    there = united(report, render(report), THEIRS).replace("## ", "## Old ")
    assert united(report, render(report), there) == united(report, render(report), THEIRS)


def test_words_of_the_folder_go_up_if_there_are_none(report: Report) -> None:
    here = with_words(render(report), "Mine.")
    assert united(report, here, render(report)) == here
    assert united(report, here, united(report, here, render(report))) == here


def test_other_words_on_both_sides_are_refused(report: Report) -> None:
    here, there = with_words(render(report), "Mine."), with_words(render(report), "Theirs.")
    with pytest.raises(ValueError, match="text outside our marks.*`--replace`"):
        united(report, here, there)
    assert united(report, here, there, replace=True) == here


def test_metadata_of_both_are_united(report: Report, caplog: pytest.LogCaptureFixture) -> None:
    here = render(report, "---\nlicense: apache-2.0\ntags:\n- mine\n---\n")
    card = united(report, here, THEIRS)
    assert "license: mit" in card and "apache-2.0" not in card
    assert "- mine" in card and "- films" in card


@pytest.mark.parametrize("there", ["---\na: [\n---\n", f"{BEGIN}\nhalf of it\n"])
def test_a_readme_that_cannot_be_read_is_refused(report: Report, there: str) -> None:
    with pytest.raises(ValueError, match=r"README\.md"):
        united(report, render(report), there)
    assert united(report, render(report), there, replace=True) == render(report)


@pytest.mark.slow
def test_words_written_on_the_hub_survive_a_push(local_hub: LocalHub, folder: Path) -> None:
    push(folder, ID, token=GOOD_TOKEN)
    card = local_hub.repository(ID).files()["README.md"].decode()
    local_hub.add(ID, {"README.md": with_words(card, "Written in the browser.").encode()})
    assert publish(folder, ID, token=GOOD_TOKEN).changes.nothing
    assert b"Written in the browser." in local_hub.repository(ID).files()["README.md"]


def test_a_file_that_others_change_meanwhile_is_not_overwritten(
    local_hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, ID, token=GOOD_TOKEN)
    (folder / "README.md").write_text(with_words((folder / "README.md").read_text("utf-8"), "More."), "utf-8")

    def others_push(seconds: float) -> None:
        local_hub.add(ID, {"config.json": b"{}"}, message="Meanwhile")

    monkeypatch.setattr("hf_compress.hub.patience.time.sleep", others_push)
    local_hub.faults(drop("/commit/", 1))
    with pytest.raises(ValueError, match=r"Somebody else changed config\.json of me/small during this push"):
        push(folder, ID, token=GOOD_TOKEN)
    assert local_hub.repository(ID).history()[-1].message == "Meanwhile"


def test_words_written_meanwhile_are_merged(
    local_hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_write(seconds: float) -> None:
        local_hub.add(ID, {"README.md": b"# Theirs\n"}, message="Meanwhile")

    monkeypatch.setattr("hf_compress.hub.patience.time.sleep", others_write)
    local_hub.faults(drop("/commit/", 1))
    push(folder, ID, token=GOOD_TOKEN)
    assert b"# Theirs" in local_hub.repository(ID).files()["README.md"]


@pytest.mark.slow
def test_a_change_elsewhere_meanwhile_stops_nothing(
    local_hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_push(seconds: float) -> None:
        local_hub.add(ID, {"LICENSE": b"MIT"}, message="Meanwhile")

    monkeypatch.setattr("hf_compress.hub.patience.time.sleep", others_push)
    local_hub.faults(drop("/commit/", 1))
    push(folder, ID, token=GOOD_TOKEN)
    assert local_hub.repository(ID).files()["LICENSE"] == b"MIT"
    assert "model.safetensors" in local_hub.repository(ID).files()


def test_a_pull_request_whose_answer_was_lost_is_found(local_hub: LocalHub, folder: Path) -> None:
    local_hub.add(ID, {"LICENSE": b"MIT"})
    local_hub.faults(lost("/commit/"))
    url = push(folder, ID, token=OTHER_TOKEN, create_pr=True)
    assert url == f"{local_hub.url}/{ID}/discussions/1"
    assert len(local_hub.repository(ID).pull_requests) == 1
