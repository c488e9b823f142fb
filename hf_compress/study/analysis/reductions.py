"""How much smaller a model may be at the same score: Table 1 of Movva et al. (2022), and whether methods multiply."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from hf_compress.study.grid.combinations import parts

# In points: "within 0.5 % of the dense baseline's accuracy".
TOLERANCE = 0.5


def smallest_within(
    scores: Float[np.ndarray, "*draws tasks points"],
    sizes: Float[np.ndarray, "tasks points"],
    baseline: Float[np.ndarray, "*draws tasks"],
    tolerance: float = TOLERANCE,
) -> Float[np.ndarray, "*draws tasks"]:
    """The size of the smallest point that scores at least `baseline` - `tolerance`, task by task; infinite if none."""
    allowed: Bool[np.ndarray, "..."] = scores >= baseline[..., None] - tolerance - 1e-9
    return np.where(allowed, sizes, np.inf).min(axis=-1, initial=np.inf)


def reduction(
    smallest: Float[np.ndarray, "*draws tasks"], dense: Float[np.ndarray, " tasks"]
) -> Float[np.ndarray, "*draws tasks"]:
    """How many times smaller that is than the dense model; 1 where there is none, since one then keeps the dense one.

    It may be less than 1: without the dense models among the points, the smallest one that is good enough can be
    larger than the baseline.
    """
    return np.where(np.isinf(smallest), 1.0, dense / smallest)


def multiplicativity(
    reductions: Mapping[str, Sequence[Float[np.ndarray, "*draws"]]], combination: str
) -> Float[np.ndarray, "*draws"]:
    """ratio(A + B) / (ratio(A) ratio(B)), the geometric mean over models, for two methods or for all three.

    Args:
        reductions: for every combination, the mean reduction of each model, in one order.
        combination: two or three methods; above 1 they give more together than multiplied.
    """
    together = np.log(np.stack(reductions[combination]))
    apart = sum(np.log(np.stack(reductions[method])) for method in parts(combination))
    return np.asarray(np.exp((together - apart).mean(axis=0)))


def front(
    sizes: Float[np.ndarray, " points"], scores: Float[np.ndarray, "*draws points"]
) -> Bool[np.ndarray, "*draws points"]:
    """The points of the Pareto front: no other point is as small and better, or smaller and as good."""
    smaller_or_equal = sizes[None, :] <= sizes[:, None]
    smaller = sizes[None, :] < sizes[:, None]
    other, own = scores[..., None, :], scores[..., :, None]
    beaten = (smaller_or_equal & (other > own)) | (smaller & (other >= own))
    return np.logical_not(beaten.any(axis=-1))
