"""Refuses results that have diverged: scores, logits or weights that are not finite."""

import math
from collections.abc import Mapping

from torch import nn
from transformers import Trainer
from transformers.utils import logging

from hf_compress.models.heads import bare
from hf_compress.report.scores import clean_scores

PARITY = "difference of the logits after saving"
SHOWN = 3

logger = logging.get_logger(__name__)


def check_finite(trainer: Trainer, reloaded: nn.Module, numbers: Mapping[str, float | None]) -> None:
    """Refuse a result if one of its `numbers` is not finite, and say what diverged and when.

    Raises:
        ValueError: a number is not finite.
    """
    wrong = {name: value for name, value in numbers.items() if value is not None and not math.isfinite(value)}
    if not wrong:
        return
    listed = ", ".join(f"{name} = {value}" for name, value in wrong.items())
    facts = [
        _tensors("trained model", bare(trainer.model)),
        _tensors("saved model", bare(reloaded)),
        _first_step(trainer),
    ]
    raise ValueError(
        f"The model has diverged, so there is no result: {listed}. {' '.join(fact for fact in facts if fact)} Train "
        "again from a checkpoint before that, with a lower `--learning_rate` or in higher precision."
    )


def finite_scores(scores: Mapping[str, float], whose: str) -> dict[str, float]:
    """The scores that are finite. A warning names the others: a metric may be undefined for some predictions.

    Example:
        >>> from hf_compress.report.divergence import finite_scores
        >>> finite_scores({"accuracy": 0.5, "mcc": float("nan")}, "compressed model")
        {'accuracy': 0.5}
    """
    wrong = [name for name, value in scores.items() if not math.isfinite(value)]
    if wrong:
        logger.warning(f"These scores of the {whose} are not finite and not in the report: {', '.join(wrong)}.")
    return {name: value for name, value in scores.items() if name not in wrong}


def baseline(metrics: Mapping[str, float] | None, main: str, whose: str) -> dict[str, float] | None:
    """The finite scores of a model to compare with; None, with a warning, if its main score is not finite."""
    if metrics is None:
        return None
    scores = clean_scores(metrics)
    if main in scores and not math.isfinite(scores[main]):
        logger.warning(f"The report has no scores of the {whose}: its {main} is {scores[main]}.")
        return None
    return finite_scores(scores, whose)


def _tensors(whose: str, model: nn.Module) -> str:
    """Which tensors of the model are not finite, in a sentence; "" if all are."""
    found = [
        name for name, value in model.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if not found:
        return ""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"Not finite in the {whose}: {', '.join(found[:SHOWN])}{more}."


def _first_step(trainer: Trainer) -> str:
    """When the log first shows a loss or gradient that is not finite, in a sentence; "" if it never does."""
    for entry in trainer.state.log_history:
        for name in ("loss", "grad_norm"):
            value = entry.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                return f"The log first shows it in step {entry['step']}: {name} = {value}."
    return ""
