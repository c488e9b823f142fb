"""The options of knowledge distillation."""

import math
import warnings
from collections import ChainMap
from dataclasses import dataclass, field
from typing import Any

from hf_compress.cut.students import parse_layers
from hf_compress.distill.answer_folder import AUTO
from hf_compress.distill.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss
from hf_compress.distill.extra import ExtraSource
from hf_compress.distill.layer_losses import LAYER_LOSSES, LayerLoss
from hf_compress.distill.losses import LOSSES, Loss
from hf_compress.distill.pairing import LAST, UNIFORM, parse_pairs
from hf_compress.distill.score_losses import SCORE_LOSSES
from hf_compress.distill.teacher import SELF
from hf_compress.distill.teacher_only import OPTIONS
from hf_compress.options import changed, check_list

MOST_COPIES = 1000
CHOICES: ChainMap[str, Any] = ChainMap(SCORE_LOSSES, EMBEDDING_LOSSES, LOSSES)  # Losses that are added later, too.


@dataclass
class DistillationArguments:
    """Options of knowledge distillation, which is off unless `distill_teacher` is set.

    `distill_student_layers` also works without a teacher, for a control that is trained on the labels alone.

    Raises:
        ValueError: an option is outside its range, or two options exclude each other.

    Example:
        >>> from hf_compress.distill import DistillationArguments
        >>> options = DistillationArguments(distill_teacher="self", distill_student_layers="3")
        >>> options.enabled, options.student_layers
        (True, 3)
    """

    distill_teacher: str | None = field(
        default=None,
        metadata={
            "help": "The teacher: a path or Hub id (owner/name or owner/name@revision) of a model or an adapter; or "
            "`self`, a frozen copy of the model before training. For a model with a new adapter, `self` is the base "
            "model, without a copy."
        },
    )
    distill_loss: str = field(
        default="kl",
        metadata={
            "choices": CHOICES.keys(),
            "help": "Distance to the teacher. "
            + " ".join(f"`{loss.name}`: {loss.help}." for loss in LOSSES.values())
            + " For models of sentence-transformers: "
            + " ".join(f"`{loss.name}`: {loss.help}." for loss in EMBEDDING_LOSSES.values())
            + " For rerankers of sentence-transformers: "
            + " ".join(f"`{loss.name}`: {loss.help}." for loss in SCORE_LOSSES.values()),
        },
    )
    distill_temperature: float = field(
        default=2.0,
        metadata={
            "help": "Divide both models' logits by this number in "
            + " and ".join(f"`{loss.name}`" for loss in LOSSES.values() if loss.has_temperature)
            + "; above 0. Higher is softer."
        },
    )
    distill_alpha: float = field(
        default=0.9,
        metadata={"help": "Weight of the distillation loss, in [0, 1]; the loss on the labels gets the rest."},
    )
    distill_layer_loss: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "NAME=WEIGHT",
            "help": "Losses on layers, added to the loss with their weights, such as `hidden=1`. "
            + " ".join(f"`{loss.name}`: {loss.help}." for loss in LAYER_LOSSES.values())
            + " By default there are none.",
        },
    )
    distill_layers: str = field(
        default=UNIFORM,
        metadata={
            "help": f"Layers that `--distill_layer_loss` compares: `{UNIFORM}` (spread evenly; for a student cut by "
            f"`--distill_student_layers`, those that its layers came from), `{LAST}`, or pairs student:teacher "
            "(0:2,1:5), counted from 0."
        },
    )
    distill_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Probability of all dropout in the student while it learns from a teacher, in [0, 1). 0 switches "
            "dropout off, so that its noise is no part of the distance to the teacher. By default the student keeps "
            "its own."
        },
    )
    distill_student_layers: str | None = field(
        default=None,
        metadata={
            "help": "Train a student cut from the model: with this many of its layers, evenly spaced (3), or with "
            "these layers (0,2,5), counted from 0. `--distill_teacher self` is then the whole model. By default all "
            "layers stay."
        },
    )
    distill_cache: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": AUTO,
            "help": "Ask the teacher once, before training, and keep its answers in a file in this folder; "
            f"`{AUTO}`, or no value, means beside the caches of datasets. By default the teacher is asked at every "
            "step.",
        },
    )

    distill_augment: int = field(
        default=0,
        metadata={
            "help": "Add this many new rows for each training row, which only the teacher labels: words are replaced "
            "by close ones, and pairs are swapped or paired anew. They are made once, before training."
        },
    )

    distill_extra: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Add these texts, which only the teacher labels: files (.txt, .csv, .tsv, .json, .jsonl, "
            ".parquet), folders or Hub ids, with one column of text, or two if the training rows are pairs. DATASET "
            "may be followed by `:SPLIT` or `:CONFIG:SPLIT`."
        },
    )
    distill_extra_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of each epoch's rows that only the teacher labels, in (0, 1): 0.5 adds as many as there "
            "are labelled rows, others in each epoch. By default all of them are in every epoch."
        },
    )

    def __post_init__(self) -> None:
        if self.distill_teacher is not None and not self.distill_teacher.strip():
            raise ValueError(
                f"`--distill_teacher` must be a path, a Hub id or `{SELF}`, got an empty name. Leave the option out "
                "to train without a teacher."
            )
        if self.distill_loss not in CHOICES:
            raise ValueError(
                f"`--distill_loss` must be one of {', '.join(CHOICES)}, got {self.distill_loss!r}. Choose one of them."
            )
        if not (math.isfinite(self.distill_temperature) and self.distill_temperature > 0):
            raise ValueError(
                f"`--distill_temperature` must be a number above 0, got {self.distill_temperature}. Values from 1 to "
                "10 are usual."
            )
        if not 0 <= self.distill_alpha <= 1:
            raise ValueError(
                f"`--distill_alpha` must be in [0, 1], got {self.distill_alpha}. It is the weight of the "
                "distillation loss; 0.9 leaves 0.1 for the labels."
            )
        if self.distill_dropout is not None and not 0 <= self.distill_dropout < 1:
            raise ValueError(
                f"`--distill_dropout` must be a probability in [0, 1), got {self.distill_dropout}. Give 0 to switch "
                "dropout off, or leave the option out to keep the model's own."
            )
        if self.distill_student_layers is not None:
            parse_layers(self.distill_student_layers)
        self._check_cache()
        self._check_layers()
        self._check_teacher_only_rows()
        forms = (LOSSES.get(self.distill_loss), EMBEDDING_LOSSES.get(self.distill_loss))
        softened = any(form is not None and form.has_temperature for form in forms)
        if not softened and "distill_temperature" in changed(self):
            warnings.warn(
                f"`--distill_temperature {self.distill_temperature}` has no effect with `--distill_loss "
                f"{self.distill_loss}`. Leave it out.",
                stacklevel=3,
            )

    def _check_teacher_only_rows(self) -> None:
        copies = self.distill_augment
        if not isinstance(copies, int) or isinstance(copies, bool) or not 0 <= copies <= MOST_COPIES:
            raise ValueError(
                "`--distill_augment` must be a whole number of new rows for each training row, from 0 to "
                f"{MOST_COPIES}; got {copies!r}. Give 20 as TinyBERT does, or leave the option out."
            )
        check_list("distill_extra", self.distill_extra)
        for source in self.distill_extra:
            ExtraSource.of(source)
        share = self.distill_extra_share
        if share is not None and not 0 < share < 1:
            raise ValueError(
                f"`--distill_extra_share` must be a share of the rows of an epoch, in (0, 1); got {share}. Give 0.5 "
                "for as many rows without labels as there are with labels."
            )
        if share is not None and not self.has_teacher_only_rows:
            warnings.warn(
                f"`--distill_extra_share {share}` has no effect without `--distill_extra` or `--distill_augment`. "
                "Leave it out.",
                stacklevel=4,
            )

        if self.has_teacher_only_rows and self.distill_alpha == 0 and not self.distill_layer_loss:
            warnings.warn(
                f"{OPTIONS} add rows that train nothing with `--distill_alpha 0`, which leaves the teacher out of the "
                "loss. Raise it, or leave the rows out.",
                stacklevel=4,
            )

    def _check_cache(self) -> None:
        if self.distill_cache is None:
            return
        if not self.distill_cache.strip():
            raise ValueError(
                f"`--distill_cache` must be a folder or `{AUTO}`, got an empty name. Leave the value out."
            )
        if self.distill_layer_loss:
            raise ValueError(
                "`--distill_cache` keeps the teacher's logits only, because what its layers compute takes too much "
                "space; `--distill_layer_loss` needs that. Leave one of the two options out."
            )

    def _check_layers(self) -> None:
        parse_pairs(self.distill_layers)
        check_list("distill_layer_loss", self.distill_layer_loss)
        names = [loss.name for loss, _ in self.layer_losses]
        if len(set(names)) < len(names):
            raise ValueError(
                f"`--distill_layer_loss` must name each loss once, got {' '.join(self.distill_layer_loss)}. Give one "
                "weight for each."
            )
        if not names and self.distill_layers != UNIFORM:
            warnings.warn(
                f"`--distill_layers {self.distill_layers}` has no effect without `--distill_layer_loss`. Give a loss, "
                "such as `hidden=1`, or leave the option out.",
                stacklevel=4,
            )

    @property
    def layer_losses(self) -> list[tuple[LayerLoss, float]]:
        """The entries of `LAYER_LOSSES` that `distill_layer_loss` names, with their weights."""
        return [_weighted(text) for text in self.distill_layer_loss]

    @property
    def loss(self) -> Loss:
        """The entry of `LOSSES` that `distill_loss` names, for models with a head.

        Raises:
            ValueError: the loss is one on embeddings, or on the texts for a query.
        """
        if self.distill_loss not in LOSSES:
            raise ValueError(
                f"`--distill_loss {self.distill_loss}` compares embeddings or rankings of sentence-transformers; this "
                f"model gives logits. Choose one of {', '.join(LOSSES)}."
            )
        return LOSSES[self.distill_loss]

    @property
    def embedding_loss(self) -> EmbeddingLoss:
        """The entry of `EMBEDDING_LOSSES` that `distill_loss` names, for models that give embeddings.

        Raises:
            ValueError: the loss is one on logits, or on the texts for a query.
        """
        if self.distill_loss not in EMBEDDING_LOSSES:
            raise ValueError(
                f"`--distill_loss {self.distill_loss}` compares logits or scores; this model gives embeddings. "
                f"Choose one of "
                f"{', '.join(EMBEDDING_LOSSES)}."
            )
        return EMBEDDING_LOSSES[self.distill_loss]

    @property
    def enabled(self) -> bool:
        """Whether there is a teacher."""
        return self.distill_teacher is not None

    @property
    def has_teacher_only_rows(self) -> bool:
        """Whether the training set gets rows that only the teacher labels."""
        return bool(self.distill_extra) or self.distill_augment > 0

    def refuse_teacher_only_rows(self) -> None:
        """Refuse rows that only a teacher can label. Call it where there is none."""
        if self.has_teacher_only_rows:
            raise ValueError(
                f"{OPTIONS} add rows that only a teacher can label, and there is none. Give `--distill_teacher`, or "
                "leave the options out."
            )

    @property
    def student_layers(self) -> int | list[int] | None:
        """How many layers the student keeps, or which ones; None means all."""
        return None if self.distill_student_layers is None else parse_layers(self.distill_student_layers)


def _weighted(text: str) -> tuple[LayerLoss, float]:
    """Return the loss and the weight in `NAME=WEIGHT`.

    Raises:
        ValueError: there is no such loss, or the weight is not a number above 0.
    """
    name, _, weight = text.partition("=")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if name not in LAYER_LOSSES or not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"`--distill_layer_loss` must be NAME=WEIGHT, with one of {', '.join(LAYER_LOSSES)} and a weight above 0; "
            f"got {text!r}. Give for example `hidden=1`."
        )
    return LAYER_LOSSES[name], number
