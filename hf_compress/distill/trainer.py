"""Knowledge distillation: the mixin that teaches any Trainer to learn from a teacher."""

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Seq2SeqTrainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_compress.cut.students import student_from
from hf_compress.distill.answers import answer_columns
from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.asking import AskingMixin
from hf_compress.distill.batches import without_borrowed
from hf_compress.distill.cache import check_dataset
from hf_compress.distill.losses import BINARY_LOSSES, LOSSES, mse
from hf_compress.distill.teacher import SELF, check_choice, freeze, load_teacher, match_teacher, own_teacher
from hf_compress.models.heads import LABELS, Head, bare, find_head

REPORTERS = tuple(INTEGRATION_TO_CALLBACK.values())
TERMS = ("distill_loss", "label_loss")


class DistillationMixin(AskingMixin):
    """A `Trainer` that also learns from a teacher; put it before any other Trainer class to mix it in.

    With `d` the distillation loss and `l` the loss on the labels, training minimises
    `distill_alpha * d + (1 - distill_alpha) * l`, both being means over the positions that count (`Head`). Both
    appear in the logs beside `loss`. Evaluation is the plain Trainer's: `eval_loss` is the loss on the labels and the
    teacher costs nothing. Without a teacher the class is the plain Trainer, to the last bit, except for the next
    paragraph.

    **Accumulation and processes.** Transformers lets a model divide its loss by `num_items_in_batch`, the count of
    labels in the whole accumulated batch, and takes for granted that every model whose forward has `**kwargs` does.
    Few do: the classification heads of BERT and most others take the mean over the micro-batch whatever they are
    given, which makes gradients too large by the number of accumulation steps. Nothing here asks which do: under
    accumulation or on several processes a model with a known head is left to take its mean, and that mean is weighted
    by the micro-batch's share of the counted positions. 4 x 4 is 16 x 1, also where counts are uneven; rows with which
    accelerate fills up the last batch of an epoch do not count. Two cases stay as Transformers has them: a causal
    language model without a teacher, which it gets right, and a `compute_loss_func` of the user's.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        distillation: DistillationArguments | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes what the Trainer class takes, and a teacher.

        Args:
            teacher: a model for the same task and vocabulary. It is put in evaluation mode, its gradients are switched
                off and it moves to the training device; its dtype stays. It must not share weights with `model`.
            distillation: the settings; `distill_teacher` in it is the other way to give a teacher.

        Raises:
            ValueError: two teachers, a teacher that does not fit the model, or a setting that excludes a teacher.
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
        """Does, and refuses, what construction does, for a trainer that was built as one of another class."""
        self.distillation = distillation
        given = None if self.model_init is not None else self.model
        student, teacher = self._choose_models(given, None)
        if student is not given:
            self.model = self.model_wrapped = self.callback_handler.model = student
        self._learn_from(teacher)

    def call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        """A new model for a run or a trial, cut like one that is given."""
        return cast(nn.Module, self._cut(super().call_model_init(*args, **kwargs)))

    def _choose_models(self, model: Any, teacher: PreTrainedModel | None) -> tuple[Any, PreTrainedModel | None]:
        """The student, and the teacher given or the model's own; None if there is none, or only its name is known."""
        self.uncut: PreTrainedConfig | None = None  # The configuration that the student had before it was cut.
        self._adapted: PeftModel | None = None  # The student, where the teacher is its own base model.
        student = model if model is None else self._cut(model)
        check_choice(self.distillation, student, teacher)
        if self.distillation.distill_teacher == SELF:
            teacher, self._adapted = own_teacher(cast(nn.Module, model))
        return student, teacher

    def _cut(self, model: Any) -> Any:
        """The student: `model`, or what `--distill_student_layers` leaves of it."""
        layers = self.distillation.student_layers
        if layers is None:
            return model
        student = student_from(model, layers)
        self.uncut = model.config
        return student

    def _learn_from(self, teacher: PreTrainedModel | None) -> None:
        if self.distillation.student_layers is not None and self.optimizer is not None:
            raise ValueError(
                "`optimizers` hold the weights of the model as it was before `--distill_student_layers` cut it. Let "
                "the trainer make its optimizer, or cut the model first with `hf_compress.student_from`."
            )
        self.teacher = teacher
        self.head: Head | None = None
        if self.distillation.enabled or teacher is not None:
            self.head = find_head(self.model)
            self._set_up_teacher()
        else:
            # Transformers trains models with heads that nothing here knows; without a teacher nothing has to.
            with contextlib.suppress(ValueError):
                self.head = find_head(self.model)
        self._sums: Tensor | None = None
        self._summed_steps = 0
        self._borrows = False  # Whether the last micro-batch of this step has no row of its own.
        # What sends logs away (TensorBoard, ...) must see what other callbacks add to them.
        self.callback_handler.callbacks.sort(key=lambda callback: isinstance(callback, REPORTERS))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, and how many positions count in them on all processes together."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # Resumed after its last step; Trainer would take another.
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if not self._weighs_batches:
            return batches, num_items_in_batch
        assert self.head is not None
        batches, self._borrows = without_borrowed(batches, self.args.train_batch_size, self.accelerator)
        counts = [self.head.count(batch) if isinstance(batch, Mapping) else None for batch in batches]
        if self._borrows and counts[-1] is not None:
            counts[-1] = torch.zeros_like(counts[-1])
        known = [count.to(self.args.device) for count in counts if count is not None]
        if not known or len(known) < len(counts):
            return batches, None
        total = torch.stack(known).sum()
        if self.args.average_tokens_across_devices:
            total = self.accelerator.gather(total).sum()
        return batches, total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of one micro-batch: plain in evaluation, mixed with the distillation loss in training.

        Where batches are weighed (accumulation, several processes) it is the micro-batch's share of the mean over the
        whole accumulated batch, so that the shares add up to that mean.
        """
        if not model.training and self._weighs_batches:
            # Trainer multiplies by the number of processes what a model was to divide by the count, and most do not.
            return super().compute_loss(model, inputs, return_outputs)
        if not model.training or (self.teacher is None and not self._weighs_batches):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        assert self.head is not None
        answers = {name: inputs[name] for name in self._answer_names if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in answers}
        # A micro-batch whose labels all are -100 has no mean, even with no weight: 0 * NaN is NaN.
        labelled = self.head.relabelled(inputs, fill_empty=self._weighs_batches)
        share: Tensor | float = 1.0
        if self._weighs_batches:
            share = self._share(inputs, num_items_in_batch)
            if self._borrows and self.accelerator.sync_gradients:
                share = 0.0
                model.eval()  # For this forward: nothing that layers observe in training may come from these rows.
            num_items_in_batch = None
            # Here rather than in __init__: a subclass that overrides this method answers for its own loss.
            self.loss_is_scaled_for_ga = True
        # By name, as Trainer does: many override this method with `**kwargs` behind `return_outputs`.
        label_loss, outputs = super().compute_loss(model, labelled, True, num_items_in_batch=num_items_in_batch)
        if self.teacher is None:
            loss = label_loss * share
        else:
            label_loss = label_loss.mean() * share  # `nn.DataParallel` returns one loss per device
            outputs = self._learning(outputs, model, labelled)
            taught = dict(zip(self.head.names, answers.values(), strict=True)) if answers else None
            distill_loss = self._distance(outputs, taught or self._teach(model, inputs), inputs) * share
            alpha = self.distillation.distill_alpha
            loss = alpha * distill_loss + (1 - alpha) * label_loss
            self._record(distill_loss, label_loss)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds `distill_loss` and `label_loss` beside `loss`: means over the steps since they were logged last."""
        if "loss" in logs and self._sums is not None and self._summed_steps:
            sums = self.accelerator.gather(self._sums).reshape(-1, len(TERMS)).mean(0)
            terms = dict(zip(TERMS, (sums / self._summed_steps).tolist(), strict=True))
            logs = {"loss": logs["loss"], **terms, **logs}
        if "loss" in logs or "train_loss" in logs:
            self._sums, self._summed_steps = None, 0
        super().log(logs, *args, **kwargs)

    @property
    def _weighs_batches(self) -> bool:
        """Whether the loss of a micro-batch is weighted here rather than by the model or by Trainer."""
        if self.head is None or self.compute_loss_func is not None:
            return False
        if self.head.descriptor.position == "next token" and self.teacher is None and self.model_accepts_loss_kwargs:
            return False
        # Trainer may count a causal model's first labels, which nothing predicts: with a teacher both terms are means.
        taught_causal = self.head.descriptor.position == "next token" and self.teacher is not None
        return taught_causal or self.args.gradient_accumulation_steps > 1 or self.accelerator.num_processes > 1

    def _share(self, inputs: Mapping[str, Any], total: Tensor | int | None) -> Tensor | float:
        """The weight of this micro-batch's mean in the mean over the accumulated batch."""
        assert self.head is not None
        count = self.head.count(inputs)
        if count is None or total is None:
            return 1 / self.current_gradient_accumulation_steps
        # Gradients (and logged losses) are averaged over processes; a share of the total over all has to be summed.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        total = torch.as_tensor(total, device=self.args.device)
        return count.to(self.args.device) * processes / total.clamp(min=1)

    def _learning(self, outputs: Any, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """The student's outputs with gradients; a `compute_loss` may return some that were only made to be scored."""
        assert self.head is not None
        if not torch.is_grad_enabled() or all(logits.requires_grad for logits in self.head.logits(outputs)):
            return outputs
        return model(**{name: value for name, value in inputs.items() if name not in LABELS | set(self.label_names)})

    def _distance(self, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The distillation loss: a mean over the positions that count, and over the two ends of an answer."""
        assert self.head is not None
        problem = self.head.problem(inputs)
        losses = BINARY_LOSSES if problem == "multi_label_classification" else LOSSES
        loss = mse if problem == "regression" else losses[self.distillation.distill_loss]
        means = []
        both = (self.head.positions(outputs, inputs) for outputs in (student, teacher))
        for ours, theirs in zip(*both, strict=True):
            theirs = theirs.to(ours)
            if self._teacher_classes is not None:
                theirs = theirs[:, self._teacher_classes]
            distances = loss(ours, theirs, self.distillation.distill_temperature)
            means.append(distances.sum() / max(len(distances), 1))
        return torch.stack(means).mean()

    def _record(self, *terms: Tensor) -> None:
        """Adds the terms to what the next log line shows, on the device: reading them would stop it at every step."""
        sums = torch.stack([term.detach().float() for term in terms])
        self._sums = sums if self._sums is None else self._sums + sums
        self._summed_steps += int(self.accelerator.sync_gradients)

    def _set_up_teacher(self) -> None:
        """Loads the teacher where only its name is known, checks that it fits the student, and freezes it."""
        assert self.head is not None
        if self.compute_loss_func is not None:
            raise ValueError(
                "`compute_loss_func` cannot be combined with a teacher, because it does not say whether it returns a "
                "mean or a share of the accumulated batch. Drop it, or override `compute_loss` in a subclass of the "
                "trainer."
            )
        if self.teacher is None:
            assert self.distillation.distill_teacher is not None
            self.teacher = load_teacher(self.distillation.distill_teacher, self.head, self.processing_class)
        order = match_teacher(self.model, self.teacher)
        self._teacher_classes = None if order is None else torch.tensor(order, device=self.args.device)
        if self._adapted is None:
            freeze(self.teacher, self.args.device)
        arguments = set(inspect.signature(bare(self.teacher).forward).parameters)
        self._teacher_inputs = arguments - LABELS - set(self.label_names)
        self._teacher_caches = "use_cache" in arguments
        if self.distillation.distill_cache is not None:
            check_dataset(self.train_dataset)
            self._answer_names = answer_columns(self.head)


class DistillationTrainer(DistillationMixin):
    """`transformers.Trainer` with a teacher; see `DistillationMixin`."""


class Seq2SeqDistillationTrainer(DistillationMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with a teacher; see `DistillationMixin`."""
