"""A result appears whole or not at all and follows no link; of two writers, one wins and the other raises."""

import os
import threading
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_compress.checkpoint.aside import check_free, written_aside
from hf_compress.checkpoint.save import save_compressed
from hf_compress.recipe import Recipe

RECIPE = Recipe()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_working_directory_is_refused_before_writing(
    tiny_bert: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for same in (".", tmp_path / "here", "../here"):
        with pytest.raises(ValueError, match="is the working directory"):
            save_compressed(tiny_bert, same, RECIPE)
    assert _names(tmp_path) == ["here"] and _names(tmp_path / "here") == []


def test_a_link_to_an_empty_folder_is_filled_where_it_points(tiny_bert: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "empty")
    folder = save_compressed(tiny_bert, tmp_path / "link", RECIPE)
    assert (tmp_path / "link").is_symlink()
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert _names(tmp_path / "disk") == ["empty"]


def test_a_file_in_place_of_the_folder_is_refused_first(tiny_bert: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save_compressed(tiny_bert, tmp_path / "file", RECIPE)
    assert (tmp_path / "file").read_text() == "mine" and _names(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_lies_at_the_old_partial_name_is_left_alone(
    kind: str, tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    partial = tmp_path / ".compressed.partial"
    if kind == "file":
        partial.write_text("mine")
    elif kind == "folder":
        partial.mkdir()
    else:
        partial.symlink_to(tmp_path / "precious")
    save_compressed(tiny_bert, tmp_path / "compressed", RECIPE)
    assert (tmp_path / "precious" / "file").read_text() == "mine" and _names(tmp_path / "precious") == ["file"]
    assert _names(tmp_path) == [".compressed.partial", "compressed", "precious"]


def test_of_two_writers_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    """Both are in the middle of writing when either ends."""
    barrier, refused = threading.Barrier(8), list[str]()

    def write(number: int) -> None:
        try:
            with written_aside(tmp_path, "result", replace=False) as aside:
                aside.mkdir()
                for name in ("one", "two"):
                    (aside / name).write_text(str(number))
                barrier.wait(timeout=20)
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and all("was written by another process meanwhile" in said for said in refused)
    assert len({(tmp_path / "result" / name).read_text() for name in ("one", "two")}) == 1
    assert _names(tmp_path) == ["result"]


def test_a_link_that_appears_in_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()

    def write() -> None:
        with written_aside(tmp_path, "result", replace=False) as aside:
            aside.mkdir()
            (aside / "file").write_text("new")
            (tmp_path / "result").symlink_to(tmp_path / "precious")

    with pytest.raises(ValueError, match="was written by another process"):
        write()
    assert _names(tmp_path / "precious") == [] and _names(tmp_path) == ["precious", "result"]


def test_a_replaced_folder_is_whole_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "old").write_text("old")
    with written_aside(tmp_path, "result", replace=True) as aside:
        aside.mkdir()
        (aside / "new").write_text("new")
    assert _names(tmp_path) == ["result"] and _names(tmp_path / "result") == ["new"]


def test_a_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    with written_aside(tmp_path, "result", replace=False) as aside:
        aside.mkdir()
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "result").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a mount point")
def test_a_mount_point_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="is a mount point"):
        check_free(tmp_path)
