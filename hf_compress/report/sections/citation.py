"""Citation: the study, the sources of the methods that were used, and the software."""

from typing import Any

from hf_compress.report.descriptors import citations
from hf_compress.report.markdown import block
from hf_compress.report.report import Report
from hf_compress.report.section import Section

STUDY = """\
@inproceedings{movva-etal-2022-combining,
  title     = {Combining Compressions for Multiplicative Size Scaling on Natural Language Tasks},
  author    = {Movva, Rajiv and Lei, Jinhao and Longpre, Shayne and Gupta, Ajay and DuBois, Chris},
  booktitle = {Proceedings of the 29th International Conference on Computational Linguistics},
  year      = {2022},
  url       = {https://arxiv.org/abs/2208.09684}
}"""

TEMPLATE = """\
<details>
<summary>BibTeX of the study, the methods and the software</summary>

The study that this work follows:

{{ study }}
{% if sources %}

The methods:

{{ sources }}
{% endif %}

The software:

{{ software }}

</details>
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    sources = "\n\n".join(entry for entry in citations(report) if entry != STUDY)
    return {
        "study": block(STUDY, "bibtex"),
        "sources": block(sources, "bibtex") if sources else "",
        "software": block(_software(report), "bibtex"),
    }


def _software(report: Report) -> str:
    version = report.versions.get("hf_compress", "")
    return "\n".join(
        [
            "@software{hf_compress,",
            "  title   = {hf_compress: distillation, pruning and quantization inside the Transformers Trainer},",
            "  author  = {The hf_compress authors},",
            *([f"  version = {{{version}}},"] if version[:1].isdigit() else []),
            f"  year    = {{{report.created[:4]}}}",
            "}",
        ]
    )


SECTION = Section("citation", "Citation", 70, values, TEMPLATE)
