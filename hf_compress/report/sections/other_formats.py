"""Other formats: what the model was exported to, how large that is and how close to the packed file."""

from typing import Any

from hf_compress.export.formats import FORMATS
from hf_compress.report.markdown import Markdown, code
from hf_compress.report.report import Report
from hf_compress.report.scores import is_share
from hf_compress.report.section import Section

TEMPLATE = """\
{% if rows %}
| format | where | on disk | {{ report.main_metric }} | largest difference of a logit |
|---|---|---:|---:|---:|
{% for row in rows %}
| {{ row.name }} | {{ row.path }} | {{ row.stored_bytes | size }} | {{ row.score }} | {{ row.parity }} |
{% endfor %}

{% for row in rows %}
- {{ row.words }}
{% endfor %}

Each format was written from the packed file, and its scores were measured in its own runtime.
Integer kernels add in another order than training does, so a value can be rounded to the neighbouring integer.
{% endif %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    rows = [
        {
            "name": name,
            "path": code(FORMATS[name].path.as_posix()),
            "words": Markdown(FORMATS[name].card),
            "stored_bytes": facts.stored_bytes,
            "score": _score(report.main_metric, facts.scores.get(report.main_metric)),
            "parity": f"{facts.parity:.3g}",
        }
        for name, facts in report.formats.items()
    ]
    return {"rows": rows}


def _score(name: str, score: float | None) -> str:
    if score is None:  # A loss, which runtimes do not compute.
        return "n/a"
    return f"{100 * score:.2f}" if abs(score) <= 1 and is_share(name) else f"{score:.4g}"


SECTION = Section("other_formats", "Other formats", 20, values, TEMPLATE)
