"""Other formats: what the model was exported to, how large that is and how close to the packed file."""

from typing import Any

from hf_compress.export.formats import FORMATS
from hf_compress.report.markdown import Markdown, code, text
from hf_compress.report.phrases import shown, spelt
from hf_compress.report.report import Report
from hf_compress.report.section import Section
from hf_compress.report.units import percent

TEMPLATE = """\
{% if rows %}
| format | on disk | {{ metric }} | logits differ by |
|---|---:|---:|---:|
{% for row in rows %}
| {{ row.name }} | {{ row.stored_bytes | size }} | {{ row.score }} | {{ row.parity }} |
{% endfor %}

{% for row in rows %}
- {{ row.words }}
{% if row.native %}
  The CPU that it was measured on has no VNNI: with its own int8 kernels, which saturate, the logits deviate by \
{{ row.native }} of their spread.
{% endif %}
{% endfor %}

The last column is the largest difference of a logit from the packed file.
Each format was written from the packed file, and its scores were measured in its own runtime.
Integer kernels add in another order than training does, so a value can be rounded to the neighbouring integer.
{% endif %}
{% if failed %}

{% for row in failed %}
- **Not written: {{ row.name }}.** {{ row.why }}
{% endfor %}
{% endif %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    metric = report.main_metric
    rows = [
        {
            "name": FORMATS[name].runtime or name,
            "words": Markdown(FORMATS[name].card),
            "stored_bytes": facts.stored_bytes,
            "score": shown(report, metric, facts.scores.get(metric)),
            "parity": f"{facts.parity:.2g}",
            "native": "" if facts.native_deviation is None else percent(facts.native_deviation),
        }
        for name, facts in report.formats.items()
    ]
    failed = [{"name": code(name), "why": text(why)} for name, why in report.failed_formats.items()]
    return {"rows": rows, "failed": failed, "metric": spelt(metric)}


SECTION = Section("other_formats", "Other formats", 20, values, TEMPLATE)
