"""The options of gradual pruning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compress.options import check_list
from hf_compress.patterns import check_patterns
from hf_compress.prune.criteria import CRITERIA
from hf_compress.prune.patterns import PATTERNS
from hf_compress.prune.schedules import SCHEDULES
from hf_compress.prune.selection import SCOPES

MOST_STEPS = 10**9  # No training is longer.
MOST_DIGITS = 9  # Of a number of groups. No layer has more.
# Options that `prune_layers` reads, also where no weight is pruned.
DROPPING = ("prune_layers", "prune_begin", "prune_end", "prune_every", "prune_schedule")
AUTO = "auto"  # In place of numbers of groups that `--compress_speedup` chooses.


def _words(registry: Mapping[str, Any]) -> str:
    """Return the help of every entry, as one text."""
    return " ".join(f"`{name}`: {entry.help}." for name, entry in registry.items())


@dataclass
class PruningArguments:
    """Options of gradual pruning; it is off unless `prune_sparsity` is above 0, or `prune_keep` is given.

    `prune_layers` drops whole layers, with or without zeros in the others.

    Raises:
        ValueError: an option is outside its range.

    Example:
        >>> from hf_compress import PruningArguments
        >>> PruningArguments(prune_sparsity=0.6).enabled
        True
    """

    prune_sparsity: float = field(
        default=0.0,
        metadata={
            "help": "Share of the weights of the body's linear layers and convolutions, or of the groups that "
            "`--prune_pattern` names, to set to zero, in [0, 1); 0: none."
        },
    )
    prune_criterion: str = field(
        default="magnitude",
        metadata={"choices": CRITERIA.keys(), "help": f"Which weights are pruned first. {_words(CRITERIA)}"},
    )
    prune_pattern: str = field(
        default="unstructured",
        metadata={"choices": PATTERNS.keys(), "help": f"Where zeros may be in a weight. {_words(PATTERNS)}"},
    )
    prune_schedule: str = field(
        default="cubic",
        metadata={"choices": SCHEDULES.keys(), "help": f"How sparsity grows. {_words(SCHEDULES)}"},
    )
    prune_initial_sparsity: float = field(
        default=0.0,
        metadata={"help": "Share of weights to set to zero at `prune_begin` at once, in [0, `prune_sparsity`]."},
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
        metadata={"help": "Optimizer steps, at least 1, between two choices of weights to prune."},
    )
    prune_scope: str = field(
        default="layer",
        metadata={
            "choices": list(SCOPES),
            "help": "`layer`: every layer reaches the sparsity. `global`: all layers together reach it; the sparsity "
            "of single layers differs. Whole neurons compete with neurons, heads with heads.",
        },
    )
    prune_uniform: bool = field(
        default=False,
        metadata={
            "help": "Keep the same number of neurons or heads in every layer (`--prune_pattern neurons`, `heads`), so "
            "that config.json alone says the widths and Transformers needs nothing else. Refused where it cannot."
        },
    )
    prune_keep: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Items BLOCK=COUNT, for example bert.encoder.layer.0=768: how many neurons or heads of a block "
            "stay (`--prune_pattern`), at least 1; blocks that are not named keep all. In place of `prune_sparsity`. "
            "`--compress_speedup` chooses them."
        },
    )
    prune_layers: int = field(
        default=0,
        metadata={
            "help": "Number of the model's layers to drop, one after the other from `prune_begin` to `prune_end`: "
            "each time the one without which the outputs change least, on rows of the training set. One layer stays. "
            "0: none."
        },
    )
    prune_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions; layers whose name contains a match stay dense."},
    )

    @property
    def enabled(self) -> bool:
        """Whether weights are pruned. Layers may be dropped without that."""
        return self.prune_sparsity > 0 or bool(self.prune_keep)

    @property
    def goal(self) -> float:
        """The sparsity at the end; 1 if `prune_keep` says what stays, and all else has gone."""
        return 1.0 if self.prune_keep else self.prune_sparsity

    @property
    def asked(self) -> str:
        """What is asked for as a flag, for messages."""
        if self.prune_keep:
            more = " ..." if len(self.prune_keep) > 2 else ""
            return f"`--prune_keep {' '.join(self.prune_keep[:2])}{more}`"
        return f"`--prune_sparsity {self.prune_sparsity}`"

    @property
    def keeps(self) -> dict[str, int] | None:
        """How many groups of the blocks in `prune_keep` stay; None if it is not given, or not chosen yet."""
        if not self.prune_keep or self.prune_keep == [AUTO]:
            return None
        return {name: int(count) for name, _, count in (item.rpartition("=") for item in self.prune_keep)}

    def __post_init__(self) -> None:
        check_patterns("prune_exclude", self.prune_exclude)
        self._check_keep()
        self._check_choices()
        self._check_uniform()
        self._check_layers()
        self._check_sparsity()
        self._check_phase()

    def _check_keep(self) -> None:
        check_list("prune_keep", self.prune_keep)
        if not self.prune_keep:
            return
        if self.prune_sparsity > 0:
            raise ValueError(
                f"`--prune_keep` says how many groups stay, so `--prune_sparsity` must be 0; got "
                f"{self.prune_sparsity}. Leave one of them out."
            )
        items = [item.rpartition("=") for item in self.prune_keep if self.prune_keep != [AUTO]]
        for name, _, count in items:
            if not name or not (count.isdecimal() and len(count) <= MOST_DIGITS and int(count) >= 1):
                raise ValueError(
                    "`--prune_keep` must be items BLOCK=COUNT with a count of at least 1; got "
                    f"{(f'{name}=' if name else '') + count[:20]!r}. Give bert.encoder.layer.0=768, for example."
                )
        if len({name for name, _, _ in items}) < len(items):
            raise ValueError(f"`--prune_keep` names a block twice: {' '.join(self.prune_keep)}. Name each once.")
        if self.prune_pattern in PATTERNS and not PATTERNS[self.prune_pattern].kinds:
            fitting = ", ".join(name for name, pattern in PATTERNS.items() if pattern.kinds)
            raise ValueError(
                f"`--prune_keep` needs a `--prune_pattern` of whole groups: {fitting}; got {self.prune_pattern!r}. "
                "Choose one of them."
            )

    def _check_choices(self) -> None:
        choices: dict[str, Any] = {
            "prune_criterion": CRITERIA,
            "prune_pattern": PATTERNS,
            "prune_schedule": SCHEDULES,
            "prune_scope": SCOPES,
        }
        for option, names in choices.items():
            if getattr(self, option) not in names:
                raise ValueError(
                    f"`--{option}` must be one of {', '.join(names)}; got {getattr(self, option)!r}. Choose one of "
                    "them."
                )

        if CRITERIA[self.prune_criterion].corrects and self.prune_scope != "layer":
            raise ValueError(
                f"`--prune_criterion {self.prune_criterion}` corrects each layer for its own zeros, so "
                f"`--prune_scope` must be layer; got {self.prune_scope!r}. Choose `--prune_scope layer`, or "
                "`--prune_criterion adam`, whose scores compare layers."
            )

    def _check_uniform(self) -> None:
        if self.prune_uniform and self.enabled and not PATTERNS[self.prune_pattern].kinds:
            kinds = [name for name, pattern in PATTERNS.items() if pattern.kinds]
            raise ValueError(
                f"`--prune_uniform` needs a `--prune_pattern` of {', '.join(kinds)}, which removes structure; got "
                f"{self.prune_pattern!r}. Choose one, or leave the flag out."
            )
        if self.prune_uniform and self.enabled and self.prune_scope != "layer":
            raise ValueError(
                "`--prune_uniform` keeps the same number in every layer, so `--prune_scope` must be layer; got "
                f"{self.prune_scope!r}. Choose `--prune_scope layer`, or leave the flag out."
            )

    def _check_layers(self) -> None:
        layers = self.prune_layers
        if not isinstance(layers, int) or layers < 0:
            raise ValueError(
                f"`--prune_layers` must be a number of layers to drop, 0 or more; got {layers}. Give 3 to drop three "
                "of the model's layers, or 0 to keep all."
            )
        if layers and self.prune_keep:
            raise ValueError(
                f"`--prune_layers {layers}` drops whole layers, but `--prune_keep` and `--compress_speedup` say how "
                "many neurons and heads stay in each. Give `--prune_sparsity` in place of them, or cut the model "
                "before training (`--distill_student_layers`)."
            )
        if layers and self.enabled and self.prune_scope != "layer":
            raise ValueError(
                f"`--prune_layers {layers}` takes layers out, so the share of zeros must be the same in each: "
                f"`--prune_scope` must be layer; got {self.prune_scope!r}. Choose `--prune_scope layer`, or cut the "
                "model before training (`--distill_student_layers`)."
            )

    def _check_sparsity(self) -> None:
        if not 0 <= self.prune_sparsity < 1:
            raise ValueError(
                f"`--prune_sparsity` must be a share of weights in [0, 1); got {self.prune_sparsity}. Give 0.6 to set "
                "60 % of the weights to zero, or 0 to prune nothing."
            )
        most = PATTERNS[self.prune_pattern].most
        if self.prune_sparsity > most:
            raise ValueError(
                f"`--prune_sparsity` must be at most {most:g} with `--prune_pattern {self.prune_pattern}`; got "
                f"{self.prune_sparsity}. Lower it, or choose another pattern."
            )
        if self.enabled and not 0 <= self.prune_initial_sparsity <= self.goal:
            raise ValueError(
                f"`--prune_initial_sparsity` must be in [0, `--prune_sparsity`] = [0, {self.goal:g}]; got "
                f"{self.prune_initial_sparsity}. Lower it: sparsity only grows."
            )

    def _check_phase(self) -> None:
        if not 0 <= self.prune_begin <= 1:
            raise ValueError(
                f"`--prune_begin` must be a share of training in [0, 1]; got {self.prune_begin}. Give 0.1 to begin "
                "after the first tenth of the steps."
            )
        if not self.prune_begin < self.prune_end <= 1:
            raise ValueError(
                f"`--prune_end` must be a share of training in (`--prune_begin`, 1] = ({self.prune_begin}, 1]; got "
                f"{self.prune_end}. Raise it, or lower `--prune_begin`; 0.6 leaves the last 40 % of the steps for "
                "recovery."
            )
        if not 1 <= self.prune_every <= MOST_STEPS:
            raise ValueError(
                f"`--prune_every` must be at least 1 optimizer step and at most {MOST_STEPS:,}; got "
                f"{str(self.prune_every)[:20]}. Give 10 to choose weights every ten steps."
            )
