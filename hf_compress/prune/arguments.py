"""The options of gradual magnitude pruning."""

from dataclasses import dataclass, field

from hf_compress.prune.criteria import SCOPES
from hf_compress.prune.schedules import SCHEDULES


@dataclass
class PruningArguments:
    """Options of gradual magnitude pruning; off unless `prune_sparsity` is above 0."""

    prune_sparsity: float = field(
        default=0.0,
        metadata={"help": "Share of the weights of the body's linear layers to set to zero, in [0, 1); 0: none."},
    )
    prune_schedule: str = field(
        default="cubic",
        metadata={
            "choices": list(SCHEDULES),
            "help": "How sparsity grows. `cubic`: fast at first, then ever slower. `linear`: evenly.",
        },
    )
    prune_initial_sparsity: float = field(
        default=0.0,
        metadata={"help": "Share of weights set to zero at `prune_begin` already, in [0, `prune_sparsity`]."},
    )
    prune_begin: float = field(
        default=0.1,
        metadata={"help": "Share of training, in [0, 1], after which pruning begins."},
    )
    prune_end: float = field(
        default=0.6,
        metadata={"help": "Share of training, in (`prune_begin`, 1], after which the sparsity is reached and kept."},
    )
    prune_every: int = field(
        default=10,
        metadata={"help": "Optimizer steps, at least 1, from one choice of the weights to prune to the next."},
    )
    prune_scope: str = field(
        default="layer",
        metadata={
            "choices": list(SCOPES),
            "help": "`layer`: every layer reaches the sparsity. `global`: all together do, some more and some less.",
        },
    )
    prune_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions; layers in whose name one is found stay dense."},
    )

    @property
    def enabled(self) -> bool:
        return self.prune_sparsity > 0

    def __post_init__(self) -> None:
        if not 0 <= self.prune_sparsity < 1:
            raise ValueError(
                f"`--prune_sparsity` must be a share of weights in [0, 1); got {self.prune_sparsity}. Give 0.6 to set "
                "60 % of the weights to zero, or 0 to prune nothing."
            )
        if not 0 <= self.prune_begin <= 1:
            raise ValueError(
                f"`--prune_begin` must be a share of training in [0, 1]; got {self.prune_begin}. Give 0.1 to begin "
                "after the first tenth of the steps."
            )
        if not self.prune_begin < self.prune_end <= 1:
            raise ValueError(
                f"`--prune_end` must be a share of training in (`--prune_begin`, 1] = ({self.prune_begin}, 1]; got "
                f"{self.prune_end}. Raise it, or lower `--prune_begin`; 0.6 leaves the last 40 % of the steps to "
                "recover in."
            )
        if not self.prune_every >= 1:
            raise ValueError(
                f"`--prune_every` must be at least 1 optimizer step; got {self.prune_every}. Give 10 to choose the "
                "weights anew every ten steps."
            )
        for option, choices in (("prune_schedule", SCHEDULES), ("prune_scope", SCOPES)):
            if getattr(self, option) not in choices:
                raise ValueError(
                    f"`--{option}` must be one of {', '.join(choices)}; got {getattr(self, option)!r}. Choose one of "
                    "them."
                )
        if self.enabled and not 0 <= self.prune_initial_sparsity <= self.prune_sparsity:
            raise ValueError(
                f"`--prune_initial_sparsity` must lie in [0, `--prune_sparsity`] = [0, {self.prune_sparsity}]; got "
                f"{self.prune_initial_sparsity}. Lower it: sparsity only grows."
            )
