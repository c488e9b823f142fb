"""Phrases that several parts of the card share: what the model, its task, its data and its scores are called."""

import re
from collections.abc import Mapping

from hf_compress.release import NAME, ON_PYPI, REPOSITORY
from hf_compress.report.descriptors import pattern
from hf_compress.report.intervals import Interval
from hf_compress.report.markdown import Markdown, code, link, one_line, text
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.scores import DIVERGENCE, RANKING, RMSE, is_share
from hf_compress.report.units import human_bytes

HUB = "https://huggingface.co"
# The tasks of GLUE as their authors write them.
GLUE = {"sst2": "SST-2", "stsb": "STS-B", "cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qqp": "QQP"} | {
    name: name.upper() for name in ("qnli", "rte", "wnli")
}
# What scripts call a folder for a model, inside of the folder that has a name.
NAMELESS = re.compile(r"final|best|best_model|model|compressed|out|output|outputs|checkpoint-\d+")
SPELT = {"f1": "F1", "mse": "MSE", "mae": "MAE", "rmse": "RMSE"} | {
    DIVERGENCE: "KL divergence",
    RMSE: "RMSE to the dense model",
    RANKING: "ranking of similarities",
}


def title(report: Report) -> str:
    """A name for the model: the author's, or else one from its base, its task, its size and its methods."""
    if "title" in report.author:
        return one_line(report.author["title"])
    base, size = _base_name(report), human_bytes(report.size.packed_bytes)
    if not report.is_trained:
        return one_line(f"{base}, {size}, {methods(report)}")
    return one_line(f"{base} for {task_words(report)}, {size}, {methods(report)}")


def _base_name(report: Report) -> str:
    """The last part of the base model's Hub id or path that is a name."""
    parts = [part for part in report.base_model.split("/") if part] or [report.base_model]
    if report.base_model_hub_id is None:
        return next((part for part in reversed(parts) if not NAMELESS.fullmatch(part)), parts[-1])
    return parts[-1]


def methods(report: Report) -> str:
    """What was done to the model, in few words."""
    recipe = report.recipe
    done = [str(recipe.quantization.quant_scheme)] if recipe.quantization.enabled else []
    if recipe.pruning.enabled:
        kinds = pattern(report).kinds
        what = f"fewer {' and '.join(kinds)}" if kinds else "sparse"
        share = "" if recipe.pruning.prune_keep else f"{100 * recipe.pruning.prune_sparsity:g} % "
        done.append(f"{share}{what}")
    if report.vocabulary is not None:
        done.append("fewer tokens")
    if recipe.distillation.student_layers is not None or recipe.pruning.prune_layers:
        done.append("fewer layers")
    if not done:
        done.append("distilled" if recipe.distillation.enabled else "not compressed")
    return " + ".join(done)


def task_words(report: Report) -> str:
    """The task as people write it."""
    return GLUE.get(report.task, report.task) if report.dataset.config == report.task else report.task


def base_words(report: Report) -> Markdown:
    """The model that training started from: a link if the Hub has it."""
    hub_id = report.base_model_hub_id
    return link(hub_id, f"{HUB}/{hub_id}") if hub_id else code(report.base_model)


def dataset_words(report: Report) -> Markdown:
    """The dataset by name: a link if the Hub has it."""
    dataset = report.dataset
    config = text(f" ({dataset.config})") if dataset.config else ""
    if dataset.hub_id is None:
        return Markdown(f"{code(dataset.name)}{' ' if config else ''}{config}")
    return Markdown(f"{link(dataset.hub_id, f'{HUB}/datasets/{dataset.hub_id}')} {config}".rstrip())


def is_part(dataset: DatasetFacts) -> bool:
    """Whether the evaluation rows are known to be a part of their split."""
    whole = dataset.eval_split_rows
    return dataset.eval_part is not None or (whole is not None and dataset.eval_rows < whole)


def split_words(dataset: DatasetFacts) -> str:
    """The split that was evaluated; a part of a split is named as such.

    Example:
        >>> from hf_compress import DatasetFacts
        >>> from hf_compress.report.phrases import split_words
        >>> split_words(DatasetFacts("glue", "sst2", "train", 9, "validation", 500, eval_split_rows=872))
        'validation (500 of 872 rows)'
    """
    if dataset.eval_part is not None:
        return dataset.eval_part
    if is_part(dataset):
        return f"{dataset.eval_split} ({dataset.eval_rows:,} of {dataset.eval_split_rows:,} rows)"
    return dataset.eval_split


def metric_names(report: Report) -> list[str]:
    """The names of the scores: the main metric first, what is not a share of one last."""
    return sorted(report.compressed, key=lambda name: (name != report.main_metric, not is_share(name)))


def spelt(metric: str) -> str:
    """A metric as people write it.

    Example:
        >>> from hf_compress.report.phrases import spelt
        >>> spelt("f1"), spelt("matthews_correlation")
        ('F1', 'matthews correlation')
    """
    return SPELT.get(metric, metric.replace("_", " "))


def in_points(report: Report, metric: str) -> bool:
    """Whether the card shows the metric times 100: it is a share of one for all models."""
    scores = [(report.dense or {}).get(metric), (report.teacher or {}).get(metric), report.compressed[metric]]
    return is_share(metric) and all(abs(score) <= 1 for score in scores if score is not None)


def shown(report: Report, metric: str, score: float | None) -> str:
    """A score as the card shows it."""
    if score is None:
        return "n/a"
    return f"{100 * score:.2f}" if in_points(report, metric) else f"{score:.4g}"


def difference(report: Report, metric: str, *, short: bool = False) -> str | None:
    """How far the compressed model is from the dense one, with its interval if it is known; None without dense.

    In short it has neither unit nor level.
    """
    return _difference(report, metric, report.dense or {}, report.comparison, short=short)


def difference_to_control(report: Report, metric: str, *, short: bool = False) -> str | None:
    """The same for the control; None without one."""
    control = report.control
    return None if control is None else _difference(report, metric, control.scores, control.comparison, short=short)


def _difference(
    report: Report, metric: str, scores: Mapping[str, float], comparison: Mapping[str, Interval], *, short: bool
) -> str | None:
    other = scores.get(metric)
    if other is None:
        return None
    points = in_points(report, metric)
    factor, form = (100, "+.2f") if points else (1, "+.3g")
    unit = " points" if points and not short else ""
    paired = comparison.get(metric)
    value = report.compressed[metric] - other if paired is None else paired.value
    said = f"{factor * value:{form}}{unit}"
    return said if paired is None else f"{said} ({interval_words(paired, points, short=short)})"


def interval_words(interval: Interval, points: bool, *, sign: str = "+", short: bool = False) -> str:
    """An interval, with its level in front unless it is in short."""
    factor, form = (100, f"{sign}.2f") if points else (1, f"{sign}.3g")
    level = "" if short else f"{100 * interval.level:g} % interval: "
    return f"{level}{factor * interval.low:{form}} to {factor * interval.high:{form}}"


def package() -> Markdown:
    """The name of this package: a link if it is published."""
    address = REPOSITORY or (f"https://pypi.org/project/{NAME}/" if ON_PYPI else None)
    return link("hf_compress", address) if address else text("hf_compress")
