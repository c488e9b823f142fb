"""The course of a training, from the log that the Trainer kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Trainer

MOST_POINTS = 200


def training_curves(log_history: Sequence[Mapping[str, Any]], main_metric: str) -> dict[str, list[list[float]]]:
    """Return loss, main score and sparsity over the steps of training: points of step and value, by name.

    Args:
        log_history: the log of `TrainerState`.
        main_metric: the score that stands for the task.

    A curve with more than 200 points keeps evenly spaced ones, the last among them.

    Example:
        >>> from hf_compress.report.course import training_curves
        >>> training_curves([{"loss": 0.7, "step": 10}, {"loss": 0.4, "sparsity": 0.2, "step": 20}], "accuracy")
        {'loss': [[10.0, 0.7], [20.0, 0.4]]}
    """
    names = {"loss": "loss", f"eval_{main_metric}": main_metric, "sparsity": "sparsity"}
    curves: dict[str, list[list[float]]] = {}
    for logged, name in names.items():
        points = {
            float(entry["step"]): float(entry[logged]) for entry in log_history if logged in entry and "step" in entry
        }
        if len(points) > 1:
            curves[name] = _thinned([list(point) for point in sorted(points.items())])
    return curves


def emissions_kg(trainer: Trainer) -> float | None:
    """Return the emissions of the training in kg of CO2 equivalents, if `--report_to codecarbon` has tracked them."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "CodeCarbonCallback":
            emissions = getattr(callback.tracker, "final_emissions", None)
            return None if emissions is None else float(emissions)
    return None


def _thinned(points: list[list[float]]) -> list[list[float]]:
    count = len(points)
    if count <= MOST_POINTS:
        return points
    return [points[round(index * (count - 1) / (MOST_POINTS - 1))] for index in range(MOST_POINTS)]
