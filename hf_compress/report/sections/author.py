"""What the author wrote for the card, as it is."""

from typing import Any

from hf_compress.report.markdown import Markdown
from hf_compress.report.report import Report
from hf_compress.report.section import Section


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    return {"words": Markdown(report.author.get("text", "").strip())}


SECTION = Section("author", None, 8, values, "{{ words }}")
