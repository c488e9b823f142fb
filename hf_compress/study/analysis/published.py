"""The figures of Movva et al. (2022), as data: what a study of ours stands beside."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float

from hf_compress.study.analysis.panel import Point
from hf_compress.study.grid.combinations import COMBINATIONS, DENSE, joined, parts, within

SOURCE = "Movva et al., COLING 2022, arXiv 2208.09684"
# "(1) quantization, (2) distillation, (3) pruning"
PRIORITY = ("int8", "kd", "mp")
# The sparsity that its headlines are of.
HEADLINE = 0.6


def _rows(name: str) -> list[dict[str, str]]:
    text = files("hf_compress.study.analysis").joinpath("paper", name).read_text("utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def figure1() -> Mapping[Point, tuple[float, float]]:
    """The analytic size in bytes and the mean score of every point of Figure 1."""
    return {
        Point(row["model"], row["combination"], float(row["sparsity"])): (
            1e6 * float(row["analytic_mb"]),
            float(row["score"]),
        )
        for row in _rows("figure1.csv")
    }


@cache
def table1() -> Mapping[tuple[str, str], float]:
    """The size reductions of Table 1, by model and combination."""
    return {
        (row["model"], combination): float(row[combination])
        for row in _rows("table1.csv")
        for combination in COMBINATIONS
        if combination != DENSE
    }


def models() -> tuple[str, ...]:
    """The paper's models, the largest first."""
    return tuple(row["model"] for row in _rows("table1.csv"))


def multiplicativity(combination: str) -> float:
    """How the reduction by a combination compares with the product of its methods', from Table 1.

    The geometric mean over the six models.
    """
    table = table1()
    logs = [
        np.log(table[model, combination]) - sum(np.log(table[model, method]) for method in parts(combination))
        for model in models()
    ]
    return float(np.exp(np.mean(logs)))


def gains(method: str, on_top_of: str, sparsity: float) -> Float[np.ndarray, " models"]:
    """What `method` adds to the mean score of each model that has `on_top_of` already, from Figure 1."""
    return np.array([_score(model, joined(method, *parts(on_top_of)), sparsity) - _score(model, on_top_of, sparsity)
                     for model in models()])  # fmt: skip


def interaction(combination: str, sparsity: float) -> Float[np.ndarray, " models"]:
    """The interaction of exactly these methods in the mean score of each model, from Figure 1."""
    sign = {other: (-1) ** (len(parts(combination)) - len(parts(other))) for other in within(combination)}
    return np.array([sum(s * _score(model, other, sparsity) for other, s in sign.items()) for model in models()])


def _score(model: str, combination: str, sparsity: float) -> float:
    return figure1()[Point(model, combination, sparsity if "mp" in parts(combination) else 0.0)][1]
