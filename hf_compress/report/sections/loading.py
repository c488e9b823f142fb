"""How to load it: code for this folder and for each other format in it."""

from typing import Any

from hf_compress.export.formats import FORMATS
from hf_compress.report.markdown import Markdown, block
from hf_compress.report.report import Report
from hf_compress.report.section import Section

# Tasks of the Hub that `transformers.pipeline` does not know (checked on 5.23).
WITHOUT_PIPELINE = ("multiple-choice", "question-answering", "text2text-generation")

TEMPLATE = """\
{{ install }}

{{ packed }}
{% if pipeline %}

As a pipeline:

{{ pipeline }}
{% endif %}
{% for format in formats %}

The format {{ format.name | code }}:

{{ format.code }}
{% endfor %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    imports, _, rest = _code(report, "packed").partition("\n\n")
    folder = 'folder = "path/to/this/folder"  # or the id of this repository'
    return {
        "install": block("pip install hf-compress", "bash"),
        "packed": block(f"{imports}\n\n{folder}\n{rest}", "python"),
        "pipeline": _pipeline(report),
        "formats": [{"name": name, "code": block(_code(report, name), "python")} for name in report.formats],
    }


def _code(report: Report, name: str) -> str:
    return FORMATS[name].loading.replace("{auto_class}", report.auto_class)


def _pipeline(report: Report) -> Markdown | None:
    if report.pipeline_tag in WITHOUT_PIPELINE:
        return None
    lines = ["from transformers import pipeline", "", f'predict = pipeline("{report.pipeline_tag}", model=folder)']
    return block("\n".join(lines), "python")


SECTION = Section("loading", "How to load it", 50, values, TEMPLATE)
