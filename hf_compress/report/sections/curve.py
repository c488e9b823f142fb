"""The training curve: loss, score and sparsity over the steps of training, as a picture."""

from typing import Any

from hf_compress.report.phrases import spelt
from hf_compress.report.report import Report
from hf_compress.report.section import Section

TEMPLATE = """\
{% if report.card_curve %}
![{{ names }} over the steps of training]({{ report.card_curve }})
{% endif %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    names = ", ".join(spelt(name) for name in report.curves)
    return {"names": names[:1].upper() + names[1:]}


SECTION = Section("curve", "Training curve", 35, values, TEMPLATE)
