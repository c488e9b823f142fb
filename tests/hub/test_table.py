"""The documentation shows the table of faults that the tests run."""

from tests.hub.cases import CASES
from tests.hub.table import PAGE, written


def test_the_page_shows_the_table_of_today() -> None:
    page = PAGE.read_text("utf-8")
    assert page == written(page), "run `python -m tests.hub.table --write`"


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
