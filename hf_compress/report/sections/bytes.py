"""Bytes: every size of the model, and how exactly the file reproduces the trained model. Folded on the page."""

from typing import Any

from hf_compress.models.kinds import WITHOUT_HEAD
from hf_compress.models.sentences import SENTENCE_KINDS
from hf_compress.report.markdown import Markdown
from hf_compress.report.report import Report
from hf_compress.report.section import Section

TEMPLATE = """\
{% if report.card_picture %}
![Weights on disk by part of the model, dense fp32 and packed]({{ report.card_picture }})

{% endif %}
<details>
<summary>All sizes in bytes, and what they mean</summary>

| size | bytes | of dense fp32 |
|---|---:|---:|
{% for row in sizes %}
| {{ row.name }} | {{ row.bytes | count }} | {{ "%.1f" | format(100 * row.bytes / report.size.dense_bytes) }} % |
{% endfor %}

The *analytic* size is the formula of Movva et al. (2022): bytes per weight x (embeddings + (1 - sparsity) x all other
weights). It leaves out masks, scales and headers, and no file has this size.
{% if report.recipe.quantization.quant_step is not none %}
Here it counts 8 bits per weight. The file needs fewer, because larger steps leave fewer different integers.
{% endif %}
The *entropy bound* is the size that a perfect order-0 coder gives the integers, plus the raw bytes of everything else.

On {{ report.parity_rows | count }} evaluation rows, the {{ outputs }} of the reloaded model differ from those of the \
{% if report.is_trained %}trained{% else %}rounded{% endif %} model by at most {{ "%.3g" | format(report.parity) }}.

</details>
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    size = report.size
    parts = [
        {"name": f"{kind}: {part}", "bytes": getattr(sizes, f"{kind}_bytes")}
        for kind in ("dense", "packed")
        for part, sizes in size.parts.items()
    ]
    dense, packed = parts[: len(size.parts)], parts[len(size.parts) :]
    rows = [
        {"name": Markdown("**dense fp32 file**"), "bytes": size.dense_bytes},
        *dense,
        {"name": Markdown("**packed file**"), "bytes": size.packed_bytes},
        *packed,
        {"name": "packed: header", "bytes": size.packed_bytes - sum(row["bytes"] for row in packed)},
        {"name": "analytic", "bytes": size.analytic_bytes},
        {"name": "entropy bound", "bytes": size.entropy_bytes},
    ]
    outputs = "hidden states" if report.head == WITHOUT_HEAD.task else "logits"
    if report.sentence_class is not None and report.is_trained:
        outputs = "scores" if SENTENCE_KINDS[report.sentence_class].scores_pairs else "embeddings"
    return {"sizes": rows, "outputs": outputs}


SECTION = Section("bytes", "Size", 15, values, TEMPLATE)
