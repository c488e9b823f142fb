"""A Trainer that compares layers of its model with layers of its teacher."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from hf_compress.distill.arguments import DistillationArguments
from hf_compress.distill.distance import mean_over_rows
from hf_compress.distill.dropout import student_dropout
from hf_compress.distill.layerwise import Layerwise
from hf_compress.distill.pairing import pair_layers
from hf_compress.models.heads import Head, bare
from hf_compress.models.stacks import NoLayers, layers_config, layers_of
from hf_compress.models.targets import transformer


class LayersLeave(TrainerCallback):
    """Leaves both models as they were before other callbacks see the trained one, which may save it."""

    def __init__(self, layerwise: Layerwise) -> None:
        self.layerwise = layerwise

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Take hooks and projections off the models."""
        self.layerwise.detach()


class LayeringMixin(Trainer):
    """The part of a `DistillationMixin` that computes the losses of `--distill_layer_loss`.

    While training lasts, both models have hooks, and the student has the projections between different widths; then
    both are as they were.
    """

    distillation: DistillationArguments
    teacher: Any
    head: Head | None
    uncut: PreTrainedConfig | None
    model: Any
    _teach: Callable[[nn.Module, Mapping[str, Any]], Any]
    _layerwise: Layerwise | None = None

    # Not `train`: the launcher makes a Trainer compress when that is already running.
    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with hooks and projections on the models, and with the dropout that the options give the student."""
        dropout = None if self.teacher is None else self.distillation.distill_dropout
        with self._layers_attached(), student_dropout(self.model, dropout):
            return super()._inner_training_loop(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load a training checkpoint, with the projections in it."""
        with self._layers_attached():
            super()._load_from_checkpoint(*args, **kwargs)

    def _set_up_layers(self, model: nn.Module) -> None:
        """Choose the pairs of layers and check that `model` and the teacher can be compared, if the options ask to.

        Raises:
            ValueError: they cannot be compared.
        """
        self._layerwise = None
        losses = self.distillation.layer_losses
        if not losses:
            return
        assert self.head is not None and self.teacher is not None
        taught_by = cast(nn.Module, self.teacher)
        if self.args.n_gpu > 1:
            raise ValueError(
                "`--distill_layer_loss` does not work with `nn.DataParallel`, which copies the model to each device "
                "at every step. Start one process per device with `torchrun`, or set CUDA_VISIBLE_DEVICES to one."
            )
        try:
            student, teacher = (len(layers_of(bare(transformer(bare(one))))) for one in (model, taught_by))
        except NoLayers as error:
            raise ValueError(f"`--distill_layer_loss` cannot be used: {error}. Leave the option out.") from error
        uncut = None if self.uncut is None else layers_config(bare(transformer(bare(model))), self.uncut)
        cut = uncut is not None and uncut.num_hidden_layers == teacher
        kept = self.distillation.student_layers if cut else None
        pairs = pair_layers(self.distillation.distill_layers, student, teacher, kept)
        self._layerwise = Layerwise(losses, pairs, self.args.seed)
        self._layerwise.set_up(
            model, taught_by, self.head, lambda batch: self._run(model, batch), lambda batch: self._teach(model, batch)
        )
        if self._layerwise.projections and self.optimizer is not None and self.model_init is None:
            raise ValueError(
                "`optimizers` do not hold the projections that `--distill_layer_loss` trains, because the models have "
                "layers of different widths. Let the trainer make its optimizer, or use `relations`."
            )
        ends = LayersLeave(self._layerwise)
        self.remove_callback(LayersLeave)
        self.callback_handler.callbacks.insert(0, ends)

    @contextlib.contextmanager
    def _layers_attached(self) -> Iterator[None]:
        """Put hooks and projections on the models inside the context, if the options ask for that."""
        if self._layerwise is None:
            yield
            return
        assert self.teacher is not None
        with self._layerwise.attached(self.model, self.teacher):
            yield

    def _captured(self, of: str) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the "student" or the "teacher" hands over what its layers compute."""
        if self._layerwise is None:
            return contextlib.nullcontext()
        return (self._layerwise.student if of == "student" else self._layerwise.teacher).active()

    def _layer_losses(self, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> dict[str, tuple[float, Tensor]]:
        """Return weight and value of each layerwise loss of a batch, by its name in the logs."""
        if self._layerwise is None:
            return {}
        values = self._layerwise.losses(
            student, teacher, self.model, inputs, lambda values: self._mean_over_rows(values, inputs)
        )
        return {term.loss.term: (term.weight, values[term.loss.term]) for term in self._layerwise.terms}

    def _run(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """Return the student's outputs for an example batch."""
        return model(**batch)

    def _mean_over_rows(self, values: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean of one value per row, as the other terms of the loss are averaged."""
        assert self.head is not None
        return mean_over_rows(values, inputs, self.head)
