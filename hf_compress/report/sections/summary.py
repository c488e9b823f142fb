"""The first lines of the card: what the model is, what was done to it and how large it is."""

from typing import Any

from hf_compress.report.markdown import Markdown, code, link, one_line
from hf_compress.report.report import Report
from hf_compress.report.section import Section

TEMPLATE = """\
# {{ title }}

This is a {{ report.model_class | code }}, trained on {{ report.task }} from {{ base }}
{%- if report.base_model_revision %} (revision {{ report.base_model_revision[:12] | code }}){% endif %}.
{% if done %}
During that training it was {{ done | listed }}.
{% else %}
Its weights were not compressed.
{% endif %}
Its weights take {{ report.size.packed_bytes | size }} on disk. \
{{ dense }} takes {{ report.size.dense_bytes | size }} in dense fp32, \
{{ "%.1f" | format(report.size.ratio) }} times as much.

[hf_compress](https://pypi.org/project/hf-compress/) measured all numbers on this page. They are also in `report.json`.
The numbers of the compressed model were measured after reloading it from these files.
"""


def title(report: Report) -> str:
    """A name for the model, from its base, its task and its recipe."""
    base = report.base_model.rstrip("/").rpartition("/")[2] or report.base_model
    return one_line(f"{base} for {report.task} ({report.recipe.name})")


def base_words(report: Report) -> Markdown:
    """The model that training started from: a link if the Hub has it."""
    hub_id = report.base_model_hub_id
    return link(hub_id, f"https://huggingface.co/{hub_id}") if hub_id else code(report.base_model)


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    layers = report.recipe.distillation.distill_student_layers is not None
    whole = [*(["all its layers"] if layers else []), *(["its whole vocabulary"] if report.vocabulary else [])]
    return {
        "title": title(report),
        "base": base_words(report),
        "done": _done(report),
        "dense": f"The model with {' and '.join(whole)}" if whole else "The same model",
    }


def _done(report: Report) -> list[str]:
    recipe, done = report.recipe, []
    if report.vocabulary is not None:
        done.append("cut down to the words of its training texts")
    if recipe.distillation.student_layers is not None:
        done.append("cut down to fewer layers")
    if recipe.distillation.enabled:
        done.append("distilled from a teacher")
    if recipe.pruning.enabled:
        done.append(f"pruned ({100 * recipe.pruning.prune_sparsity:g} % of the weights of its linear layers are zero)")
    if recipe.quantization.enabled:
        done.append(Markdown(f"quantized ({code(str(recipe.quantization.quant_scheme))})"))
    return done


SECTION = Section("summary", None, 0, values, TEMPLATE)
