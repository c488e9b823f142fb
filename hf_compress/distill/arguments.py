"""The options of knowledge distillation."""

import math
import warnings
from dataclasses import dataclass, field

from hf_compress.cut.students import parse_layers
from hf_compress.distill.cache import AUTO
from hf_compress.distill.losses import LOSSES
from hf_compress.distill.teacher import SELF
from hf_compress.options import changed


@dataclass
class DistillationArguments:
    """Options of knowledge distillation; off unless `distill_teacher` is given.

    `distill_student_layers` has its effect without a teacher too: the control that is trained on the labels alone.
    """

    distill_teacher: str | None = field(
        default=None,
        metadata={
            "help": "The teacher: a path or Hub id, of a model or an adapter; or `self`, the model as training finds "
            "it: a frozen copy, or beside a new adapter the base model itself."
        },
    )
    distill_loss: str = field(
        default="kl",
        metadata={
            "choices": list(LOSSES),
            "help": "Distance to the teacher. `kl`: divergence of the softened distributions. `ce`: cross-entropy "
            "with the teacher's soft labels. `mse`: squared difference of logits, which regression always uses.",
        },
    )
    distill_temperature: float = field(
        default=2.0,
        metadata={"help": "Divides both models' logits in `kl` and `ce`; above 0. Higher is softer."},
    )
    distill_alpha: float = field(
        default=0.9,
        metadata={"help": "Weight of the distillation loss, in [0, 1]; the loss on the labels has the rest."},
    )
    distill_student_layers: str | None = field(
        default=None,
        metadata={
            "help": "Train a student cut from the model: with so many of its layers, evenly spaced (3), or with these "
            "(0,2,5), counted from 0. `--distill_teacher self` is then the whole model. By default all layers stay."
        },
    )
    distill_cache: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": AUTO,
            "help": "Ask the teacher once and keep its answers as a column of the training set: in this folder, or "
            f"beside the caches of datasets (`{AUTO}`, or no value). By default it is asked at every step.",
        },
    )

    def __post_init__(self) -> None:
        if self.distill_teacher is not None and not self.distill_teacher.strip():
            raise ValueError(
                f"`--distill_teacher` must be a path, a Hub id or `{SELF}`, got an empty name. Leave the option out "
                "to train without a teacher."
            )
        if self.distill_loss not in LOSSES:
            raise ValueError(
                f"`--distill_loss` must be one of {', '.join(LOSSES)}, got {self.distill_loss!r}. Choose one of them."
            )
        if not (math.isfinite(self.distill_temperature) and self.distill_temperature > 0):
            raise ValueError(
                f"`--distill_temperature` must be a number above 0, got {self.distill_temperature}. Values from 1 to "
                "10 are usual."
            )
        if not 0 <= self.distill_alpha <= 1:
            raise ValueError(
                f"`--distill_alpha` must lie in [0, 1], got {self.distill_alpha}. It is the weight of the "
                "distillation loss; 0.9 leaves 0.1 for the labels."
            )
        if self.distill_student_layers is not None:
            parse_layers(self.distill_student_layers)
        if self.distill_cache is not None and not self.distill_cache.strip():
            raise ValueError(
                f"`--distill_cache` must be a folder or `{AUTO}`, got an empty name. Leave the value out."
            )
        if self.distill_loss == "mse" and "distill_temperature" in changed(self):
            warnings.warn(
                f"`--distill_temperature {self.distill_temperature}` has no effect with `--distill_loss mse`, which "
                "compares the logits themselves. Leave it out.",
                stacklevel=3,
            )

    @property
    def enabled(self) -> bool:
        return self.distill_teacher is not None

    @property
    def student_layers(self) -> int | list[int] | None:
        """How many layers the student keeps, or which; None for all."""
        return None if self.distill_student_layers is None else parse_layers(self.distill_student_layers)
