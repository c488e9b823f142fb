"""Size and quality: the scores of the dense and the compressed model, and every size."""

import math
from typing import Any

from hf_compress.report.markdown import Markdown, code, link, text
from hf_compress.report.report import Report
from hf_compress.report.scores import is_share
from hf_compress.report.section import Section

TEMPLATE = """\
| | dense | {% if report.teacher %}teacher | {% endif %}compressed | compressed to dense |
|---|---:|{% if report.teacher %}---:|{% endif %}---:|---:|
| weights on disk | {{ report.size.dense_bytes | size }} |{% if report.teacher %} |{% endif %} \
{{ report.size.packed_bytes | size }} | {{ "%.1f" | format(report.size.ratio) }}x smaller |
{% for row in scores %}
| {{ row.name }} | {{ row.dense }} |{% if report.teacher %} {{ row.teacher }} |{% endif %} \
{{ row.compressed }} | {{ row.difference }} |
{% endfor %}

The scores are those of {{ report.dataset.eval_rows | count }} rows of the split \
{{ report.dataset.eval_split | code }} of {{ dataset }}.
Scores between 0 and 1 are shown times 100, and their differences in points of one hundredth.
{% if report.dense is none %}
There is no dense baseline: no uncompressed model for this task was evaluated.
{% endif %}
{% if standard_error %}
The standard error of this accuracy is {{ "%.1f" | format(standard_error) }} points. Smaller differences mean little.
{% endif %}
On {{ report.parity_rows | count }} evaluation rows, the logits of the reloaded model differ from those of the \
trained model by at most {{ "%.3g" | format(report.parity) }}.

| size | bytes | rounded | of dense fp32 |
|---|---:|---:|---:|
{% for row in sizes %}
| {{ row.name }} | {{ row.bytes | count }} | {{ row.bytes | size }} | \
{{ "%.1f" | format(100 * row.bytes / report.size.dense_bytes) }} % |
{% endfor %}

The *analytic* size is the formula of Movva et al. (2022): bytes per weight x (embeddings + (1 - sparsity) x all other
weights). It leaves out masks, scales and headers, and no file has this size.
The *entropy bound* is the size that a perfect order-0 coder gives the integers, plus the raw bytes of everything else.
{% if report.card_picture %}

![Weights on disk by part of the model, dense fp32 and packed]({{ report.card_picture }})
{% endif %}
"""


def dataset_words(report: Report) -> Markdown:
    """The dataset by name: a link if the Hub has it."""
    dataset = report.dataset
    config = text(f" ({dataset.config})") if dataset.config else ""
    if dataset.hub_id is None:
        return Markdown(f"{code(dataset.name)} {config}, which is not a dataset of the Hub".replace(" ,", ","))
    address = f"https://huggingface.co/datasets/{dataset.hub_id}"
    return Markdown(f"{link(dataset.hub_id, address)} {config}".rstrip())


def metric_names(report: Report) -> list[str]:
    """The names of the scores: the main metric first, what is not a share of one last."""
    return sorted(report.compressed, key=lambda name: (not is_share(name), name != report.main_metric))


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    return {
        "dataset": dataset_words(report),
        "scores": [_score_row(report, name) for name in metric_names(report)],
        "standard_error": _standard_error(report),
        "sizes": _size_rows(report),
    }


def _score_row(report: Report, name: str) -> dict[str, str]:
    """One metric of the dense model, the teacher and the compressed model, as words."""
    scores = [(report.dense or {}).get(name), (report.teacher or {}).get(name), report.compressed[name]]
    shares = is_share(name) and all(abs(score) <= 1 for score in scores if score is not None)
    factor, form, unit = (100, ".2f", " points") if shares else (1, ".4g", "")
    dense, teacher, compressed = ("n/a" if s is None else f"{factor * s:{form}}" for s in scores)
    difference = "n/a" if scores[0] is None else f"{factor * (report.compressed[name] - scores[0]):+{form}}{unit}"
    label = Markdown(f"**{text(name)}**") if name == report.main_metric else name
    return {"name": label, "dense": dense, "teacher": teacher, "compressed": compressed, "difference": difference}


def _standard_error(report: Report) -> float | None:
    """The binomial standard error of an accuracy, in points; None for any other metric."""
    accuracy = report.compressed.get("accuracy", math.nan)
    if report.main_metric != "accuracy" or not 0 <= accuracy <= 1:
        return None
    return 100 * math.sqrt(accuracy * (1 - accuracy) / report.dataset.eval_rows)


def _size_rows(report: Report) -> list[dict[str, Any]]:
    size = report.size
    parts = [
        {"name": f"{kind}: {part}", "bytes": getattr(sizes, f"{kind}_bytes")}
        for kind in ("dense", "packed")
        for part, sizes in size.parts.items()
    ]
    dense, packed = parts[: len(size.parts)], parts[len(size.parts) :]
    return [
        {"name": Markdown("**dense fp32 file**"), "bytes": size.dense_bytes},
        *dense,
        {"name": Markdown("**packed file**"), "bytes": size.packed_bytes},
        *packed,
        {"name": "packed: header", "bytes": size.packed_bytes - sum(row["bytes"] for row in packed)},
        {"name": "analytic", "bytes": size.analytic_bytes},
        {"name": "entropy bound", "bytes": size.entropy_bytes},
    ]


SECTION = Section("quality", "Size and quality", 10, values, TEMPLATE)
