"""Facts that a report keeps for the people who read its card: an example, the dense model, the course of training."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """An input and what the model of the report answers to it.

    Args:
        inputs: one text, or two texts that the model reads as a pair.
        output: what `transformers.pipeline` returns for it, scores rounded to four digits.

    Example:
        >>> from hf_compress.report.facts import Example
        >>> Example(["A quiet, warm film."], [{"label": "positive", "score": 0.9873}]).inputs
        ['A quiet, warm film.']
    """

    inputs: list[str]
    output: list[dict[str, Any]]


@dataclass(frozen=True)
class Steps:
    """How the weights are stored that have fixed steps.

    Args:
        bits_per_weight: average bits of such a weight in the packed file, with its share of the steps.
        feedback: whether linear layers were first rounded with error feedback. Weights beside an adapter were not.

    Example:
        >>> from hf_compress.report.facts import Steps
        >>> Steps(bits_per_weight=2.43, feedback=True).bits_per_weight
        2.43
    """

    bits_per_weight: float
    feedback: bool


@dataclass(frozen=True)
class Baseline:
    """What the dense model is, with which the compressed model is compared.

    Args:
        start: whether training started from it. Otherwise it was trained apart from the same base model.
        name: its Hub id or the name of its folder, if it has one.
        epochs: how long it was trained for the task; None if unknown.
        steps: the same in optimizer steps.

    Example:
        >>> from hf_compress.report.facts import Baseline
        >>> Baseline(start=True, epochs=2.0).epochs
        2.0
    """

    start: bool
    name: str | None = None
    epochs: float | None = None
    steps: int | None = None
