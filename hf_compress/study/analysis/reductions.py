"""Size reductions at equal score, as in Table 1 of Movva et al. (2022), and whether they multiply."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from hf_compress.study.grid.combinations import methods_in

# In points: "within 0.5 % of the dense baseline's accuracy".
TOLERANCE = 0.5


def smallest_within(
    scores: Float[np.ndarray, "*draws tasks points"],
    sizes: Float[np.ndarray, "tasks points"],
    baseline: Float[np.ndarray, "*draws tasks"],
    tolerance: float = TOLERANCE,
) -> Float[np.ndarray, "*draws tasks"]:
    """Return the size of the smallest point scoring at least `baseline` - `tolerance`, per task; infinity if none.

    Example:
        >>> import numpy as np
        >>> from hf_compress.study.analysis.reductions import smallest_within
        >>> smallest_within(np.array([[90.0, 89.6, 85.0]]), np.array([[100.0, 50.0, 10.0]]), np.array([90.0]))
        array([50.])
    """
    allowed: Bool[np.ndarray, "..."] = scores >= baseline[..., None] - tolerance - 1e-9
    return np.where(allowed, sizes, np.inf).min(axis=-1, initial=np.inf)


def reduction(
    smallest: Float[np.ndarray, "*draws tasks"], dense: Float[np.ndarray, " tasks"]
) -> Float[np.ndarray, "*draws tasks"]:
    """Return how many times smaller that is than the dense model; 1 where no point is good enough.

    The value can be below 1: if the dense models are not among the points, the smallest good point can be larger than
    the baseline.
    """
    return np.where(np.isinf(smallest), 1.0, dense / smallest)


def multiplicativity(
    reductions: Mapping[str, Sequence[Float[np.ndarray, "*draws"]]], combination: str
) -> Float[np.ndarray, "*draws"]:
    """Return ratio(A+B) / (ratio(A) ratio(B)), the geometric mean over models, for two methods or for three.

    Args:
        reductions: per combination, the mean reduction of each model, all in the same order.
        combination: two or three methods. Above 1 they reduce more together than multiplied.
    """
    together = np.log(np.stack(reductions[combination]))
    apart = sum(np.log(np.stack(reductions[method])) for method in methods_in(combination))
    return np.asarray(np.exp((together - apart).mean(axis=0)))


def front(
    sizes: Float[np.ndarray, " points"], scores: Float[np.ndarray, "*draws points"]
) -> Bool[np.ndarray, "*draws points"]:
    """Return which points are on the Pareto front: no other point is as small and better, or smaller and as good.

    Example:
        >>> import numpy as np
        >>> from hf_compress.study.analysis.reductions import front
        >>> front(np.array([1.0, 2.0, 3.0]), np.array([70.0, 69.0, 75.0]))
        array([ True, False,  True])
    """
    smaller_or_equal = sizes[None, :] <= sizes[:, None]
    smaller = sizes[None, :] < sizes[:, None]
    other, own = scores[..., None, :], scores[..., :, None]
    beaten = (smaller_or_equal & (other > own)) | (smaller & (other >= own))
    return np.logical_not(beaten.any(axis=-1))
