"""The model card: sections, rendered from a `Report` and from nothing else."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils import logging

from hf_compress.checkpoint.aside import written_aside
from hf_compress.extras import MissingExtraError
from hf_compress.report.contents import CARD_NAME, contents
from hf_compress.report.markdown import code, listed, text
from hf_compress.report.metadata import metadata
from hf_compress.report.picture import PICTURE_NAME, plot
from hf_compress.report.report import Report
from hf_compress.report.section import Section
from hf_compress.report.sections import (
    citation,
    limits,
    loading,
    making,
    other_formats,
    quality,
    speed,
    summary,
)
from hf_compress.report.units import duration, human_bytes, percent

logger = logging.get_logger(__name__)

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        summary.SECTION,
        quality.SECTION,
        other_formats.SECTION,
        speed.SECTION,
        making.SECTION,
        loading.SECTION,
        limits.SECTION,
        citation.SECTION,
    )
}


def template_version() -> str:
    """The version of the card's template: it changes whenever a section is added, removed, moved or reworded.

    Example:
        >>> from hf_compress.report.card import template_version
        >>> len(template_version())
        12
    """
    sections = [(section.order, section.title, section.template) for section in _in_order()]
    return hashlib.sha256(json.dumps(sections).encode()).hexdigest()[:12]


def render(report: Report) -> str:
    """The model card of `report`: Markdown, with the metadata for the Hub. The same report gives the same card."""
    environment = _environment()
    parts = [f"---\n{metadata(report).to_yaml()}\n---"]
    for section in _in_order():
        body = environment.from_string(section.template).render(report=report, **section.values(report)).strip()
        if body:
            parts.append(body if section.title is None else f"## {section.title}\n\n{body}")
    return "\n\n".join(parts) + "\n"


def save_card(folder: str | Path) -> Path:
    """The path of the card written into `folder` from its `report.json`, beside the picture that the card shows.

    `report.json` then records every file of the folder, the version of the template and the picture. So call this
    after anything else was written into a finished folder. Without the extra `plots` the card has no picture, and the
    log says so.

    Raises:
        ValueError: `folder` has no `report.json`, or another version of hf_compress wrote it.

    Example:
        >>> from hf_compress import save_card
        >>> save_card("run/compressed")  # doctest: +SKIP
        PosixPath('run/compressed/README.md')
    """
    folder, report = Path(folder), Report.load(folder)
    with written_aside(folder, CARD_NAME, replace=True) as aside:
        picture = _draw(report, aside.parent)
        if picture is None:
            (folder / PICTURE_NAME).unlink(missing_ok=True)
        report = replace(
            report,
            card_template=template_version(),
            card_picture=picture,
            files=dict(sorted((contents(folder) | contents(aside.parent)).items())),
        )
        report.save(aside.parent)
        aside.write_text(render(report), "utf-8")
    return folder / CARD_NAME


def is_current(folder: str | Path) -> bool:
    """Whether the card in `folder` is what this version renders from its `report.json`.

    Raises:
        ValueError: `folder` has no `report.json`, or another version of hf_compress wrote it.
    """
    report, card = Report.load(folder), Path(folder) / CARD_NAME
    if report.card_template != template_version() or not card.is_file():
        return False
    return card.read_text("utf-8") == render(report)


def _draw(report: Report, folder: Path) -> str | None:
    """Draw the picture of the card, and return its file name; None without the extra `plots`."""
    try:
        plot(report, folder / PICTURE_NAME)
    except MissingExtraError as error:
        logger.warning(f"The card has no picture. {error}")
        return None
    return PICTURE_NAME


def _in_order() -> list[Section]:
    return sorted(SECTIONS.values(), key=lambda section: section.order)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=_escaped,
    )
    environment.filters |= {
        "size": human_bytes,
        "count": "{:,}".format,
        "percent": percent,
        "duration": duration,
        "listed": listed,
        "code": code,
    }
    return environment


def _escaped(value: Any) -> Any:
    return text(value) if isinstance(value, str) else value
