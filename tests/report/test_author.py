"""What the author adds to the card is checked before training, and a wrong value is named with what is right."""

from pathlib import Path
from typing import Any

import pytest

from hf_compress import CompressionArguments
from hf_compress.report.author import author_metadata, read_author
from hf_compress.report.merging import BEGIN

GOOD = {"license": "mit", "language": ["de", "en"], "title": "My model", "text": "Words.\n", "tags": ["films"]}


def test_a_file_is_read_as_metadata_and_words(tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text("license: mit\ntext: |\n  My *words*.\nexample: [one, two]\n")
    author = read_author(file)
    assert author == {"license": "mit", "text": "My *words*.\n", "example": ["one", "two"]}
    assert author_metadata(author) == {"license": "mit"}


def test_what_was_read_can_be_read_again() -> None:
    for example in ("A text.", ["One.", "Two."], False):
        once = read_author(GOOD | {"example": example})
        assert read_author(once) == once
    assert read_author(None) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model-index": []}, "must leave out `model-index`"),
        ({"metrics": ["f1"]}, "must leave out `metrics`"),
        ({"title": "two\nlines"}, "`title` must be one line"),
        ({"title": 3}, "`title` must be text"),
        ({"text": ""}, "`text` must be text"),
        ({"text": f"a\n{BEGIN}\n"}, "must not hold the marks"),
        ({"example": ["a", "b", "c"]}, "`example` must be a text, a list of two texts, or `false`"),
        ({"example": 1}, "`example` must be"),
        ({"example": "a" * 1001}, "at most 1,000 characters"),
        ({"a key": 1}, "a name must be letters, digits"),
        ({"x --> y": 1}, "a name must be letters, digits"),
        ({"tags": "films"}, "`tags` must be a list of words"),
        ({"base_model_relation": "child"}, "must be among adapter, finetune, merge, quantized"),
        ({"date": Path("x")}, "Write dates and similar values in quotes"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_author(GOOD | change)
    assert "`--compress_card_metadata`" in str(error.value)


@pytest.mark.parametrize("content", ["- a\n", "words\n", "1: a\n"])
def test_a_file_without_names_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "card.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match="must hold names and values"):
        read_author(file)


def test_a_missing_file_is_refused_with_the_flags(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        CompressionArguments(compress_card_metadata=str(tmp_path / "none.yaml"))


def test_the_flags_keep_what_the_file_said(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text('{"license": "mit"}')
    options = CompressionArguments(compress_card_metadata=str(file))
    file.unlink()
    assert options.author == {"license": "mit"}
