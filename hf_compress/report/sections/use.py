"""How to use it: code that runs as it stands, for this package and for every other format in the folder."""

from typing import Any

from hf_compress.report.markdown import Markdown, block, code, listed
from hf_compress.report.report import Report
from hf_compress.report.section import Section
from hf_compress.report.snippets import FOLDER, snippets

MOST_LABELS = 30
TEMPLATE = """\
{% if local %}
Put the path of this folder in the place of {{ folder }}.

{% endif %}
{% if labels %}
{{ labels }}

{% endif %}
{% for snippet in snippets %}
### {{ snippet.title }}

{% if snippet.install %}
{{ snippet.install }}

{% endif %}
{{ snippet.code }}

{% endfor %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    return {
        "local": report.hub_id is None,
        "folder": code(FOLDER),
        "labels": _labels(report),
        "snippets": [
            {
                "title": snippet.title,
                "install": block(snippet.install, "bash"),
                "code": block(snippet.code, snippet.language),
            }
            for snippet in snippets(report)
        ],
    }


def _labels(report: Report) -> Markdown:
    """The names of the classes by their numbers."""
    labels = report.labels or {}
    if not labels:
        return Markdown("")
    if len(labels) > MOST_LABELS:
        return Markdown(f"The names of its {len(labels):,} classes are in `report.json`, under `labels`.")
    return Markdown(
        f"Its classes: {listed([Markdown(f'{number} is {code(name)}') for number, name in labels.items()])}."
    )


SECTION = Section("use", "Use it", 5, values, TEMPLATE)
