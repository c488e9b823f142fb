"""Evaluation: the scores of the dense and the compressed model, their difference, and what these words mean."""

from collections.abc import Iterator
from typing import Any

from hf_compress.report.extra_set import on_extra
from hf_compress.report.markdown import Markdown, code, text
from hf_compress.report.phrases import (
    base_words,
    dataset_words,
    difference,
    difference_to_control,
    in_points,
    interval_words,
    is_part,
    metric_names,
    shown,
    spelt,
    split_words,
)
from hf_compress.report.report import Report
from hf_compress.report.scores import AGREEMENT, DISTORTION, DIVERGENCE, RANKING, RMSE
from hf_compress.report.section import Section

# What scores mean that compare a model with the dense one.
ALIKE = {
    AGREEMENT: "is how often the largest answer is the one of the dense model.",
    DIVERGENCE: "is the mean divergence of the answers from those of the dense model, in nats.",
    RMSE: "is the root mean square of the differences of the answers.",
    DISTORTION: "is the mean of 1,000 x (1 - cosine) of the embeddings of both models.",
    RANKING: "is the Spearman correlation of the similarities of pairs of rows in both models.",
}
TEMPLATE = """\
{% for set in sets %}
{% if not loop.first %}

### On further rows

{% endif %}
{% if set.report.dense is none %}
| | this model | interval |
|---|---:|---:|
{% for row in set.scores %}
| {{ row.name }} | {{ row.compressed }} | {{ row.interval }} |
{% endfor %}
{% else %}
| | dense | this model | change |
|---|---:|---:|---:|
{% for row in set.scores %}
| {{ row.name }} | {{ row.dense }} | {{ row.compressed }} | {{ row.difference }} |
{% endfor %}
{% endif %}
{% if set.report.control %}

| | control | this model | change |
|---|---:|---:|---:|
{% for row in set.scores %}
| {{ row.name }} | {{ row.control }} | {{ row.compressed }} | {{ row.from_control }} |
{% endfor %}
{% endif %}

- **Rows.** {{ set.report.dataset.eval_rows | count }} rows: {{ set.split | code }} of {{ dataset }}
{%- if report.dataset.revision %} at revision {{ report.dataset.revision[:12] | code }}{% endif %}.
{% if not loop.first %}
  They have labels, and the training has not seen them.
{% elif not report.is_trained %}
  The steps were chosen on other rows.
{% elif set.part %}
  This is a part of the split, so the scores are not those of the whole split.
{% endif %}
{% if points and loop.first %}
- **Points.** Scores between 0 and 1 are shown times 100, and so are their changes.
{% endif %}
{% if set.intervals %}
- **Intervals.** {{ set.intervals }}
{% endif %}
{% for sentence in set.without_interval %}
- **No interval.** {{ sentence }}
{% endfor %}
{% if set.equal %}
- **Equal?** {{ set.equal }}
{% endif %}
{% if loop.first %}
- **Dense** {{ dense }}
{% if control %}
- **Control.** {{ control }}
{% endif %}
{% if teacher %}
- **The teacher** scores {{ teacher }} on the same rows.
{% endif %}
{% for sentence in alike %}
- {{ sentence }}
{% endfor %}
{% if report.is_trained %}
- **One run.** Another seed gives another score.{% if set.intervals %} The intervals do not include that.{% endif %}

{% endif %}
{% elif set.report.without_control %}
- **No control.** {{ set.report.without_control }}
{% endif %}
{% endfor %}
"""


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    names = metric_names(report)
    return {
        "sets": [_set(one) for one in (report, on_extra(report)) if one is not None],
        "dataset": dataset_words(report),
        "points": any(in_points(report, name) for name in names),
        "control": _control(report),
        "dense": _dense(report),
        "teacher": _teacher(report, names),
        "alike": [Markdown(f"**{_capital(spelt(name))}** {words}") for name, words in ALIKE.items() if name in names],
    }


def _set(report: Report) -> dict[str, Any]:
    """What the card says of one evaluation set."""
    return {
        "report": report,
        "scores": [_row(report, name) for name in metric_names(report)],
        "split": split_words(report.dataset),
        "part": is_part(report.dataset),
        "intervals": _intervals(report),
        "without_interval": [Markdown(f"{code(name)}: {text(why)}") for name, why in report.without_interval.items()],
        "equal": " ".join(_equal(report)),
    }


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _row(report: Report, name: str) -> dict[str, str]:
    scores = [(report.dense or {}).get(name), report.compressed[name]]
    dense, compressed = (shown(report, name, score) for score in scores)
    label = Markdown(f"**{text(spelt(name))}**") if name == report.main_metric else spelt(name)
    own = report.intervals.get(name)
    control = None if report.control is None else report.control.scores.get(name)
    return {
        "name": label,
        "dense": dense,
        "compressed": compressed,
        "difference": difference(report, name, short=True) or "n/a",
        "control": shown(report, name, control),
        "from_control": difference_to_control(report, name, short=True) or "n/a",
        "interval": "n/a" if own is None else interval_words(own, in_points(report, name), sign="", short=True),
    }


def _intervals(report: Report) -> str:
    """What the intervals count and how they were computed."""
    methods: dict[str, list[str]] = {}
    control = {} if report.control is None else report.control.comparison
    intervals = report.comparison or control or report.intervals
    for name, interval in intervals.items():
        how = f"{interval.method}; {interval.count:,} {interval.units}"
        methods.setdefault(how, []).append(spelt(name))
    levels = sorted({f"{100 * interval.level:g} %" for interval in intervals.values()})
    said = " ".join(f"{', '.join(names)}: {how}." for how, names in methods.items())
    return f"The intervals in brackets are {' and '.join(levels)} intervals. {said}" if said else ""


def _equal(report: Report) -> Iterator[str]:
    """Whether the rows show a difference to the dense model, and to the control."""
    control = {} if report.control is None else report.control.comparison
    both = bool(control)
    for name, comparison in (("dense model", report.comparison), ("control", control)):
        interval, to = comparison.get(report.main_metric), f" to the {name}" if both else ""
        if interval is None:
            continue
        if interval.p_value is not None:
            who = f"this model and the {name}" if both else "both models"
            yield f"McNemar's exact test that {who} are right equally often: p = {interval.p_value:.2g}."
        elif interval.excludes_zero:
            yield f"The interval of the main score{to} leaves out zero: these rows show a difference."
        else:
            yield f"The interval of the main score{to} holds zero: these rows show no difference."


def _control(report: Report) -> Markdown | None:
    """What the control is, or why there is none."""
    control = report.control
    if control is None:
        return None if report.without_control is None else text(report.without_control)
    length = f"{control.steps:,} steps"
    if control.steps != report.train_steps:
        length += f"; this model was trained for {report.train_steps:,}"
    return Markdown(f"{code(control.name)} is the same training without any method ({length}), on the same rows.")


def _dense(report: Report) -> Markdown:
    """What "dense" means on this card."""
    whole = "all its layers" if report.recipe.distillation.student_layers is not None or report.depth else ""
    tokens = "all its tokens" if report.vocabulary is not None else ""
    uncut = " and ".join(part for part in (whole, tokens) if part)
    with_all = f", with {uncut}" if uncut else ""
    baseline = report.baseline
    if not report.is_trained:
        return Markdown(f"is {base_words(report)} in fp32, which this model was made from.")
    if report.dense is None:
        return Markdown(
            f"is the same model in fp32, uncompressed{with_all}. Only its size is known: no dense model of this task "
            "was evaluated."
        )
    if baseline is None:
        return Markdown(f"is an uncompressed model of this task in fp32{with_all}.")
    if not baseline.start:
        return Markdown(f"is an uncompressed model in fp32{with_all}, whose scores the training script gave.")
    name = f", {code(baseline.name)}" if baseline.name else ""
    trained = _length(baseline.epochs, baseline.steps)
    before = f" It had been trained for this task for {trained}." if trained else " It had a trained head for it."
    if report.sentence_class is not None and not trained:
        before = " It was trained before."
    own = report.hyperparameters.get("num_train_epochs")
    more = _length(own if isinstance(own, int | float) else None, report.train_steps)
    return Markdown(
        f"is the model that this training started from{name}, uncompressed and in fp32{with_all}.{before} The "
        f"compressed model was trained for {more} more; the dense model was not."
    )


def _length(epochs: float | None, steps: int | None) -> str:
    """A length of training in words; empty if it is unknown."""
    if epochs is not None:
        return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
    return f"{steps:,} steps" if steps else ""


def _teacher(report: Report, names: list[str]) -> str:
    teacher, dense = report.teacher or {}, report.dense or {}
    if all(dense.get(name) == score for name, score in teacher.items()):  # It is the dense model.
        return ""
    return ", ".join(f"{shown(report, name, teacher[name])} {spelt(name)}" for name in names if name in teacher)


SECTION = Section("evaluation", "Evaluation", 10, values, TEMPLATE)
