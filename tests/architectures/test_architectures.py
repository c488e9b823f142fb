"""The page `docs/architectures.md` says what methods do with architectures, and does not forget any."""

from pathlib import Path

import pytest

from tests.architectures.families import FAMILIES, KINDS, Family
from tests.architectures.methods import METHODS, NOT_TEXT, YES, Method, outcome
from tests.architectures.page import PAGE, page, recorded

REMEDY = "run `python -m tests.architectures NAME`"
OUTCOMES = recorded()
# Of each kind of model one whose structure needs care, and every method: fused layers, shared keys, two stacks.
SOME = [("modernbert", "heads"), ("eurobert", "resume"), ("marian", "int8"), ("deberta-v2", "int8 attention")]


GRAPHS = ("ONNX", "OpenVINO")
# An export takes as long as all other methods together, so graphs are repeated for these only.
EXPORTED = ("bert", "modernbert", "deberta-v2", "nomic_bert", "vit", "wav2vec2", "xlnet")


def test_the_page_is_made_from_the_outcomes() -> None:
    assert page(OUTCOMES) == PAGE.read_text("utf-8"), REMEDY


def test_every_architecture_and_method_has_an_outcome() -> None:
    assert list(OUTCOMES) == [family.name for family in FAMILIES], REMEDY
    assert {family.kind for family in FAMILIES} == set(KINDS)
    for name, outcomes in OUTCOMES.items():
        assert list(outcomes) == [method.title for method in METHODS], f"{name}: {REMEDY}"


def test_what_is_no_yes_is_a_sentence_with_an_option() -> None:
    for outcomes in OUTCOMES.values():
        for said in outcomes.values():
            assert said in (YES, NOT_TEXT) or ("`--" in said and said.endswith(".")), said


def repeated(family: Family, method: Method, folder: Path) -> None:
    """Check that a method does what the page says."""
    folder.mkdir()
    expected = OUTCOMES[family.name][method.title]
    assert outcome(family, method, folder) == expected, f"{family.name} {method.title}: {REMEDY}"


@pytest.mark.parametrize(("name", "title"), SOME)
def test_some_outcomes_are_as_the_page_says(name: str, title: str, tmp_path: Path) -> None:
    (family,) = (one for one in FAMILIES if one.name == name)
    (method,) = (one for one in METHODS if one.title == title)
    repeated(family, method, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_all_outcomes_are_as_the_page_says(family: Family, tmp_path: Path) -> None:
    for method in METHODS:
        if method.title not in GRAPHS or family.name in EXPORTED:
            repeated(family, method, tmp_path / method.title)
