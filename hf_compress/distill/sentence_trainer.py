"""The mixin for the trainers of sentence-transformers, whose models are built around a Transformers model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, Trainer
from transformers.utils import logging

from hf_compress.cut.students import student_from
from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.distance import form
from hf_compress.distill.dropout import student_dropout
from hf_compress.distill.embedding_losses import principal_directions
from hf_compress.distill.sentence_batches import DATASET, IDS, TEXTS, TextsCollator, noting, prompt_for, spread
from hf_compress.distill.sentence_teacher import asked, load_sentence_teacher, scores_in_order
from hf_compress.distill.teacher import check_choice
from hf_compress.distill.terms import TermsMixin
from hf_compress.models.heads import find_head
from hf_compress.models.sentences import (
    SentenceKind,
    load_checkpoint,
    pairs_of,
    place_of_transformer,
    sentence_kind,
)
from hf_compress.models.sharding import from_first
from hf_compress.models.targets import transformer
from hf_compress.options import as_flag, changed

# The options that these models know. Layers, caches and rows without labels are for models with a head.
KNOWN = {
    "distill_teacher",
    "distill_loss",
    "distill_temperature",
    "distill_alpha",
    "distill_dropout",
    "distill_student_layers",
}
PROJECTED = 2048  # Rows whose texts a projection of the teacher's embeddings is found on.

logger = logging.get_logger(__name__)


class SentenceDistillationMixin(TermsMixin):
    """The counterpart of `DistillationMixin` for a `SentenceTransformerTrainer`, `CrossEncoderTrainer` and the like.

    With `d` the distillation loss and `l` the script's own loss, training minimises
    `distill_alpha * d + (1 - distill_alpha) * l`. The script's loss is computed by its own class, which calls the
    model as often as it likes. `d` compares the embeddings of all texts of the batch, or the scores of its pairs, with
    what the teacher gives for the same texts, which it reads with its own tokenizer. The student's are those that the
    script's loss has computed; it is called again where they have no gradients, as in the cached losses. With
    `distill_alpha=1` the script's loss is not computed, so nothing needs labels.

    Checkpoints are loaded in place, so that resuming and `load_best_model_at_end` keep the ranges of activations.

    Example:
        >>> from hf_compress.distill.sentence_trainer import SentenceDistillationMixin
        >>> hasattr(SentenceDistillationMixin, "begin_distillation")
        True
    """

    data_collator: Any
    distillation: DistillationArguments
    teacher: nn.Module | None = None
    uncut: PreTrainedConfig | None = None  # The configuration that the student had before it was cut.
    _adapted: Any = None
    _teacher_classes: list[int] | None = None
    _function: Callable[..., Tensor]  # The distance of two models' outputs, by rows.
    _projection: Tensor | None = None  # From the teacher's width to the student's.

    def begin_distillation(self, distillation: DistillationArguments) -> None:
        """Cut the student and set the trainer up to learn from its teacher, if the options say so.

        Raises:
            ValueError: an option does not work with these models, or the teacher does not fit.
        """
        self.distillation = distillation
        check_choice(distillation, self.model, None)
        if options := sorted({*changed(distillation)} - KNOWN):
            raise ValueError(
                f"{as_flag(distillation, options[0])} works with models of Transformers only; this trains a "
                f"{type(self.model).__name__}. Leave it out."
            )
        if distillation.enabled:
            self._function = self._distance_of_rows()
            assert distillation.distill_teacher is not None
            self.teacher = load_sentence_teacher(distillation.distill_teacher, cast(nn.Module, self.model))
        if distillation.student_layers is not None:
            self._cut(distillation.student_layers)
        if self.teacher is not None:
            self.teacher.to(self.args.device)
            self._match()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches to train on, with their texts if a teacher reads them."""
        given = self.data_collator
        if self.teacher is not None and not self._kind.scores_pairs:
            self.data_collator = TextsCollator(given)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = given

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of one batch: in training the mixed one, in evaluation the script's own."""
        if not model.training or self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        alpha, own, texts = self.distillation.distill_alpha, dict(inputs), inputs.pop(TEXTS, None)
        terms = {}
        with noting(cast(nn.Module, self.model), self._kind) as noted:
            if alpha < 1:
                terms["label_loss"] = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        known = noted.of
        groups = self._pairs(own) if texts is None else self._texts(own, texts)
        student = torch.cat([self._computed(model, features, known) for features, _, _ in groups])
        teacher = torch.cat([asked(self.teacher, read, prompt) for _, read, prompt in groups]).to(student)
        terms = {"distill_loss": self._distance(student, teacher), **terms}
        self._record(terms)
        loss = alpha * terms["distill_loss"]
        loss = loss + (1 - alpha) * terms["label_loss"] if alpha < 1 else loss
        return (loss, {}) if return_outputs else loss

    # Not `train`: the launcher makes a Trainer compress when that is already running.
    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train with the dropout that the options give the student."""
        dropout = None if self.teacher is None else self.distillation.distill_dropout
        with student_dropout(cast(nn.Module, self.model), dropout):
            return super()._inner_training_loop(*args, **kwargs)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        """Load the weights of a checkpoint, with ranges and steps, in place."""
        trained = cast(nn.Module, getattr(self.model, "_orig_mod", self.model))
        load_checkpoint(
            trained, checkpoint_path, lambda folder, inner: Trainer._load_from_checkpoint(self, folder, inner)
        )

    @property
    def _kind(self) -> SentenceKind:
        return cast(SentenceKind, sentence_kind(self.model))

    def _distance_of_rows(self) -> Callable[..., Tensor]:
        """Return the distance of two models' outputs, by rows."""
        if not self._kind.scores_pairs:
            return self.distillation.embedding_loss.function
        head = find_head(transformer(self.model))
        return form(self.distillation.loss, head.problem_type or "single_label_classification")[1]

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self._projection is not None:
            teacher = teacher @ self._projection.to(teacher)
        if self._teacher_classes is not None:
            teacher = teacher[:, self._teacher_classes]
        found: Tensor = self._function(student.float(), teacher.float(), self.distillation.distill_temperature).mean()
        return found

    def _cut(self, layers: int | list[int]) -> None:
        """Replace the Transformers model by the student that `--distill_student_layers` cuts from it, in place."""
        if self.optimizer is not None:
            raise ValueError(
                "`optimizers` hold the weights of the model before `--distill_student_layers` cut it. Let the trainer "
                "make its optimizer."
            )
        model = cast(nn.Module, self.model)
        first, _, place = place_of_transformer(model).partition(".")
        whole: Any = model.get_submodule(first).get_submodule(place)
        setattr(model.get_submodule(first), place, student_from(whole, layers))
        self.uncut = whole.config

    def _match(self) -> None:
        """Check that the teacher's outputs fit the student's, and find a projection of wider ones."""
        assert self.teacher is not None
        if self._kind.scores_pairs:
            self._teacher_classes = scores_in_order(cast(nn.Module, self.model), self.teacher)
            return
        loss = self.distillation.embedding_loss
        ours, theirs = (cast(Any, one).get_embedding_dimension() for one in (self.model, self.teacher))
        if ours == theirs or not loss.same_width:
            return
        if theirs < ours:
            raise ValueError(
                f"`--distill_loss {loss.name}` needs a teacher whose embeddings are as wide as the student's, or "
                f"wider; the teacher has {theirs} values, the student {ours}. Use `--distill_loss similarity` or "
                "`kl`, which compare similarities, or another teacher."
            )
        texts = self._some_texts()
        if len(texts) < ours:
            raise ValueError(
                f"`--distill_loss {loss.name}` projects the teacher's {theirs} values to the student's {ours} by PCA, "
                f"which needs at least {ours} texts in the training set; there are {len(texts)}. Use `--distill_loss "
                "similarity` or `kl`, which compare similarities."
            )
        rows = asked(self.teacher, texts, None).float().cpu()
        self._projection = from_first(principal_directions(rows, ours)).to(self.args.device)
        kept = float((rows @ self._projection.cpu()).square().sum() / rows.square().sum())
        logger.warning(
            f"The teacher's embeddings have {theirs} values, the student's {ours}: they are projected by PCA, which "
            f"keeps {100 * kept:.1f} % of their squared length on {len(texts):,} texts of the training set."
        )

    def _some_texts(self) -> list[str]:
        """Return different texts of the training set, from evenly spaced rows."""
        given = cast(Any, self.train_dataset)
        datasets = list(given.values()) if isinstance(given, Mapping) else [given]
        found: dict[str, None] = {}
        for dataset in datasets:
            if hasattr(dataset, "__getitem__"):
                rows = spread(dataset, PROJECTED)
            else:
                rows = list(dataset.take(PROJECTED))
            left = {DATASET, *self.data_collator.valid_label_columns}
            texts = (text for row in rows for name, text in row.items() if name not in left)
            found |= dict.fromkeys(text for text in texts if isinstance(text, str))
        return spread(list(found), PROJECTED)

    def _texts(
        self, inputs: dict[str, Any], texts: Mapping[str, Sequence[Any]]
    ) -> list[tuple[dict[str, Any], Sequence[Any], str | None]]:
        """Return, for each column of texts, the student's inputs, the texts and their prompt."""
        features, _ = cast(Any, self).collect_features({name: own for name, own in inputs.items() if name != TEXTS})
        if len(features) != len(texts) or not all(isinstance(text, str) for own in texts.values() for text in own):
            raise ValueError(
                "A teacher reads columns of texts, and the training set has others besides labels: "
                f"{', '.join(texts)}. Remove what is no text, or train without `--distill_teacher`."
            )
        prompts, dataset = getattr(self.args, "prompts", None), inputs.get(DATASET)
        return [
            (own, texts[name], prompt_for(prompts, dataset, name)) for own, name in zip(features, texts, strict=True)
        ]

    def _pairs(self, inputs: dict[str, Any]) -> list[tuple[dict[str, Any], Sequence[Any], str | None]]:
        """Return the student's inputs for the pairs of texts in a batch, the pairs and their prompt."""
        pairs, prompt = pairs_of(inputs), inputs.get("prompt")
        features = cast(Any, self.model).preprocess(pairs, prompt=prompt, task=inputs.get("task"))
        return [(cast(dict[str, Any], self._prepare_inputs(features)), pairs, prompt)]

    def _computed(self, model: nn.Module, features: dict[str, Any], known: Any) -> Tensor:
        """Return the student's outputs, which the script's loss may have computed already."""
        found = known(features[IDS]) if IDS in features else None
        found = model(dict(features))[self._kind.output] if found is None else found
        return cast(Tensor, found.to_dense() if found.is_sparse else found)
