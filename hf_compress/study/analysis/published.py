"""The figures of Movva et al. (2022), as data to compare a study with."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float

from hf_compress.study.analysis.panel import Point
from hf_compress.study.grid.combinations import COMBINATIONS, DENSE, combine, methods_in, subsets

SOURCE = "Movva et al., COLING 2022, arXiv 2208.09684"
# "(1) quantization, (2) distillation, (3) pruning"
PRIORITY = ("int8", "kd", "mp")
# The sparsity of its headlines.
HEADLINE = 0.6


def _rows(name: str) -> list[dict[str, str]]:
    text = files("hf_compress.study.analysis").joinpath("paper", name).read_text("utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def figure1() -> Mapping[Point, tuple[float, float]]:
    """Return the analytic size in bytes and the mean score of each point of Figure 1."""
    return {
        Point(row["model"], row["combination"], float(row["sparsity"])): (
            1e6 * float(row["analytic_mb"]),
            float(row["score"]),
        )
        for row in _rows("figure1.csv")
    }


@cache
def table1() -> Mapping[tuple[str, str], float]:
    """Return the size reductions of Table 1, by model and combination."""
    return {
        (row["model"], combination): float(row[combination])
        for row in _rows("table1.csv")
        for combination in COMBINATIONS
        if combination != DENSE
    }


def models() -> tuple[str, ...]:
    """Return the paper's models, the largest first."""
    return tuple(row["model"] for row in _rows("table1.csv"))


def multiplicativity(combination: str) -> float:
    """Return the multiplicativity of a combination in Table 1, the geometric mean over the six models.

    Example:
        >>> from hf_compress.study.analysis import published
        >>> round(published.multiplicativity("kd+mp"), 2)
        1.22
    """
    table = table1()
    logs = [
        np.log(table[model, combination]) - sum(np.log(table[model, method]) for method in methods_in(combination))
        for model in models()
    ]
    return float(np.exp(np.mean(logs)))


def gains(method: str, on_top_of: str, sparsity: float) -> Float[np.ndarray, " models"]:
    """Return what `method` adds to the mean score of each model on top of `on_top_of`, in Figure 1."""
    combined = combine(method, *methods_in(on_top_of))
    return np.array([_score(model, combined, sparsity) - _score(model, on_top_of, sparsity) for model in models()])


def interaction(combination: str, sparsity: float) -> Float[np.ndarray, " models"]:
    """Return the interaction of exactly these methods in the mean score of each model, in Figure 1."""
    sign = {other: (-1) ** (len(methods_in(combination)) - len(methods_in(other))) for other in subsets(combination)}
    return np.array([sum(s * _score(model, other, sparsity) for other, s in sign.items()) for model in models()])


def _score(model: str, combination: str, sparsity: float) -> float:
    return figure1()[Point(model, combination, sparsity if "mp" in methods_in(combination) else 0.0)][1]
