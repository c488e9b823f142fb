"""How sparsity grows over training: pure functions of the progress of pruning."""

from collections.abc import Callable


def cubic(progress: float, initial: float, final: float) -> float:
    """Sparsity that rises fast at first, while weights abound, and ever slower towards `final`.

    `progress` is the share of the pruning phase gone by, in [0, 1]; sparsities are shares of zeros, in [0, 1). Source:
    Zhu & Gupta, 2017, eq. 1.
    """
    return final + (initial - final) * (1 - progress) ** 3


def linear(progress: float, initial: float, final: float) -> float:
    """Sparsity that rises evenly from `initial` to `final`; the schedule of Movva et al., 2022.

    `progress` is the share of the pruning phase gone by, in [0, 1]; sparsities are shares of zeros, in [0, 1).
    """
    return final + (initial - final) * (1 - progress)


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {"cubic": cubic, "linear": linear}
