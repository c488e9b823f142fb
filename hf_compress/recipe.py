"""The plan of a run: the arguments of all methods together, named, as JSON, and kept to by a resumed run."""

import copy
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress.cut.vocabulary import VocabularyArguments
from hf_compress.distill import DistillationArguments
from hf_compress.options import warn_idle
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.callback import PruningCallback
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback
from hf_compress.redaction import redact


@dataclass
class BudgetArguments:
    """Options of the size that is asked for; none unless `compress_budget_mb` is given."""

    compress_budget_mb: float | None = field(
        default=None,
        metadata={
            "help": "Megabytes (10^6 bytes), above 0, that the packed file may have. What is not given of "
            "`quant_bits` and `prune_sparsity` is chosen for that before training (and `quant_scheme` int8); what "
            "cannot fit is refused."
        },
    )

    @property
    def enabled(self) -> bool:
        return self.compress_budget_mb is not None

    @property
    def bytes(self) -> float:
        """How many bytes the file may have."""
        return math.inf if self.compress_budget_mb is None else 1e6 * self.compress_budget_mb

    def __post_init__(self) -> None:
        if self.compress_budget_mb is not None and not 0 < self.compress_budget_mb < math.inf:
            raise ValueError(
                f"`--compress_budget_mb` must be a number of megabytes above 0; got {self.compress_budget_mb}. Give "
                "10 for a file of at most 10,000,000 bytes."
            )


# For `HfArgumentParser((TrainingArguments, *ARGUMENTS))`.
ARGUMENTS = (DistillationArguments, PruningArguments, QuantizationArguments, VocabularyArguments, BudgetArguments)
# Options that say where something is kept, and so change nothing of what is trained.
PLACES = ("distill_cache",)


@dataclass(frozen=True)
class Recipe:
    """What a run promises to do to a model: any of the eight subsets of distillation, pruning and quantization.

    And, beside them, whether its vocabulary is cut to the words of the training set before, and the size of the file
    that bits and sparsity were chosen for (`fit_budget`).

    The fields are in the order of `ARGUMENTS`, so that `Recipe(*parsed)` holds for what `HfArgumentParser` returns.
    """

    distillation: DistillationArguments = field(default_factory=DistillationArguments)
    pruning: PruningArguments = field(default_factory=PruningArguments)
    quantization: QuantizationArguments = field(default_factory=QuantizationArguments)
    vocabulary: VocabularyArguments = field(default_factory=VocabularyArguments)
    budget: BudgetArguments = field(default_factory=BudgetArguments)

    def __post_init__(self) -> None:
        # A budget turns on what it needs.
        for method, switch in ((self.pruning, "prune_sparsity"), (self.quantization, "quant_scheme")):
            if not method.enabled and not self.budget.enabled:
                warn_idle(method, switch)

    @property
    def name(self) -> str:
        """A short name, such as `kd+mp60+int8` or `cut3+kd`; `dense` if no method is on."""
        methods = ["vocab"] if self.vocabulary.enabled else []
        if self.distillation.student_layers is not None:
            layers = self.distillation.student_layers
            methods.append("cut" + (str(layers) if isinstance(layers, int) else ".".join(map(str, layers))))
        if self.distillation.enabled:
            methods.append("kd")
        if self.pruning.enabled:
            methods.append(f"mp{self.pruning.prune_sparsity * 100:g}")
        if self.quantization.enabled:
            methods.append(f"{self.quantization.quant_scheme}{'-mixed' if self.quantization.quant_bits else ''}")
        if self.budget.enabled:
            methods.append(f"{self.budget.compress_budget_mb:g}MB")
        return "+".join(methods) or "dense"

    def callbacks(self) -> list[TrainerCallback]:
        """The callbacks for any Trainer: those of the methods, and the one that keeps a resumed run to its recipe.

        Distillation has none: it changes the loss, which `DistillationTrainer` does.
        """
        callbacks: list[TrainerCallback] = []
        if self.pruning.enabled:
            callbacks.append(PruningCallback(self.pruning))
        if self.quantization.enabled:
            callbacks.append(QuantizationCallback(self.quantization))
        return [*callbacks, RecipeCallback(self)]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The recipe as plain values, one mapping a method."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> "Recipe":
        """The recipe that `to_dict` made the mapping from.

        Raises:
            ValueError: an unknown method or option, or a value outside its range.
        """
        kinds: dict[str, type[Any]] = dict(zip(cls.__dataclass_fields__, ARGUMENTS, strict=True))
        unknown = [f"`{method}`" for method in values if method not in kinds]
        for method, options in values.items():
            known = kinds[method].__dataclass_fields__ if method in kinds else options
            unknown += [f"`{method}.{option}`" for option in options if option not in known]
        if unknown:
            raise ValueError(
                f"A recipe has the methods {', '.join(kinds)} and their options; it has no {', '.join(unknown)}."
            )
        return cls(**{method: kinds[method](**options) for method, options in values.items()})

    def shareable(self) -> "Recipe":
        """The recipe without secrets and absolute paths of this machine, for files that others will read."""
        recipe = copy.deepcopy(self)
        for option in ("distill_teacher", "distill_cache"):
            value = getattr(recipe.distillation, option)
            setattr(recipe.distillation, option, None if value is None else redact(value))
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON to the file `path`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """The recipe in the JSON file `path`.

        Raises:
            ValueError: the file is no JSON of a recipe.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no recipe: {error}. Write one with `Recipe.save`.") from error


class RecipeCallback(TrainerCallback):
    """Keeps a resumed run to the recipe that it was begun with.

    Checkpoints name the recipe in `trainer_state.json`; one that names none was trained without compression.

    Raises, at the start of training:
        ValueError: the run goes on from a checkpoint of another recipe.
    """

    # Not the class's name: Trainer would take the record for that of a callback to be rebuilt.
    RECORD = "hf_compress"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compares the recipe with the checkpoint's, if there is one, and has it written into those to come."""
        planned = self.recipe.to_dict()
        if state.global_step > 0:
            begun = state.stateful_callbacks.get(self.RECORD, {})
            differing = [
                f"`--{option}` is {_said(value)}, but was {_said(then)}"
                for method, defaults in Recipe().to_dict().items()
                for option, default in defaults.items()
                if option not in PLACES
                and (value := planned[method][option]) != (then := begun.get(method, {}).get(option, default))
            ]
            if differing:
                raise ValueError(
                    f"the checkpoint of step {state.global_step} was trained by another recipe: "
                    f"{'; '.join(differing)}. Resume with the options as they were, or start anew from a model and "
                    "with another `--output_dir`."
                )
        state.stateful_callbacks[self.RECORD] = planned


def _said(value: Any) -> str:
    """The value of an option as it is said on the command line."""
    if value is None or value == []:
        return "not given"
    return " ".join(value) if isinstance(value, list) else str(value)
