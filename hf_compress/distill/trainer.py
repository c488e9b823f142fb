"""Knowledge distillation: the mixin that makes any Trainer learn from a teacher."""

import contextlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Seq2SeqTrainer, Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_compress.cut.students import student_from
from hf_compress.distill.answer_folder import OPTION
from hf_compress.distill.answers import answer_columns, check_dataset
from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.asking import AskingMixin
from hf_compress.distill.batches import WeighingMixin
from hf_compress.distill.distance import distance, form
from hf_compress.distill.foreign import loss_and_outputs, owner, refuse_unshifted
from hf_compress.distill.teacher import SELF, check_choice, freeze, load_teacher, match_teacher, own_teacher
from hf_compress.distill.teacher_only import COLUMN, for_labels, label_mean, predicts_numbers, refuse_own_loss
from hf_compress.distill.terms import TermsMixin
from hf_compress.models.heads import LABELS, bare, find_head, has_own_forward

REPORTERS = tuple(INTEGRATION_TO_CALLBACK.values())


class DistillationMixin(TermsMixin, AskingMixin, WeighingMixin):
    """A `Trainer` that also learns from a teacher; put it before any other Trainer class to mix it in.

    With `d` the distillation loss and `l` the loss on the labels, training minimises
    `distill_alpha * d + (1 - distill_alpha) * l`, plus each loss of `distill_layer_loss` times its weight. All are
    means over the positions that count (`Head`), and all appear in the logs beside `loss`. Evaluation is the plain
    Trainer's: `eval_loss` is the loss on the labels, and the teacher is not asked. Without a teacher the class equals
    the plain Trainer to the last bit, except for the next paragraph.

    **Accumulation and processes.** Transformers lets a model divide its loss by `num_items_in_batch`, the number of
    labels in the whole accumulated batch, and assumes that every model whose forward has `**kwargs` does so. Few do:
    the classification heads of BERT and most others return the mean over the micro-batch, which makes gradients too
    large by the number of accumulation steps. This class does not ask which models do. Under accumulation or on
    several processes, a model with a known head returns its mean, and that mean is weighted by the micro-batch's share
    of the counted positions. So 4 x 4 equals 16 x 1, even if the counts are uneven, and rows with which accelerate
    fills up the last batch of an epoch do not count. Two cases stay as in Transformers: a causal language model
    without a teacher, which is correct there, and your own `compute_loss_func`. A Trainer class behind the mixin may
    compute another loss, if that is a mean over the same positions: class weights, whose mean is over weights, are
    refused in the first step, because small batches would not add up to a large one.

    Example:
        >>> from transformers import Trainer
        >>> from hf_compress.distill import DistillationMixin
        >>> class MyTrainer(Trainer):
        ...     pass
        >>> class MyDistillationTrainer(DistillationMixin, MyTrainer):
        ...     pass
    """

    uncut: PreTrainedConfig | None  # The configuration that the student had before it was cut.
    _taught: bool  # Whether the teacher has been asked in training.
    _teacher_classes: Tensor | None  # The teacher's class for each of the student's; None if the order is the same.

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        distillation: DistillationArguments | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the trainer. It takes what its Trainer class takes, and a teacher.

        Args:
            teacher: a model for the same task that reads the same inputs. It is put in evaluation mode, its gradients
                are switched off, and it moves to the training device; its dtype stays. It must not share weights with
                `model`.
            distillation: the settings; `distill_teacher` in it is the other way to give a teacher.

        Raises:
            ValueError: there are two teachers, the teacher does not fit the model, or a setting excludes a teacher.
        """
        self.distillation = distillation or DistillationArguments()
        given = args[0] if args else kwargs.get("model")
        # Before `super().__init__`, whose `on_init_end` lets callbacks replace the model's layers.
        student, teacher = self._choose_models(given, teacher)
        if student is not given:
            args, kwargs = ((student, *args[1:]), kwargs) if args else (args, kwargs | {"model": student})
        super().__init__(*args, **kwargs)
        self._learn_from(teacher)

    def begin_distillation(self, distillation: DistillationArguments) -> None:
        """Do what `__init__` does, for a trainer that was built as an instance of another class.

        Raises:
            ValueError: as in `__init__`.
        """
        self.distillation = distillation
        given = None if self.model_init is not None else self.model
        student, teacher = self._choose_models(given, None)
        if student is not given:
            self.model = self.model_wrapped = self.callback_handler.model = student
        self._learn_from(teacher)

    def call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Return a new model for a run or a trial, cut as `--distill_student_layers` says."""
        model = cast(nn.Module, self._cut(super().call_model_init(*args, **kwargs)))
        if self._layerwise is not None:
            self._set_up_layers(model)
        return model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of one micro-batch: plain in evaluation, mixed with the distillation loss in training.

        Where batches are weighted (accumulation, several processes), it is the micro-batch's share of the mean over
        the whole accumulated batch: the shares add up to that mean.
        """
        if not model.training and self._weighs_batches:
            # Trainer multiplies by the number of processes, as if the model had divided by the count; most have not.
            return super().compute_loss(model, inputs, return_outputs)
        if not model.training or (self.teacher is None and not self._weighs_batches):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        answers, inputs = self._split_answers(inputs)
        label_share, share = self._weights(model, inputs, num_items_in_batch)
        # A micro-batch whose labels are all -100 has no mean, even with weight 0: 0 * NaN is NaN.
        assert self.head is not None
        labelled = self.head.relabelled(for_labels(inputs, self.head), fill_empty=True)
        if self.teacher is None:
            found = super().compute_loss(model, labelled, return_outputs, num_items_in_batch=None)
            return (found[0] * label_share, found[1]) if return_outputs else found * label_share
        with self._layers_attached():
            label_loss, outputs = self._label_loss(model, labelled, num_items_in_batch)
            teacher = answers or self._teach(model, inputs)
        if COLUMN in inputs and predicts_numbers(inputs, self.head):
            refuse_own_loss(type(self), DistillationMixin)
            label_loss = label_mean(outputs, inputs, self.head)
        if not self._taught and self.label_smoother is None:
            refuse_unshifted(label_loss, outputs, labelled, self.head, type(bare(self.model)))
        self._taught = True
        label_loss = label_loss.mean() * label_share  # `nn.DataParallel` returns one loss per device.
        distill_loss = self._distance(outputs, teacher, inputs) * share
        alpha = self.distillation.distill_alpha
        loss = alpha * distill_loss + (1 - alpha) * label_loss
        terms = {"distill_loss": distill_loss, "label_loss": label_loss}
        for name, (weight, value) in self._layer_losses(outputs, teacher, inputs).items():
            terms[name] = value * share
            loss = loss + weight * terms[name]
        self._record(terms)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on one micro-batch.

        Raises:
            ValueError: in the first step, if the teacher was not asked because of another class's `compute_loss`.
        """
        loss = super().training_step(*args, **kwargs)
        if self.teacher is not None and not self._taught:
            name = owner(type(self)).__name__
            raise ValueError(
                f"The teacher is never asked, because `compute_loss` of {name} does not call that of "
                "DistillationMixin. Put the mixin in front of the class with your loss, as in `class "
                f"Mine(DistillationMixin, YourTrainer)`, or call `super().compute_loss(...)` in {name}."
            )
        return loss

    def _choose_models(self, model: Any, teacher: PreTrainedModel | None) -> tuple[Any, PreTrainedModel | None]:
        """Return the student, and the teacher if one is given or is `self`.

        A teacher that is given by name is loaded later, once the student's head is known.
        """
        self.uncut = None
        self._adapted = None  # The student, where the teacher is its own base model.
        student = model if model is None else self._cut(model)
        check_choice(self.distillation, student, teacher)
        if self.distillation.distill_teacher == SELF:
            teacher, self._adapted = own_teacher(cast(nn.Module, model))
        return student, teacher

    def _cut(self, model: Any) -> Any:
        """Return `model`, or the student that `--distill_student_layers` cuts from it."""
        layers = self.distillation.student_layers
        if layers is None:
            return model
        student = student_from(model, layers)
        self.uncut = model.config
        return student

    def _learn_from(self, teacher: PreTrainedModel | None) -> None:
        """Find the head, set up the teacher if there is one, and start with empty sums."""
        if self.distillation.student_layers is not None and self.optimizer is not None:
            raise ValueError(
                "`optimizers` hold the weights of the model before `--distill_student_layers` cut it. Let the trainer "
                "make its optimizer, or cut the model first with `hf_compress.student_from`."
            )
        self.teacher = teacher
        self.head = None
        if self.distillation.enabled or teacher is not None:
            self.head = find_head(self.model)
            self._set_up_teacher()
        else:
            # Transformers trains models with heads that are unknown here. Without a teacher that works.
            with contextlib.suppress(ValueError):
                self.head = find_head(self.model)
        self._sums, self._summed_steps, self._taught = None, 0, False
        # Callbacks that send logs away (TensorBoard, ...) must see what other callbacks add.
        self.callback_handler.callbacks.sort(key=lambda callback: isinstance(callback, REPORTERS))

    def _set_up_teacher(self) -> None:
        """Load the teacher if only its name is known, check that it fits the student, and freeze it."""
        assert self.head is not None
        if self.compute_loss_func is not None:
            raise ValueError(
                "`compute_loss_func` cannot be combined with a teacher, because it does not say whether it returns a "
                "mean or a share of the accumulated batch. Override `compute_loss` in a Trainer class instead, and "
                "put the mixin in front of it: `class Mine(DistillationMixin, YourTrainer)`."
            )
        loss = self.distillation.loss
        if self.head.problem_type is not None:
            form(loss, self.head.problem_type)
        if self.teacher is None:
            assert self.distillation.distill_teacher is not None
            rows = bare(self.model).config.get_text_config().vocab_size if self.head.takes_text else None
            self.teacher = load_teacher(self.distillation.distill_teacher, self.head, self.processing_class, rows)
        order = match_teacher(self.model, self.teacher)
        self._teacher_classes = None if order is None else torch.tensor(order, device=self.args.device)
        if self._adapted is None:
            freeze(self.teacher, self.args.device)
        self._find_what_the_teacher_reads()
        self._set_up_layers(self.model)
        if self.distillation.distill_cache is not None:
            check_dataset(self.train_dataset, answer_columns(self.head), OPTION)
            self._answer_names = answer_columns(self.head)
        if self._enlarges:
            if self.head.problem_type in ("regression", "multi_label_classification"):
                refuse_own_loss(type(self), DistillationMixin)
            self._set_up_enlarging()

    def _label_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        """Return the loss on the labels, as the Trainer class computes it, and the student's outputs."""
        assert self.head is not None
        total = None if self._weighs_batches else num_items_in_batch
        of = owner(type(self), DistillationMixin)
        # By name, as Trainer does: many override this method with `**kwargs` behind `return_outputs`.
        with self._captured("student"):
            if of is not Trainer and has_own_forward(model):  # TRL's computes no logits for the loss.
                loss = super().compute_loss(model, inputs, num_items_in_batch=total)
                return loss, self._outputs(model, inputs)
            found = super().compute_loss(model, inputs, True, num_items_in_batch=total)
            loss, outputs = loss_and_outputs(found, self.head, of)
            return loss, self._with_gradients(outputs, model, inputs)

    def _with_gradients(self, outputs: Any, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Return the student's outputs with gradients; a `compute_loss` may return some made only for scoring."""
        assert self.head is not None
        if not torch.is_grad_enabled() or all(logits.requires_grad for logits in self.head.logits(outputs)):
            return outputs
        return self._outputs(model, inputs)

    def _outputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Return the model's outputs without a loss."""
        return model(**{name: value for name, value in inputs.items() if name not in LABELS | set(self.label_names)})

    def _distance(self, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the distillation loss: a mean over the positions that count."""
        assert self.head is not None
        loss, temperature = self.distillation.loss, self.distillation.distill_temperature
        return distance(student, teacher, inputs, self.head, loss, temperature, self._teacher_classes)


class DistillationTrainer(DistillationMixin):
    """`transformers.Trainer` with a teacher; see `DistillationMixin`.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
        >>> from hf_compress.distill import DistillationTrainer
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> config = BertConfig(vocab_size=9, **sizes)
        >>> student, teacher = (BertForSequenceClassification(config) for _ in range(2))
        >>> arguments = TrainingArguments("out", use_cpu=True, report_to="none")
        >>> trainer = DistillationTrainer(student, arguments, teacher=teacher)
        >>> trainer.train()  # doctest: +SKIP
    """


class Seq2SeqDistillationTrainer(DistillationMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with a teacher; see `DistillationMixin`.

    Example:
        >>> from transformers import Seq2SeqTrainer
        >>> from hf_compress.distill import DistillationMixin, Seq2SeqDistillationTrainer
        >>> issubclass(Seq2SeqDistillationTrainer, DistillationMixin)
        True
        >>> issubclass(Seq2SeqDistillationTrainer, Seq2SeqTrainer)
        True
    """
