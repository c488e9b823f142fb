"""What a run is to reach: a file size, a speed-up. How it is reached is for the methods to choose."""

import math
from dataclasses import dataclass, field

SPEED_RUNTIMES = ("onnx", "openvino")  # The formats whose runtimes `--compress_speedup` can be measured in.


@dataclass
class BudgetArguments:
    """The option for a file size; off unless `compress_budget_mb` is given.

    Raises:
        ValueError: the size is not a positive number.

    Example:
        >>> from hf_compress import BudgetArguments
        >>> BudgetArguments(compress_budget_mb=10).bytes
        10000000.0
    """

    compress_budget_mb: float | None = field(
        default=None,
        metadata={
            "help": "Largest size of the packed file in megabytes (10^6 bytes), above 0. When rounding begins, every "
            "layer gets the step at which the outputs change least for this size (`--quant_step`). Zeros of "
            "`--prune_sparsity` come first. The default scheme is then int8."
        },
    )

    @property
    def enabled(self) -> bool:
        return self.compress_budget_mb is not None

    @property
    def bytes(self) -> float:
        """The largest size of the file, in bytes."""
        return math.inf if self.compress_budget_mb is None else 1e6 * self.compress_budget_mb

    def __post_init__(self) -> None:
        if self.compress_budget_mb is not None and not 0 < self.compress_budget_mb < math.inf:
            raise ValueError(
                f"`--compress_budget_mb` must be a number of megabytes above 0; got {self.compress_budget_mb}. Give "
                "10 for a file of at most 10,000,000 bytes."
            )


@dataclass
class SpeedArguments:
    """The options for a speed-up; off unless `compress_speedup` is given.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> from hf_compress import SpeedArguments
        >>> SpeedArguments(compress_speedup=2.0).enabled
        True
    """

    compress_speedup: float | None = field(
        default=None,
        metadata={
            "help": "How many times faster the graph shall run on this machine than the whole model in the same "
            "number format, above 1. When pruning begins, neurons and heads are chosen that go, those that count "
            "least (`--prune_keep`), from times that are measured before training. The default pattern is then "
            "neurons+heads, the default scheme int8."
        },
    )
    compress_speedup_batch: int = field(
        default=1, metadata={"help": "Rows of a batch, at least 1, for which `--compress_speedup` counts."}
    )
    compress_speedup_length: int = field(
        default=128,
        metadata={
            "help": "Tokens of a row, or frames of a sound, at least 1, for which `--compress_speedup` counts. Images "
            "and spectrograms have the size that the model reads."
        },
    )
    compress_speedup_runtime: str = field(
        default="onnx",
        metadata={
            "help": "The format whose runtime `--compress_speedup` is measured in: ONNX Runtime or OpenVINO.",
            "choices": list(SPEED_RUNTIMES),
        },
    )

    @property
    def enabled(self) -> bool:
        return self.compress_speedup is not None

    def __post_init__(self) -> None:
        if self.compress_speedup is not None and not 1 < self.compress_speedup < math.inf:
            raise ValueError(
                f"`--compress_speedup` must be a number above 1; got {self.compress_speedup}. Give 2 for a graph that "
                "takes half the time."
            )
        if self.compress_speedup_runtime not in SPEED_RUNTIMES:
            raise ValueError(
                f"`--compress_speedup_runtime` must be of {', '.join(SPEED_RUNTIMES)}; got "
                f"{self.compress_speedup_runtime!r}. Choose from these."
            )
        for option in ("compress_speedup_batch", "compress_speedup_length"):
            if getattr(self, option) < 1:
                raise ValueError(f"`--{option}` must be at least 1; got {getattr(self, option)}. Raise it.")
