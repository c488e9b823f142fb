"""Speed: the latency of each variant, if `hf-compress bench --save` has measured it."""

from typing import Any

from hf_compress.report.latency import Latency
from hf_compress.report.markdown import Markdown, text
from hf_compress.report.report import Report
from hf_compress.report.section import Section

TEMPLATE = """\
{% if speed %}
{{ speed }}

{% endif %}
{% if latency %}
Measured on {{ latency.hardware }} with {{ latency.threads }} thread{{ "" if latency.threads == 1 else "s" }}. \
The variants took turns for {{ latency.rounds }} rounds.
The time is the median time of a batch.
The speed-up is over {{ latency.baseline }}, with its 95 % interval.

| variant | batch | time | speed-up |
|---|---:|---:|---:|
{% for row in rows %}
| {{ row.variant }} | {{ row.shape }} | {{ row.time }} | {{ row.speedup }} |
{% endfor %}

<details>
<summary>Files, spread and throughput</summary>

| variant, batch | file | middle half | rows per second |
|---|---:|---:|---:|
{% for row in rows %}
| {{ row.variant }}, {{ row.shape }} | {{ row.bytes | size }} | {{ row.quartiles }} | {{ row.throughput }} |
{% endfor %}

</details>

`torch-fp32` is the same architecture without rounding. `torch-dense` is this model as `from_pretrained` loads it,
and `torch-int8` is this model loaded with `CompressionConfig(run="int8")`.
{% endif %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    latency = report.latency
    return {"speed": _goal_words(report), "latency": latency, "rows": [] if latency is None else _rows(latency)}


def _goal_words(report: Report) -> Markdown | None:
    """The speed-up that was asked for and the one that was measured; None if none was asked for."""
    speed = report.speed
    if speed is None:
        return None
    least, most = speed.measured.interval
    missed = " The target is missed." if speed.missed else ""
    return Markdown(
        f"The target was {speed.target:g} times the speed of the whole model in the same number format, at "
        f"{speed.shape}. Measured: **{speed.measured.ratio:.2f}** times (95 % interval {least:.2f} to {most:.2f}); "
        f"expected before training: {speed.predicted:.2f}. Both graphs took turns in {text(speed.runtime)} on "
        f"{text(speed.machine)}.{missed}"
    )


def _rows(latency: Latency) -> list[dict[str, Any]]:
    sizes = {variant.name: variant.file_bytes for variant in latency.variants}
    rows = []
    for timing in latency.timings:
        low, high = (1e3 * seconds for seconds in timing.quartiles)
        least, most = timing.speedup.interval
        rows.append(
            {
                "variant": timing.variant,
                "bytes": sizes[timing.variant],
                "shape": timing.shape,
                "time": f"{1e3 * timing.seconds:.4g} ms",
                "quartiles": f"{low:.4g} to {high:.4g}",
                "throughput": f"{timing.throughput:.4g}",
                "speedup": "1"
                if timing.variant == latency.baseline
                else f"{timing.speedup.ratio:.2f} ({least:.2f} to {most:.2f})",
            }
        )
    return rows


SECTION = Section("speed", "Speed", 30, values, TEMPLATE)
