"""A card goes into a README: our part is replaced, and what the author wrote survives."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report.card import is_current, render, save_card
from hf_compress.report.merging import BEGIN, END, split
from hf_compress.report.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
BY_HAND = """---
license: cc-by-4.0  # agreed with legal
language: no
tags:
- legal
- hf-compress
pipeline_tag: fill-mask
my_key: {a: 1}
---

# My model

Written by hand.
"""


@pytest.fixture
def report() -> Report:
    return Report.load(GOLDEN)


def front(text: str) -> str:
    return text.split("---\n")[1]


def test_words_outside_the_marks_survive_rendering(report: Report) -> None:
    card = render(report)
    edited = card.replace(BEGIN, f"Before.\n\n{BEGIN}") + "\nAfter *all*.\n"
    changed = render(replace(report, task="other"), edited)
    assert changed == render(replace(report, task="other")).replace(BEGIN, f"Before.\n\n{BEGIN}") + "\nAfter *all*.\n"


def test_words_between_the_marks_are_replaced(report: Report) -> None:
    card = render(report)
    assert render(report, card.replace("16.2 MB", "1 MB")) == card


@pytest.mark.parametrize("existing", ["", BY_HAND, "Words alone.\n", BY_HAND.replace("\n", "\r\n"), "---\n---\n"])
def test_merging_again_changes_nothing(report: Report, existing: str) -> None:
    once = render(report, existing)
    assert render(report, once) == once
    assert once.count(BEGIN) == once.count(END) == 1


def test_a_handwritten_readme_keeps_its_words_and_keys(report: Report) -> None:
    card = render(report, BY_HAND)
    for line in ("license: cc-by-4.0  # agreed with legal\n", "language: no\n", "my_key: {a: 1}\n"):
        assert line in front(card)
    assert card.endswith(f"{END}\n\n# My model\n\nWritten by hand.\n")
    data = yaml.safe_load(front(card))
    assert data["pipeline_tag"] == "text-classification"
    assert data["tags"].count("hf-compress") == 1 and data["tags"][-1] == "legal"
    assert ModelCard(card).data.base_model == "someone/minilm-l6"


def test_keys_that_no_longer_hold_are_removed(report: Report) -> None:
    local = replace(report, base_model_hub_id=None, dataset=replace(report.dataset, hub_id=None), recipe=Recipe())
    again = yaml.safe_load(front(render(local, render(report).replace("tags:\n", "tags:\n- legal\n"))))
    assert not {"base_model", "base_model_relation", "datasets", "model-index"} & again.keys()
    assert again["tags"] == ["hf-compress", "legal"]


def test_a_key_that_the_author_adds_survives(report: Report) -> None:
    local = replace(report, base_model_hub_id=None)
    edited = render(local).replace("---\n", "---\nbase_model: me/base\n", 1)
    assert yaml.safe_load(front(render(local, edited)))["base_model"] == "me/base"


def test_a_licence_in_the_readme_beats_the_inherited_one(report: Report) -> None:
    known = replace(report, license="mit", languages=["en"])
    assert yaml.safe_load(front(render(known)))["license"] == "mit"
    edited = render(known).replace("license: mit", "license: apache-2.0")
    assert yaml.safe_load(front(render(known, edited)))["license"] == "apache-2.0"


@pytest.mark.parametrize("mark", [BEGIN, END])
def test_half_of_the_marks_is_refused_by_name(report: Report, mark: str) -> None:
    with pytest.raises(ValueError, match=f"has the line `{mark}` without the line"):
        render(report, f"Words.\n{mark}\nMore.\n")


@pytest.mark.parametrize("metadata", ["a: [b\n", "- a\n", "just words\n", "{a: 1}\n"])
def test_metadata_that_cannot_be_merged_are_refused(report: Report, metadata: str) -> None:
    with pytest.raises(ValueError, match=r"The metadata at the head of README\.md .*Correct them"):
        render(report, f"---\n{metadata}---\n")


def test_a_mark_inside_the_command_ends_nothing(report: Report) -> None:
    odd = replace(report, command=f"run \\\n{END}\n{BEGIN}\nmore")
    card = render(odd)
    assert render(odd, card) == card
    assert render(report, card) == render(report)


def test_the_card_is_current_while_our_part_is(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    path = save_card(tmp_path)
    path.write_text(path.read_text("utf-8") + "\nMy words.\n", "utf-8")
    assert is_current(tmp_path)
    save_card(tmp_path)
    assert path.read_text("utf-8").endswith("\nMy words.\n")
    path.write_text(path.read_text("utf-8").replace("85.60", "99.60"), "utf-8")
    assert not is_current(tmp_path)


def test_saving_with_an_id_records_the_repository(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    save_card(tmp_path, hub_id="me/small")
    assert Report.load(tmp_path).hub_id == "me/small"
    save_card(tmp_path)
    assert Report.load(tmp_path).hub_id == "me/small" and is_current(tmp_path)


def test_tags_of_an_earlier_scheme_are_replaced(report: Report) -> None:
    other = replace(report, recipe=Recipe(quantization=QuantizationArguments(quant_scheme="int4-weight")))
    tags = yaml.safe_load(front(render(other, render(report))))["tags"]
    assert "int8" not in tags and "int4-weight" in tags


def test_aliases_in_metadata_are_refused_before_they_expand() -> None:
    letters = "abcdefghij"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(letters))
    with pytest.raises(ValueError, match="aliases.*Write their values out"):
        split(f"---\n{bomb}tags: *j\n---\nText")


def test_metadata_nested_too_deeply_are_no_crash() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        split(f"---\na: {'[' * 5000}\n---\nText")


def test_a_readme_that_is_no_text_is_refused(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff\xfe words")
    with pytest.raises(ValueError, match=r"README\.md is not UTF-8 text"):
        save_card(tmp_path)
