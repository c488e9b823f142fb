"""The mixin for the trainers of sentence-transformers, whose models are built around a Transformers model."""

from typing import Any

from transformers import PreTrainedConfig, Trainer

from hf_compress.distill.arguments import DistillationArguments
from hf_compress.models.sentences import load_checkpoint
from hf_compress.options import as_flag, changed


class SentenceDistillationMixin:
    """The counterpart of `DistillationMixin` for a `SentenceTransformerTrainer`, `CrossEncoderTrainer` and the like.

    Checkpoints are loaded in place, so that resuming and `load_best_model_at_end` keep the ranges of activations.

    Example:
        >>> from hf_compress.distill.sentence_trainer import SentenceDistillationMixin
        >>> hasattr(SentenceDistillationMixin, "begin_distillation")
        True
    """

    model: Any
    distillation: DistillationArguments
    teacher: Any = None
    uncut: PreTrainedConfig | None = None
    _adapted: Any = None
    _teacher_classes: Any = None

    def begin_distillation(self, distillation: DistillationArguments) -> None:
        """Set the trainer up to learn from the teacher of `distillation`, if it has one.

        Raises:
            ValueError: an option does not work with these models.
        """
        self.distillation = distillation
        if options := changed(distillation):
            raise ValueError(
                f"`{as_flag(distillation, min(options))}` does not work with a {type(self.model).__name__} yet. Leave "
                "it out."
            )

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        """Load the weights of a checkpoint, with ranges and steps, in place."""
        unwrapped = getattr(self.model, "_orig_mod", self.model)
        load_checkpoint(
            unwrapped,
            checkpoint_path,
            lambda folder, inner: Trainer._load_from_checkpoint(self, folder, inner),  # type: ignore[arg-type]
        )
