"""The text of `hf-compress study suggest`: a recipe to try first, and what to expect of it."""

import re
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_compress.models import targets
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.analysis.suggestion import Suggestion, Weights, suggest

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
SHIPPED = "shipped.csv"


def advise(
    model: str,
    task: str,
    *,
    max_size: str | None = None,
    max_drop: float | None = None,
    results: str | Path | None = None,
    metric: str = "paper",
) -> str:
    """Return in a few lines what to try first for a model and a task, and what to expect.

    Args:
        model: a model of the study, or a folder or Hub id of another model.
        task: a task of the study. For another task, the mean over all tasks is used.
        max_size: the largest file to accept, for example "10MB".
        max_drop: the largest loss of score to accept, in points of 100.
        results: results of a study; by default those that come with the package.
        metric: as for `read_measurements`.

    Raises:
        ValueError: no limit is given, a limit is invalid or cannot be met, or the model is unknown.

    Example:
        >>> from hf_compress.study.report import advise
        >>> print(advise("minilm-1", "sst2", max_size="14MB"))
        For minilm-1 on sst2, try first: kd+int8...
    """
    found = read_measurements(shipped() if results is None else results, metric)
    known = {name for measurement in found for name in (measurement.model, measurement.family)}
    advice = suggest(
        found,
        model,
        task,
        max_bytes=None if max_size is None else size_in_bytes(max_size),
        max_drop=max_drop,
        weights=None if model in known else _weights(model, sorted(known)),
    )
    return said(advice, task)


def shipped() -> Path:
    """Return the file with the cells of the study that comes with the package."""
    return Path(__file__).parents[1] / "analysis" / SHIPPED


def size_in_bytes(words: str) -> float:
    """Return the number of bytes in words such as "10MB", "800 kB" or "1.5e6". Units are decimal.

    Raises:
        ValueError: the words are not a size.

    Example:
        >>> from hf_compress.study.report.advice import size_in_bytes
        >>> size_in_bytes("10MB")
        10000000.0
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)\s*([kmg]?)b?", words.strip().lower())
    if match is None:
        raise ValueError(f"`--max-size` must be a number of bytes, kB, MB or GB, as in 10MB; got {words!r}.")
    return float(match[1]) * UNITS[match[2]]


def said(advice: Suggestion, task: str) -> str:
    """Return a suggestion in words."""
    combination, sparsity = advice.point.combination, advice.point.sparsity
    name = f"{combination} ({100 * sparsity:g} % of the linear layers' weights zero)" if sparsity else combination
    value, interval = advice.difference.value, advice.difference.interval
    sure = advice.over if interval is None else f"95 %: {interval[0]:+.1f} to {interval[1]:+.1f}, over {advice.over}"
    cut = "" if advice.layers is None else f", {advice.layers} layer{'' if advice.layers == 1 else 's'}"
    lines = [
        f"For {advice.asked} on {task}, try first: {name}{cut}",
        "",
        "  " + " ".join(advice.flags),
        "",
        f"  size   {advice.size / 1e6:.1f} MB on disk, {advice.dense_size / advice.size:.1f} times smaller than dense "
        f"fp32 ({advice.dense_size / 1e6:.1f} MB)",
        f"  score  {value:+.2f} points against the dense model after the same training ({sure})",
        f"  from   {len(advice.cells)} runs: {', '.join(advice.cells[:4])}{' ...' if len(advice.cells) > 4 else ''}",
    ]
    if not advice.task_known:
        lines.append(f"  The study does not have the task {task}: these are means over {', '.join(advice.tasks)}.")
    if advice.compared_to != advice.asked:
        lines.append(
            f"  The study's {advice.compared_to} stands for this model. The interval does not include their "
            f"difference."
        )
    if "kd" in combination.split("+") and advice.teacher not in (None, "self"):
        lines.append(f"  The teacher was {advice.teacher}, fine-tuned on the task.")
    return "\n".join(lines)


def _weights(model: str, known: list[str]) -> Weights:
    """Return the numbers of weights of a model that the study does not have, from its configuration."""
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`--model` must be a model of the study ({', '.join(known)}), or a folder or Hub id with a "
            f"configuration; {model!r} has none: {error}"
        ) from error
    with torch.device("meta"):
        built = AutoModelForSequenceClassification.from_config(config)
    numbers = {"embeddings": 0, "others": 0}
    for name, parameter in built.named_parameters():
        embedded = targets.part(built, name) == "embeddings"
        numbers["embeddings" if embedded else "others"] += parameter.numel()
    return Weights(**numbers)
