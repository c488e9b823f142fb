"""The first screen of the card: what the model does, how large and how good it is, and what was done to it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hf_compress.models.kinds import WITHOUT_HEAD
from hf_compress.models.sentences import SENTENCE_KINDS
from hf_compress.report.descriptors import pattern
from hf_compress.report.extra_set import on_extra, sharper
from hf_compress.report.markdown import Markdown, code, listed, text
from hf_compress.report.phrases import (
    base_words,
    dataset_words,
    difference,
    difference_to_control,
    in_points,
    interval_words,
    package,
    shown,
    spelt,
    task_words,
    title,
)
from hf_compress.report.report import Report
from hf_compress.report.scores import AGREEMENT, DISTORTION, RMSE
from hf_compress.report.section import Section
from hf_compress.report.structure import depth_words, structure_words

MOST_LABELS = 8
# The main score of a model that was compared with the dense one without labels.
ALIKE = {
    AGREEMENT: "Its answers agree with those of the dense model in {} %",
    RMSE: "Its answers differ from those of the dense model by {} (root mean square)",
    DISTORTION: "The distortion of its embeddings, 1,000 x (1 - cosine) to the dense model, is {}",
}
TEMPLATE = """\
# {{ title }}

{% if report.is_trained %}
{{ does }} It was trained on {{ data }}, starting from {{ base }}.
{% else %}
{{ does }} It is {{ base }} with rounded weights, and was not trained.
{% endif %}

**{{ report.size.packed_bytes | size }} instead of {{ report.size.dense_bytes | size }}: \
{{ "%.1f" | format(report.size.ratio) }} times smaller. {{ score }}**
{% if report.verdict %}

**{{ report.verdict }}**{% if reasons %}: {{ reasons }}{% endif %}

{% endif %}

{{ done }} {{ package }} measured all numbers on this page after loading these files again. \
They are also in [report.json](report.json).
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    return {
        "title": title(report),
        "does": _does(report),
        "data": _data(report),
        "base": base_words(report),
        "score": " ".join([_score(report), *_further(report)]),
        "done": _done(report),
        "reasons": text(" ".join(report.reasons)),
        "package": package(),
    }


def _data(report: Report) -> Markdown:
    """The data, by the name of the task if it is a part of a larger dataset."""
    dataset = report.dataset
    if dataset.config is None:
        return dataset_words(report)
    whole = dataset_words(replace(report, dataset=replace(dataset, config=None)))
    return Markdown(f"{text(task_words(report))} of {whole}")


def _does(report: Report) -> Markdown:
    """What the model does, in a sentence."""
    pair = report.dataset.preprocessing is not None and len(report.dataset.preprocessing.columns) == 2
    pair = pair or (report.example is not None and len(report.example.inputs) == 2)
    subject = "a pair of texts" if pair else "a text"
    names = [code(name) for name in (report.labels or {}).values()]
    few = Markdown(f": {listed(names)}") if 0 < len(names) <= MOST_LABELS else ""
    classes = f"{len(names)} classes{few}" if names else "classes"
    kind = SENTENCE_KINDS.get(report.sentence_class or "")
    if kind is not None and not names:
        return Markdown(kind.does)
    if report.head == "regression":
        return Markdown(f"This model gives {subject} a number.")
    if report.head == "sequence classification":
        return Markdown(f"This model sorts {subject} into {classes}.")
    if report.head == "multi-label classification":
        return Markdown(f"This model gives {subject} any of {len(names) or 'several'} labels{few}.")
    if report.head == "token classification":
        entities = dict.fromkeys(name.removeprefix("B-").removeprefix("I-") for name in (report.labels or {}).values())
        names = [code(name) for name in entities if name != "O"]
        few = Markdown(f": {listed(names)}") if 0 < len(names) <= MOST_LABELS else ""
        return Markdown(f"This model labels the words of a text{few}.")
    if report.head == WITHOUT_HEAD.task:
        return Markdown("This model turns a text into an embedding.")
    return Markdown(f"This is a model for {text(report.head)}.")


def _score(report: Report) -> str:
    """The main score, against the dense model where there is one."""
    metric = report.main_metric
    if metric in ALIKE:
        interval = report.intervals.get(metric)
        value = shown(report, metric, report.compressed[metric])
        within = "" if interval is None else f" ({interval_words(interval, in_points(report, metric), sign='')})"
        return f"{ALIKE[metric].format(value)}{within}, on {report.dataset.eval_rows:,} rows."
    name, score = spelt(metric).capitalize() if metric.islower() else metric, report.compressed[metric]
    said = f"{name} {shown(report, metric, score)}"
    apart = difference(report, metric)
    if apart is not None:
        dense = shown(report, metric, (report.dense or {})[metric])
        return f"{said} against {dense} of the dense model: {apart}."
    if (interval := report.intervals.get(metric)) is not None:
        return f"{said} ({interval_words(interval, in_points(report, metric), sign='')})."
    return f"{said}."


def _further(report: Report) -> Iterator[str]:
    """The main score on the further rows, and the difference to the control on the rows that count."""
    metric, extra = report.main_metric, on_extra(report)
    if extra is not None:
        score, apart = shown(extra, metric, extra.compressed[metric]), difference(extra, metric)
        said = "" if apart is None else f" against {shown(extra, metric, (extra.dense or {})[metric])}: {apart}"
        yield f"On {extra.dataset.eval_rows:,} further rows {score}{said}."
    counted = sharper(report)
    apart = difference_to_control(counted, metric)
    if apart is not None:
        rows = f" on {counted.dataset.eval_rows:,} rows" if extra is not None else ""
        yield f"Against the same training without compression{rows}: {apart}."


def _done(report: Report) -> Markdown:
    """What was done to the model during training, in a sentence."""
    recipe, done = report.recipe, list[str]()
    if report.vocabulary is not None:
        done.append("cut down to the tokens of its training texts")
    if recipe.distillation.student_layers is not None:
        done.append("cut down to fewer layers")
    if recipe.distillation.enabled:
        done.append("distilled from a teacher")
    if recipe.pruning.enabled:
        share = 100 * recipe.pruning.prune_sparsity
        left = structure_words(report.structure)
        units, pruned = pattern(report).units, report.touched.get("pruned")
        if pruned is not None and pruned.convolutions:
            units = units.replace("linear layers", "linear layers and convolutions")
        zeros = f"{share:g} % of the {units} are zero"
        done.append(f"pruned ({f'{left} are left' if left else zeros})")
    if report.depth is not None:
        done.append(f"reduced to {depth_words(report.depth)}")
    if recipe.quantization.enabled:
        bits = "" if report.steps is None else f", {report.steps.bits_per_weight:.1f} bits per weight in the file"
        done.append(Markdown(f"quantized ({code(str(recipe.quantization.quant_scheme))}{bits})"))
    if not done:
        return Markdown("Its weights were not compressed.")
    when = "During training" if report.is_trained else "Without training"
    return Markdown(f"{when} it was {listed(done)}.")


SECTION = Section("summary", None, 0, values, TEMPLATE)
