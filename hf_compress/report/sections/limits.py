"""Limits: what the model should not be used for."""

from typing import Any

from hf_compress.report.markdown import Markdown, listed, text
from hf_compress.report.phrases import base_words, task_words
from hf_compress.report.reading import READING
from hf_compress.report.report import Report
from hf_compress.report.section import Section
from hf_compress.report.sections.making import is_static
from hf_compress.report.snippets import reads_itself
from hf_compress.report.structure import depth_words, structure_words

TEMPLATE = """\
{% if report.is_trained %}
- **Use it for {{ task }} only.** It knows this task, and {% if texts %}the language and kind{% else %}the kind{% endif %} of its training data.
{% else %}
- **It answers nearly as {{ base }} does**, on texts like those that its bytes were spent by. On other texts it may be less exact.
{% endif %}
{% if not reads_itself %}
- **It needs hf_compress.** Transformers alone cannot read the packed weights.
{%- if report.formats %} The other formats need no hf_compress.{% endif %}

{% endif %}
{% if removed %}
- **Only what was removed saves memory and time.** {{ removed }} are left. Loading unpacks the other weights to floating point
{%- if report.formats %} in Transformers{% endif %}, which takes as much memory and time as in a dense model of that shape.
{% else %}
- **It saves disk, not memory or time.** Loading unpacks the weights to floating point
{%- if report.formats %} in Transformers{% endif %}. The loaded model takes as much memory as the dense model, and at least as much time.
{% endif %}
{% if report.recipe.quantization.enabled %}
  To keep the integers in a quarter of the memory, pass `quantization_config=hf_compress.CompressionConfig(run="int8")` to `from_pretrained`.
{% endif %}
{% if report.recipe.pruning.enabled and not report.structure %}
  The zeros make the file smaller, but PyTorch computes with them as with any other number.
{% endif %}
{% if report.vocabulary %}
- **Words outside the training texts** are split into smaller pieces than in the base model, so this model understands them less well.
{% endif %}
{% if static %}
- **Inputs unlike the {% if report.is_trained %}training data{% else %}sample{% endif %} are clipped.** The ranges of the int8 activations are fixed, and values outside them are clipped.
{% endif %}
- **Bias and robustness were not measured.** The licences and the limits of {{ base }} and of the data apply.
"""  # noqa: E501


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    return {
        "static": is_static(report),
        "texts": report.pipeline_tag not in READING,
        "removed": _removed(report),
        "base": base_words(report),
        "task": task_words(report),
        "reads_itself": reads_itself(report),
    }


def _removed(report: Report) -> Markdown:
    """What is left of the layers, their neurons and their heads; empty if nothing was removed."""
    depth = "" if report.depth is None else depth_words(report.depth)
    return listed([text(words) for words in (depth, structure_words(report.structure)) if words])


SECTION = Section("limits", "Limits", 60, values, TEMPLATE)
