"""A card fits the screen of a phone: nothing is beyond its edge, and no table has to be scrolled."""

from dataclasses import replace

import pytest

from hf_compress.report.card import render
from tests.golden.reports import golden_reports
from tests.report.page import CHROMIUM, has_font, measure

LONG = "a-very-long-name/" + "without-any-space-" * 6


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or not has_font(), reason="needs Chromium, and Arial or Liberation Sans")
def test_a_card_fits_the_screen_of_a_phone() -> None:
    reports = golden_reports()
    odd = replace(reports["pushed"], task=LONG, base_model=LONG, base_model_hub_id=LONG, hub_id=LONG, hardware=LONG)
    cards = {name: render(report) for name, report in reports.items()}
    found = measure(cards | {"long names": render(odd)}, 390)
    assert found.keys() == {*cards, "long names"}
    assert {name: page for name, page in found.items() if page["width"] > 390 or page["wide"]} == {}
    assert {name: page["tables"] for name, page in found.items() if page["tables"]} == {}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_what_is_too_wide_is_found() -> None:
    wide = '<div style="width: 500px">wide</div>'
    found = measure({"wide": wide, "fits": "Words."}, 390)
    assert found["wide"]["wide"] and found["wide"]["width"] > 390
    assert found["fits"] == {"width": 390, "wide": [], "tables": []}
