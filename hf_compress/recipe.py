"""The plan of a run: the options of all methods, with a name, as JSON, and checked when a run is resumed."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress.callbacks import refuse_diverged
from hf_compress.cut.vocabulary import VocabularyArguments
from hf_compress.distill import DistillationArguments
from hf_compress.documents import read_document
from hf_compress.goals import BudgetArguments, SpeedArguments
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.naming import save_hub_names, save_own_names
from hf_compress.models.saving import refuse_unsavable
from hf_compress.models.targets import whole
from hf_compress.options import warn_idle
from hf_compress.prune.allotment import SpeedGoal
from hf_compress.prune.arguments import AUTO, DROPPING, PruningArguments
from hf_compress.prune.callback import PruningCallback
from hf_compress.prune.dropping import LayerDroppingCallback
from hf_compress.prune.patterns import PATTERNS
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback
from hf_compress.redaction import redact

# For `HfArgumentParser((TrainingArguments, *ARGUMENTS))`.
ARGUMENTS = (
    DistillationArguments,
    PruningArguments,
    QuantizationArguments,
    VocabularyArguments,
    BudgetArguments,
    SpeedArguments,
)
DEFAULT_SCHEME = "int8"  # Of a recipe with a budget or a speed-up, and without a scheme.
SPEED_PATTERN = "neurons+heads"  # Of a recipe with a speed-up and without a pattern of groups.
# Options that name a place. They do not change the training.
PLACES = ("distill_cache",)


@dataclass(frozen=True)
class Recipe:
    """The plan of a run: any combination of distillation, pruning and quantization.

    It also says whether the vocabulary is first cut to the words of the training set, the file size that the steps of
    weights are chosen for, and the speed-up that neurons and heads are chosen for. The fields have the order of
    `ARGUMENTS`, so `Recipe(*parsed)` takes what `HfArgumentParser` returns.

    Example:
        >>> from hf_compress import PruningArguments, QuantizationArguments, Recipe
        >>> pruning, int8 = PruningArguments(prune_sparsity=0.6), QuantizationArguments(quant_scheme="int8")
        >>> recipe = Recipe(pruning=pruning, quantization=int8)
        >>> recipe.name
        'mp60+int8'
        >>> Recipe.from_dict(recipe.to_dict()) == recipe
        True
    """

    distillation: DistillationArguments = field(default_factory=DistillationArguments)
    pruning: PruningArguments = field(default_factory=PruningArguments)
    quantization: QuantizationArguments = field(default_factory=QuantizationArguments)
    vocabulary: VocabularyArguments = field(default_factory=VocabularyArguments)
    budget: BudgetArguments = field(default_factory=BudgetArguments)
    speed: SpeedArguments = field(default_factory=SpeedArguments)

    def __post_init__(self) -> None:
        if self.budget.enabled:
            self.quantization.check_steps("--compress_budget_mb")
        if (self.budget.enabled or self.speed.enabled) and not self.quantization.enabled:
            object.__setattr__(self, "quantization", replace(self.quantization, quant_scheme=DEFAULT_SCHEME))
        if self.speed.enabled:
            self._check_speed()
        elif self.pruning.prune_keep == [AUTO]:
            raise ValueError(
                f"`--prune_keep {AUTO}` has no effect without `--compress_speedup`. Give that, or say what stays: "
                "bert.encoder.layer.0=768, for example."
            )
        else:
            warn_idle(self.speed, "compress_speedup")
        self._check_groups()
        if self.pruning.prune_layers:
            self._check_layers()
        if not self.pruning.enabled:
            warn_idle(self.pruning, "prune_sparsity", DROPPING if self.pruning.prune_layers else ())
        if not self.quantization.enabled:
            warn_idle(self.quantization, "quant_scheme")

    def _check_groups(self) -> None:
        """Refuse to remove inputs of layers whose consecutive inputs share a scale."""
        grouped = self.quantization.enabled and self.quantization.scheme.weight.per == "group"
        if self.pruning.enabled and PATTERNS[self.pruning.prune_pattern].kinds and grouped:
            raise ValueError(
                f"`--prune_pattern {self.pruning.prune_pattern}` removes inputs of layers, but with `--quant_scheme "
                f"{self.quantization.quant_scheme}` consecutive inputs share a scale. Choose a scheme with one scale "
                "per row, such as int8 or int8-weight."
            )

    def _check_layers(self) -> None:
        """Refuse what cannot be combined with layers that are dropped in training."""
        option, quantization, end = "--prune_layers", self.quantization, self.pruning.prune_end
        cut = "Leave one of them out, or cut the model before training instead (`--distill_student_layers`)."
        if self.distillation.layer_losses:
            raise ValueError(f"`{option}` drops layers that `--distill_layer_loss` compares with the teacher's. {cut}")
        if self.budget.enabled or quantization.quant_step is not None:
            asked = "--compress_budget_mb" if self.budget.enabled else "--quant_step"
            raise ValueError(f"`{option}` drops layers after `{asked}` has spent bytes on them. {cut}")
        if quantization.enabled and quantization.scheme.activation is not None and quantization.quant_freeze < end:
            raise ValueError(
                f"`{option}` drops layers until `--prune_end` {end}, which moves the ranges that `--quant_freeze` "
                f"{quantization.quant_freeze} fixes. Give a `--quant_freeze` of {end} or more, or lower `--prune_end`."
            )

    def _check_speed(self) -> None:
        """Refuse what a speed-up cannot be reached with, and complete what was left open."""
        pruning, speedup = self.pruning, f"--compress_speedup {self.speed.compress_speedup:g}"
        if pruning.prune_sparsity > 0:
            raise ValueError(
                f"`{speedup}` chooses how many neurons and heads stay, so `--prune_sparsity` must be 0; got "
                f"{pruning.prune_sparsity}. Leave one of them out."
            )
        pattern = SPEED_PATTERN if pruning.prune_pattern == "unstructured" else pruning.prune_pattern
        if not PATTERNS[pattern].kinds:
            fitting = ", ".join(name for name, known in PATTERNS.items() if known.kinds)
            raise ValueError(
                f"`{speedup}` needs a `--prune_pattern` of whole groups: {fitting}; got {pattern!r}. Zeros elsewhere "
                "make no product of matrices smaller. Choose one of them."
            )
        completed = replace(pruning, prune_pattern=pattern, prune_keep=pruning.prune_keep or [AUTO])
        object.__setattr__(self, "pruning", completed)

    @property
    def name(self) -> str:
        """A short name, for example `kd+mp60+int8` or `cut3+kd`; `dense` if no method is on."""
        methods = ["vocab"] if self.vocabulary.enabled else []
        if self.distillation.student_layers is not None:
            layers = self.distillation.student_layers
            methods.append("cut" + (str(layers) if isinstance(layers, int) else ".".join(map(str, layers))))
        if self.distillation.enabled:
            methods.append("kd")
        if self.pruning.enabled:
            pattern = self.pruning.prune_pattern
            suffix = "" if pattern == "unstructured" else f"-{PATTERNS[pattern].slug}"
            share = "keep" if self.pruning.prune_keep else f"{self.pruning.prune_sparsity * 100:g}"
            speedup = self.speed.compress_speedup
            methods.append(f"mp{share}{suffix}" if speedup is None else f"{speedup:g}x{suffix}")
        if self.pruning.prune_layers:
            methods.append(f"drop{self.pruning.prune_layers}")
        if self.quantization.enabled:
            methods.append(f"{self.quantization.quant_scheme}{'-mixed' if self.quantization.quant_bits else ''}")
        if self.budget.enabled:
            methods.append(f"{self.budget.compress_budget_mb:g}MB")
        return "+".join(methods) or "dense"

    def callbacks(self, speed: SpeedGoal | None = None) -> list[TrainerCallback]:
        """Return new callbacks for any Trainer: those of the methods, and one that checks the recipe of a resumed run.

        Distillation has no callback: it changes the loss, which `DistillationTrainer` does.

        Args:
            speed: the speed-up and the latency of the model, if the recipe has a `compress_speedup`.
        """
        callbacks: list[TrainerCallback] = []
        zeros = None
        if self.pruning.enabled:
            callbacks.append(pruning := PruningCallback(self.pruning, speed=speed))
            zeros = pruning.planned_zeros
        if self.pruning.prune_layers:
            callbacks.append(LayerDroppingCallback(self.pruning, self._patterns()))
        if self.quantization.enabled:
            budget = self.budget.bytes if self.budget.enabled else None
            callbacks.append(QuantizationCallback(self.quantization, budget, zeros))
        return [*callbacks, RecipeCallback(self)]

    def _patterns(self) -> dict[str, list[str]]:
        """Return the regular expressions that name layers to quantize, by their options."""
        options = self.quantization
        bits = [item.rpartition("=")[0] for item in options.quant_bits]
        return {"quant_exclude": options.quant_exclude, "quant_bits": bits} if options.enabled else {}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the recipe as plain values, one mapping per method."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> "Recipe":
        """Return the recipe of a mapping as `to_dict` makes it. Missing options get their defaults.

        Raises:
            ValueError: a method or an option is unknown, or a value is outside its range.
        """
        kinds: dict[str, type[Any]] = dict(zip(cls.__dataclass_fields__, ARGUMENTS, strict=True))
        for what, value in {"A recipe": values, **(values if isinstance(values, Mapping) else {})}.items():
            if not isinstance(value, Mapping):
                raise ValueError(f"{what} must be a mapping from names to values; got {value!r}.")
        unknown = [f"`{method}`" for method in values if method not in kinds]
        for method, options in values.items():
            known = kinds[method].__dataclass_fields__ if method in kinds else options
            unknown += [f"`{method}.{option}`" for option in options if option not in known]
        if unknown:
            raise ValueError(
                f"A recipe has the methods {', '.join(kinds)} and their options, but no {', '.join(unknown)}. Remove "
                "it."
            )
        return cls(**{method: kinds[method](**options) for method, options in values.items()})

    def shareable(self) -> "Recipe":
        """The recipe without secrets and absolute paths of this machine, for files that others will read."""
        recipe = copy.deepcopy(self)
        for option in ("distill_teacher", "distill_cache"):
            value = getattr(recipe.distillation, option)
            setattr(recipe.distillation, option, None if value is None else redact(value))
        recipe.distillation.distill_extra = [redact(source) for source in recipe.distillation.distill_extra]
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe to the file `path` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Return the recipe in the JSON file `path`.

        Raises:
            ValueError: the file cannot be read, or does not contain the JSON of a recipe.
        """
        try:
            return cls.from_dict(read_document(path))
        except ValueError as error:
            raise ValueError(f"{path} is not a recipe: {error} Write one with `Recipe.save`.") from error


class RecipeCallback(TrainerCallback):
    """Refuses to resume a run with another recipe, and a final model that is not finite.

    Checkpoints contain the recipe in `trainer_state.json`; a checkpoint without one was trained without compression.

    Raises:
        ValueError: at the start of training, if the checkpoint was trained by another recipe.
        RuntimeError: at the end of training, if a parameter is not finite.

    Example:
        >>> from transformers import Trainer
        >>> from hf_compress import PruningArguments, PruningCallback, Recipe, RecipeCallback
        >>> pruning = PruningArguments(prune_sparsity=0.6)
        >>> callbacks = [PruningCallback(pruning), RecipeCallback(Recipe(pruning=pruning))]
        >>> trainer = Trainer(model, args, callbacks=callbacks)  # doctest: +SKIP
    """

    # Not the name of the class: Trainer would try to rebuild the callback from it.
    RECORD = "hf_compress"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the recipe with that of the checkpoint, and have it written into later checkpoints."""
        save_own_names(whole(kwargs["model"]))
        refuse_unsavable(kwargs["model"])
        self._refuse_rounding_model(kwargs["model"])
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
                    f"{'; '.join(differing)}. Resume with the options as they were, or start again from a model and "
                    "with another `--output_dir`."
                )
        state.stateful_callbacks[self.RECORD] = planned

    def _refuse_rounding_model(self, model: Any) -> None:
        """Refuse a model that rounds, because it was loaded from a quantized file, for a recipe that does not."""
        on = self.recipe.distillation.enabled or self.recipe.pruning.enabled or self.recipe.pruning.prune_layers
        layers = compressed_layers(whole(model)).values()
        if on and not self.recipe.quantization.enabled and any(one.weight_grid and one.quantizing for one in layers):
            raise ValueError(
                f"`{self.recipe.name}` does not quantize, but the model was loaded from a quantized file and rounds "
                "its weights: the result would not be what was trained. Give the `--quant_scheme` of the file, or "
                "start from the model before it was quantized."
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fail if the final model is not finite."""
        save_hub_names(whole(kwargs["model"]))
        if not state.is_hyper_param_search:
            refuse_diverged(whole(kwargs["model"]), state)


def _said(value: Any) -> str:
    """Return the value of an option as on the command line."""
    if value is None or value == []:
        return "not given"
    return " ".join(value) if isinstance(value, list) else str(value)
