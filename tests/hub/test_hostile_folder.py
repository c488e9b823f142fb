"""A folder that is not what it seems is not pushed, and a folder with odd names arrives as it is."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from hf_compress.hub.push import push
from hf_compress.report.card import save_card
from tests.hub.accounts import GOOD_TOKEN
from tests.hub.local import LocalHub

pytestmark = pytest.mark.slow

NAMES = [
    "with space.bin",
    "ünïcode/漢字.bin",
    "percent%20.bin",
    "a#b?c&d.bin",
    "plus+.bin",
    "quote'\".bin",
    "a/b/c.bin",
]


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A finished folder of our own."""
    return shutil.copytree(folders["finished"], tmp_path / "compressed")


def published(hub: LocalHub) -> dict[str, bytes]:
    return hub.repository("me/x").files() if hub.has("me/x") else {}


def test_odd_names_arrive_as_they_are(local_hub: LocalHub, folder: Path) -> None:
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * 100)
    save_card(folder)
    push(folder, "me/x", token=GOOD_TOKEN)
    held = published(local_hub)
    assert {name: held[name] for name in NAMES} == {name: (folder / name).read_bytes() for name in NAMES}
    for name in NAMES:
        (folder / name).unlink()
    save_card(folder)
    push(folder, "me/x", token=GOOD_TOKEN)
    assert not published(local_hub).keys() & set(NAMES), "they go again when the next folder lacks them"


@pytest.mark.parametrize("name", ["new\nline.bin", "back\\slash.bin", "bell\x07.bin"])
def test_a_name_that_no_system_shares_is_pushed_or_refused(local_hub: LocalHub, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"content")
    with suppress(ValueError):
        save_card(folder)
        push(folder, "me/x", token=GOOD_TOKEN)
    assert not published(local_hub) or published(local_hub)[name] == b"content"


def test_a_thousand_files_arrive_in_one_commit(local_hub: LocalHub, folder: Path) -> None:
    (folder / "parts").mkdir()
    for number in range(1000):
        (folder / "parts" / f"{number:04}.bin").write_bytes(number.to_bytes(2, "big"))
    save_card(folder)
    push(folder, "me/x", token=GOOD_TOKEN)
    assert len(local_hub.repository("me/x").history()) == 1
    assert sum(name.startswith("parts/") for name in published(local_hub)) == 1000


def link_to_a_file(folder: Path, secret: Path) -> None:
    (folder / "notes.bin").symlink_to(secret)


def link_in_place_of_weights(folder: Path, secret: Path) -> None:
    shutil.copy(folder / "model.safetensors", secret)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(secret)


def link_to_a_folder(folder: Path, secret: Path) -> None:
    (folder / "more").symlink_to(secret.parent, target_is_directory=True)


def pipe(folder: Path, secret: Path) -> None:
    os.mkfifo(folder / "endless.bin")


def other_weights(folder: Path, secret: Path) -> None:
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))


def one_byte_of_the_tokenizer(folder: Path, secret: Path) -> None:
    content = bytearray((folder / "tokenizer.json").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "tokenizer.json").write_bytes(content)


def a_score(folder: Path, secret: Path) -> None:
    text = (folder / "report.json").read_text()
    (folder / "report.json").write_text(text.replace('"accuracy": ', '"accuracy": 0.0, "f1": ', 1))


def an_empty_recipe(folder: Path, secret: Path) -> None:
    (folder / "recipe.json").write_text("{}")


def no_tokenizer(folder: Path, secret: Path) -> None:
    (folder / "tokenizer.json").unlink()


def a_token(folder: Path, secret: Path) -> None:
    (folder / "notes.txt").write_text(f"token: {GOOD_TOKEN}")
    save_card(folder)


CHANGES = [link_in_place_of_weights, other_weights, one_byte_of_the_tokenizer, a_score, an_empty_recipe]
CHANGES += [no_tokenizer, a_token]
STRAYS = [link_to_a_file, link_to_a_folder, pipe]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_tampered_folder_is_not_pushed(
    local_hub: LocalHub, folder: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "elsewhere" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("private")
    change(folder, secret)
    with pytest.raises(ValueError) as refused:
        push(folder, "me/x", token=GOOD_TOKEN)
    assert GOOD_TOKEN not in str(refused.value)
    assert not published(local_hub)


@pytest.mark.parametrize("change", STRAYS, ids=lambda change: change.__name__)
def test_nothing_outside_the_folder_is_published(
    local_hub: LocalHub, folder: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    """A push with a stray link or pipe is refused, or leaves it at home; it never follows or waits for it."""
    secret = tmp_path / "elsewhere" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text("private")
    change(folder, secret)
    try:
        push(folder, "me/x", token=GOOD_TOKEN)
    except ValueError:
        assert not published(local_hub)
    assert not any(b"private" in content for content in published(local_hub).values())


def test_weights_swapped_during_a_push_are_not_published(
    local_hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that go up are those that were checked, or nothing goes up."""
    module = import_module("hf_compress.hub.push")
    create = module._create

    def swap(*arguments: object) -> None:
        other_weights(folder, folder)
        create(*arguments)

    monkeypatch.setattr(module, "_create", swap)
    before = (folder / "model.safetensors").read_bytes()
    with suppress(ValueError):
        push(folder, "me/x", token=GOOD_TOKEN)
    assert not published(local_hub) or published(local_hub)["model.safetensors"] == before
