"""A section of the card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_compress.report.report import Report

Values = Callable[[Report], Mapping[str, Any]]


@dataclass(frozen=True)
class Section:
    """A section of the card: values from a report, put into a template.

    The template is Jinja. It sees `report`, the values, and the filters `size`, `count`, `percent`, `duration`,
    `listed` and `code`. Every string is escaped for Markdown unless `report.markdown` made it. A section whose
    template gives nothing is left out.

    Args:
        name: the key in `card.SECTIONS`.
        title: the heading; None for no heading.
        order: sections with smaller numbers come first.
        values: a function from the report to the names that the template uses.
        template: the text.

    Example:
        >>> from hf_compress.report import SECTIONS, Section
        >>> words = "The training took {{ report.train_steps }} steps."
        >>> SECTIONS["steps"] = Section("steps", "Steps", 45, lambda report: {}, words)  # doctest: +SKIP
    """

    name: str
    title: str | None
    order: int
    values: Values
    template: str
