"""The mixin for the trainers of sentence-transformers, whose models are built around a Transformers model."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, Trainer
from transformers.utils import logging

from hf_compress.cut.students import student_from
from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.distance import form
from hf_compress.distill.embedding_losses import principal_directions
from hf_compress.distill.fingerprints import vocabulary_facts
from hf_compress.distill.score_losses import SCORE_LOSSES
from hf_compress.distill.sentence_asking import SentenceAskingMixin
from hf_compress.distill.sentence_batches import DATASET, TEXTS, noting, spread
from hf_compress.distill.sentence_teacher import asked, load_sentence_teacher, scores_in_order
from hf_compress.distill.teacher import check_choice
from hf_compress.distill.terms import TermsMixin
from hf_compress.models.heads import find_head, find_outputs
from hf_compress.models.sentences import load_checkpoint, pairs_of, place_of_transformer, queries_of
from hf_compress.models.sharding import from_first
from hf_compress.models.targets import transformer
from hf_compress.options import as_flag, changed

# The options that these models know. Rows that only the teacher labels are for models with a head.
KNOWN = {
    "distill_teacher",
    "distill_loss",
    "distill_temperature",
    "distill_alpha",
    "distill_dropout",
    "distill_student_layers",
    "distill_layer_loss",
    "distill_layers",
    "distill_cache",
}
PROJECTED = 2048  # Rows whose texts a projection of the teacher's embeddings is found on.

logger = logging.get_logger(__name__)


class SentenceDistillationMixin(TermsMixin, SentenceAskingMixin):
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

    distillation: DistillationArguments
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
            self._compare_layers()
            if distillation.distill_cache is not None:
                self._check_cache()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of one batch: in training the mixed one, in evaluation the script's own."""
        if not model.training or self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        alpha, own, texts = self.distillation.distill_alpha, dict(inputs), inputs.pop(TEXTS, None)
        terms = {}
        with self._layers_attached():
            with self._captured("student"), noting(cast(nn.Module, self.model), self._kind) as noted:
                if alpha < 1:
                    terms["label_loss"] = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            student, teacher, layers = self._answers(model, self._groups(own, texts), noted)
        terms = {"distill_loss": self._distance(student, teacher, own), **terms}
        loss = alpha * terms["distill_loss"]
        loss = loss + (1 - alpha) * terms["label_loss"] if alpha < 1 else loss
        for name, (weight, value) in layers.items():
            terms[name] = value
            loss = loss + weight * value
        self._record(terms)
        return (loss, {}) if return_outputs else loss

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        """Load the weights of a checkpoint, with ranges and steps, in place."""
        trained = cast(nn.Module, getattr(self.model, "_orig_mod", self.model))
        with self._layers_attached():
            load_checkpoint(
                trained, checkpoint_path, lambda folder, inner: Trainer._load_from_checkpoint(self, folder, inner)
            )

    def _distance_of_rows(self) -> Callable[..., Tensor]:
        """Return the distance of two models' outputs, by rows."""
        if not self._kind.scores_pairs:
            return self.distillation.embedding_loss.function
        if self.distillation.distill_loss in SCORE_LOSSES:
            self._check_margins()
            return SCORE_LOSSES[self.distillation.distill_loss].function
        head = find_head(transformer(self.model))
        return form(self.distillation.loss, head.problem_type or "single_label_classification")[1]

    def _distance(self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        if self._projection is not None:
            teacher = teacher @ self._projection.to(teacher)
        if self._teacher_classes is not None:
            teacher = teacher[:, self._teacher_classes]
        if self._kind.scores_pairs and self.distillation.distill_loss in SCORE_LOSSES:
            queries = torch.tensor(queries_of(inputs), device=student.device)
            margins: Tensor = self._function(student.float().squeeze(-1), teacher.float().squeeze(-1), queries)
            return margins.mean()
        found: Tensor = self._function(student.float(), teacher.float(), self.distillation.distill_temperature).mean()
        return found

    def _check_margins(self) -> None:
        """Check that scores have margins: one score for each pair, and several texts for each query."""
        name = self.distillation.distill_loss
        if (labels := cast(Any, self.model).num_labels) != 1:
            raise ValueError(
                f"`--distill_loss {name}` compares the scores of the texts for a query, so a pair must have one "
                f"score; the model gives {labels}. Use `kl`, `mse` or `ce`."
            )
        for _, dataset in self._training_sets():
            left = {DATASET, *self.data_collator.valid_label_columns}
            row = {column: [value] for column, value in next(iter(dataset)).items() if column not in left}
            if len(pairs_of(row)) < 2:
                raise ValueError(
                    f"`--distill_loss {name}` compares the scores of the texts for a query, so each row needs two "
                    f"texts or more besides the query; got the columns {', '.join(row)}. Give rows such as (query, "
                    "positive, negative), or use `--distill_loss mse`, which compares scores one by one."
                )

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

    def _compare_layers(self) -> None:
        """Set up the losses on layers, if there are any."""
        self.head = find_outputs(transformer(self.model))
        if self.distillation.layer_losses:
            ours, theirs = (vocabulary_facts(cast(Any, one).tokenizer) for one in (self.model, self.teacher))
            if ours != theirs:
                raise ValueError(
                    "`--distill_layer_loss` compares tokens one by one, so the teacher must have the student's "
                    "tokenizer; its tokens, special tokens or side of padding are others. Leave the option out, or "
                    "use another teacher."
                )
        self._set_up_layers(cast(nn.Module, self.model))

    def _some_texts(self) -> list[str]:
        """Return different texts of the training set, from evenly spaced rows."""
        found: dict[str, None] = {}
        for _, dataset in self._training_sets():
            if hasattr(dataset, "__getitem__"):
                rows = spread(dataset, PROJECTED)
            else:
                rows = list(dataset.take(PROJECTED))
            left = {DATASET, *self.data_collator.valid_label_columns}
            texts = (text for row in rows for name, text in row.items() if name not in left)
            found |= dict.fromkeys(text for text in texts if isinstance(text, str))
        return spread(list(found), PROJECTED)
