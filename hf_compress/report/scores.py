"""The names and values of scores: which one stands for the task, and which are shares of one."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
# Scores that are not a share of one, so that a hundredth of them is not a point.
ABSOLUTE = ("loss", "mse", "mae", "rmse", "perplexity", "divergence", "distortion")
# Scores whose last word is one of these are better when they are lower.
ERRORS = {*ABSOLUTE, "error", "wer", "cer", "ter", "ppl"}
# Scores that compare the answers of a model with those of the dense model it was made from, without labels.
AGREEMENT, DIVERGENCE, RMSE, DISTORTION = "agreement", "kl_divergence", "difference_rmse", "distortion"
RANKING = "similarity_ranking"
AGAINST_DENSE = (AGREEMENT, DIVERGENCE, RMSE, DISTORTION, RANKING)


def clean_scores(metrics: Mapping[str, Any], prefix: str = "eval") -> dict[str, float]:
    """The scores in what `Trainer.evaluate` returned: without the prefix, the timings and the epoch.

    Example:
        >>> from hf_compress.report.scores import clean_scores
        >>> clean_scores({"eval_accuracy": 0.5, "eval_runtime": 2.0, "epoch": 3.0})
        {'accuracy': 0.5}
    """
    named = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name != "epoch"}
    return {name: float(value) for name, value in named.items() if not name.endswith(TIMINGS)}


def main_metric(scores: Mapping[str, float], preferred: str | None) -> str:
    """The score that stands for the task: `preferred` if it is there, or else the first that is not a loss.

    Example:
        >>> from hf_compress.report.scores import main_metric
        >>> main_metric({"loss": 0.4, "accuracy": 0.9}, None)
        'accuracy'
    """
    preferred = (preferred or "").removeprefix("eval_")
    if preferred in scores:
        return preferred
    return next((name for name in scores if not name.endswith("loss")), next(iter(scores), "loss"))


def is_share(name: str) -> bool:
    """Whether a score of this name usually is a share of one, as an accuracy is.

    Example:
        >>> from hf_compress.report.scores import is_share
        >>> is_share("accuracy"), is_share("loss")
        (True, False)
    """
    return not name.endswith(ABSOLUTE)


def sign_of_better(name: str) -> int:
    """1 if a score of this name is better when it is higher, and -1 if it is better when it is lower.

    Example:
        >>> from hf_compress.report.scores import sign_of_better
        >>> sign_of_better("f1"), sign_of_better("eval_loss")
        (1, -1)
    """
    return -1 if re.split(r"\W|_", name.lower())[-1] in ERRORS else 1


def points_per_unit(name: str, values: Iterable[float]) -> int:
    """How many points one unit of a score is: 100 for a share of one, 1 for anything else, as a percentage or loss.

    Args:
        name: of the score.
        values: what models score; all must be in [-1, 1] for a share.

    Example:
        >>> from hf_compress.report.scores import points_per_unit
        >>> points_per_unit("f1", [0.91, 0.9]), points_per_unit("f1", [91.0, 90.2]), points_per_unit("loss", [0.3])
        (100, 1, 1)
    """
    return 100 if is_share(name) and all(abs(value) <= 1 for value in values) else 1
