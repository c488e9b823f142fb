"""How to load it: code for this folder and for each other format in it."""

from typing import Any

from hf_compress.report.descriptors import export_format
from hf_compress.report.markdown import block
from hf_compress.report.report import Report
from hf_compress.report.section import Section

# Tasks of the Hub that `transformers.pipeline` does not know (checked on 5.23).
WITHOUT_PIPELINE = ("multiple-choice", "question-answering", "text2text-generation")

TEMPLATE = """\
{{ install }}

{{ packed }}
{% for format in formats %}

The format {{ format.name | code }} needs no hf_compress:

{{ format.code }}
{% endfor %}
"""


def values(report: Report) -> dict[str, Any]:
    """What the template needs."""
    pipeline = report.pipeline_tag not in WITHOUT_PIPELINE
    lines = [
        "import hf_compress  # teaches Transformers this file format",
        f"from transformers import {report.auto_class}{', pipeline' if pipeline else ''}",
        "",
        'folder = "path/to/this/folder"  # or the id of this repository',
        f"model = {report.auto_class}.from_pretrained(folder)",
    ]
    if pipeline:
        lines.append(f'predict = pipeline("{report.pipeline_tag}", model=folder)')
    return {
        "install": block("pip install hf-compress", "bash"),
        "packed": block("\n".join(lines), "python"),
        "formats": [{"name": name, "code": block(export_format(name).loading, "python")} for name in report.formats],
    }


SECTION = Section("loading", "How to load it", 50, values, TEMPLATE)
