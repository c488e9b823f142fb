"""The model card: sections, rendered from a `Report` and from nothing else."""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils import logging

from hf_compress.checkpoint.aside import written_aside
from hf_compress.extras import MissingExtraError
from hf_compress.report.contents import CARD_NAME, contents
from hf_compress.report.eval_results import RESULTS_NAME, render_results
from hf_compress.report.markdown import code, listed, text
from hf_compress.report.merging import merged
from hf_compress.report.metadata import OWN_TAGS, inherited, metadata
from hf_compress.report.picture import CURVE_NAME, PICTURE_NAME, plot_curves, plot_sizes
from hf_compress.report.report import Report
from hf_compress.report.section import Section
from hf_compress.report.sections import (
    author,
    bytes,
    citation,
    curve,
    evaluation,
    limits,
    making,
    other_formats,
    speed,
    summary,
    use,
)
from hf_compress.report.units import duration, human_bytes, percent

logger = logging.get_logger(__name__)

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        summary.SECTION,
        use.SECTION,
        author.SECTION,
        evaluation.SECTION,
        bytes.SECTION,
        other_formats.SECTION,
        speed.SECTION,
        curve.SECTION,
        making.SECTION,
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


def render(report: Report, existing: str = "") -> str:
    """The model card of `report`: Markdown, with the metadata for the Hub. The same arguments give the same card.

    Args:
        report: what the card says.
        existing: the text of a README that the card goes into. Its metadata, and its text outside our marks, stay.

    Raises:
        ValueError: the metadata of `existing` are not YAML, or it has one of our marks and lacks the other.
    """
    parts = []
    for section in _in_order():
        body = _compiled(section.template).render(report=report, **section.values(report)).strip()
        if body:
            parts.append(body if section.title is None else f"## {section.title}\n\n{body}")
    return merged(existing, metadata(report), "\n\n".join(parts), inherited=inherited(report), own_tags=OWN_TAGS)


def save_card(folder: str | Path, hub_id: str | None = None) -> Path:
    """The path of the card written into `folder` from its `report.json`, beside the picture that the card shows.

    A README that is there keeps its text outside our marks, and its own metadata. `.eval_results/` gets the main
    score, if it belongs to a dataset of the Hub. `report.json` then records every
    file of the folder, the version of the template, the picture and `hub_id`. So call this after anything else was
    written into a finished folder. Without the extra `plots` the card has no picture, and the log says so.

    Args:
        folder: the folder of a compressed model with its report.
        hub_id: the repository whose id the card shows. The default is the one that the report names already.

    Raises:
        ValueError: `folder` has no `report.json`, another version of hf_compress wrote it, or the README that is there
            cannot be merged.

    Example:
        >>> from hf_compress import save_card
        >>> save_card("run/compressed")  # doctest: +SKIP
        PosixPath('run/compressed/README.md')
    """
    folder, report = Path(folder), Report.load(folder)
    existing = _text(folder / CARD_NAME) if (folder / CARD_NAME).is_file() else ""
    with written_aside(folder, CARD_NAME, replace=True) as aside:
        picture, curve = _draw(report, aside.parent)
        for name, drawn in ((PICTURE_NAME, picture), (CURVE_NAME, curve)):
            if drawn is None:
                (folder / name).unlink(missing_ok=True)
        report = replace(
            report,
            card_template=template_version(),
            card_picture=picture,
            card_curve=curve,
            hub_id=hub_id or report.hub_id,
            files=dict(sorted((contents(folder) | contents(aside.parent)).items())),
        )
        report.save(aside.parent)
        aside.write_text(render(report, existing), "utf-8")
    _write_results(folder, render_results(report))
    return folder / CARD_NAME


def is_current(folder: str | Path) -> bool:
    """Whether our part of the card in `folder` is what this version renders from its `report.json`.

    Raises:
        ValueError: `folder` has no `report.json`, another version of hf_compress wrote it, or the card cannot be
            merged.
    """
    report, card = Report.load(folder), Path(folder) / CARD_NAME
    if report.card_template != template_version() or not card.is_file():
        return False
    text, results = _text(card), Path(folder) / RESULTS_NAME
    found = results.read_text("utf-8") if results.is_file() else None
    return render(report, text) == text and render_results(report) == found


def _text(card: Path) -> str:
    try:
        return card.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{card} is not UTF-8 text. Save it as UTF-8, or remove it.") from error


def _draw(report: Report, folder: Path) -> tuple[str | None, str | None]:
    """Draw the pictures of the card, and return their file names; None for one that there is not.

    There is none without the extra `plots`, and no curve without points.
    """
    try:
        plot_sizes(report, folder / PICTURE_NAME)
        if report.curves:
            plot_curves(report, folder / CURVE_NAME)
    except MissingExtraError as error:
        logger.warning(f"The card has no picture. {error}")
        return None, None
    return PICTURE_NAME, CURVE_NAME if report.curves else None


def _write_results(folder: Path, results: str | None) -> None:
    """Write the scores for the Hub beside the card, or remove those of an earlier report."""
    if results is None:
        (folder / RESULTS_NAME).unlink(missing_ok=True)
        return
    with written_aside(folder, RESULTS_NAME, replace=True) as aside:
        aside.write_text(results, "utf-8")


def _in_order() -> list[Section]:
    return sorted(SECTIONS.values(), key=lambda section: section.order)


@cache
def _compiled(template: str) -> jinja2.Template:
    """The template of a section, which takes longer to compile than to fill in."""
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
    return environment.from_string(template)


def _escaped(value: Any) -> Any:
    return text(value) if isinstance(value, str) else value
