"""Gradual removal of layers: the callback that drops the layers which the outputs need least in any Trainer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_compress.callbacks import add_to_logs, log_first, progress, refuse_diverged
from hf_compress.cut.depth import Depth, Rehearsal, rehearse
from hf_compress.models.sharding import from_first, is_sharded, refuse_shards
from hf_compress.models.skipping import skip, skipped_layers, unskip
from hf_compress.models.stacks import NoLayers, stack_of, tells_layers_apart
from hf_compress.models.targets import prunable, transformer, unadapted, whole
from hf_compress.options import refuse_averages
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.schedules import SCHEDULES, Timetable
from hf_compress.rate import sample_batches, skipping_errors

logger = logging.get_logger(__name__)

RECORD = "skipped_layers"
# Of the training set, per choice. Of 6 layers, a choice takes 7 forwards of them: as many as 9 steps of 32 rows, if a
# backward counts as two.
ROWS = 128
INSTEAD = "or cut the model before training (`--distill_student_layers`)"

CITATION = """@article{sajjad-etal-2023-dropping,
  title   = {On the Effect of Dropping Layers of Pre-trained Transformer Models},
  author  = {Sajjad, Hassan and Dalvi, Fahim and Durrani, Nadir and Nakov, Preslav},
  journal = {Computer Speech \\& Language},
  volume  = {77},
  year    = {2023},
  url     = {https://arxiv.org/abs/2004.03844}
}"""


class LayerDroppingCallback(TrainerCallback):
    """Gradual removal of layers in any Trainer: whole layers are dropped one after the other, on schedule.

    The first layer goes after the share `prune_begin` of the optimizer steps, the last one after `prune_end`, and the
    others in between, as `prune_schedule` says. Each time the layer goes without which the outputs change least
    (`skipping_errors`), in evaluation mode, on the same rows of the training set in every process. A dropped layer
    stays dropped.

    In training a dropped layer is passed over: the residual stream goes through it unchanged. Its weights stay where
    they are, so optimizer and checkpoints know it as before; the numbers of the dropped layers are in
    `trainer_state.json`. While an adapter is disabled they compute: the base model has all its layers.
    `save_compressed` leaves dropped layers out, and `remove_layers` takes them out in memory.

    The logs of training gain `layers`, the number of layers that are left. The best model so far is forgotten when a
    layer is dropped. Layers that were dropped before the model was loaded count.

    Args:
        arguments: with `prune_layers` above 0.
        patterns: regular expressions of other methods that name layers, by their options.

    Raises:
        ValueError: at the start of training, if the model has no layers that can be dropped or too few of them, the
            run is too short for the schedule, a pattern names single layers, weights are sharded, the trainer gives
            its callbacks no `train_dataloader`, or several processes would wait for gradients of dropped layers.
            Later, if outputs are not finite.
        RuntimeError: at the end of training, if it stopped before all layers were dropped, or no model that was saved
            is as promised.

    Example:
        >>> from transformers import Trainer
        >>> from hf_compress import LayerDroppingCallback, PruningArguments
        >>> callback = LayerDroppingCallback(PruningArguments(prune_layers=3))
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(self, arguments: PruningArguments, patterns: Mapping[str, Sequence[str]] | None = None) -> None:
        if not arguments.prune_layers:
            raise ValueError(
                "`--prune_layers` must be at least 1 for a LayerDroppingCallback; got 0. Raise it, or train without "
                "the callback: `Recipe.callbacks()` leaves it out."
            )
        self.arguments = arguments
        self.patterns = {"prune_exclude": arguments.prune_exclude if arguments.enabled else [], **(patterns or {})}
        self._timetable = Timetable(0, 0, 1)
        self._rehearsal: Rehearsal | None = None
        self._more = 0  # How many layers this run drops: the others were dropped before.
        self._left = 0
        self._adapter: tuple[BaseTunerLayer, ...] = ()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Try which layers can be dropped, plan the steps, and drop the layers of a resumed run."""
        log_first(self)
        refuse_averages(kwargs.get("optimizer"), "--prune_layers", "of models with more layers")
        model, args = _inner(kwargs["model"]), kwargs.get("st_args", args)
        self._refuse_unsupported(args, whole(kwargs["model"]), kwargs.get("train_dataloader"))
        gone = skipped_layers(model) if state.global_step == 0 else progress(state).get(RECORD, [])
        try:
            _set_skipped(model, gone, None)
            self._rehearsal = rehearse(transformer(kwargs["model"]))
        except NoLayers as error:
            raise ValueError(
                f"`--prune_layers` cannot be used: {error}. Leave it out, {INSTEAD} if that can."
            ) from error
        self._adapter = _adapter(kwargs["model"])
        _set_skipped(model, gone, self._rehearsal.beside, self._adapter)
        known = Depth.of(model.config)
        self._more = max(0, self.arguments.prune_layers - (0 if known is None else len(known.dropped)))
        self._refuse_number(model)
        self._refuse_single_layers(model)
        options = self.arguments
        self._timetable = Timetable.of(options.prune_begin, options.prune_end, options.prune_every, state.max_steps)
        self._drop(state.global_step, state, **kwargs)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop more layers when it is time to."""
        step = state.global_step + 1  # Trainer counts the step after this event.
        if self._rehearsal is not None and step == self._timetable.last_choice(step):
            self._drop(step, state, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add `layers`, the number of layers that are left, to the logs of training."""
        add_to_logs(kwargs["logs"], state, {"layers": self._left})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fail unless all layers were dropped from the final model."""
        self._rehearsal, self._adapter = None, ()
        if state.is_hyper_param_search and not control.should_training_stop:
            return  # The search gives up on this trial; its model is thrown away.
        options, end = self.arguments, self._timetable.end
        gone = len(skipped_layers(_inner(kwargs["model"])))
        if gone < self._more:
            raise RuntimeError(
                f"training stopped at step {state.global_step} of {state.max_steps} with {gone} of {self._more} "
                f"layers dropped, but `--prune_layers {options.prune_layers}` is reached at step {end}. Lower "
                f"`--prune_end` (now {options.prune_end}), or let training go on for longer, for example with a "
                "greater `early_stopping_patience`."
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise RuntimeError(
                "`--load_best_model_at_end` finds no checkpoint that was evaluated and saved after the last layer was "
                f"dropped at step {end}. Evaluate and save more often (`--eval_steps`, `--save_steps`), or lower "
                f"`--prune_end` (now {options.prune_end})."
            )
        refuse_diverged(whole(kwargs["model"]), state)

    def _drop(self, step: int, state: TrainerState, **kwargs: Any) -> None:
        """Drop the layers that are to be gone at `step`. Collective. `kwargs` are those of events."""
        assert self._rehearsal is not None
        model, beside = _inner(kwargs["model"]), self._rehearsal.beside
        _, layers = stack_of(model)
        gone = skipped_layers(model)
        while len(gone) < self._wanted(step):
            free = [number for number in self._rehearsal.droppable if number not in gone]
            batches = sample_batches(kwargs["train_dataloader"], whole(kwargs["model"]), ROWS)
            errors = skipping_errors(model, [layers[number] for number in free], batches, beside)
            # Processors may round sums differently.
            least = from_first(free[errors.index(min(errors))])
            skip(layers[least], beside, self._adapter)
            gone = skipped_layers(model)
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
            if state.is_world_process_zero:
                logger.info(f"Layer {least} is dropped at step {step}: the outputs change by {min(errors):.4g}.")
        progress(state)[RECORD] = gone
        self._left = len(layers) - len(gone)

    def _wanted(self, step: int) -> int:
        """Return how many layers this run has dropped at `step`."""
        choice = self._timetable.last_choice(step)
        if choice == 0 or self._more == 0:
            return 0
        share = SCHEDULES[self.arguments.prune_schedule](self._timetable.progress(choice), 0.0, 1.0)
        return 1 + math.floor((self._more - 1) * share + 1e-9)

    def _refuse_unsupported(self, args: TrainingArguments, model: nn.Module, loader: Any) -> None:
        """Refuse a trainer in which layers cannot be measured, or cannot stay without gradients."""
        reason = None
        refuse_shards(model, {one.name: one.weight for one in prunable(transformer(model))}, "--prune_layers")
        if is_sharded(model):
            reason = f"measures every layer on each process, but FSDP2 shards the weights. Train under DDP, {INSTEAD}"
        elif loader is None:
            reason = (
                "measures on the training set how much each layer counts, but this trainer gives its callbacks no "
                f"`train_dataloader`. Use Transformers' Trainer, {INSTEAD}"
            )
        elif dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and _waits(args, model):
            reason = (
                "leaves layers without gradients, for which several processes would wait "
                "(`--ddp_find_unused_parameters false`, or gradient checkpointing without that flag). Set "
                f"`--ddp_find_unused_parameters true`, {INSTEAD}"
            )
        if reason is not None:
            raise ValueError(f"`--prune_layers` {reason}.")

    def _refuse_number(self, model: PreTrainedModel) -> None:
        assert self._rehearsal is not None
        tried, gone = self._rehearsal, len(skipped_layers(model))
        most = min(len(tried.droppable), tried.depth - gone - 1) + gone
        if self._more > most:
            known = Depth.of(model.config)
            why = f" Not every layer can go: without one of them {tried.reason}." if tried.reason else ""
            raise ValueError(
                f"`--prune_layers` must be from 0 to {most + (0 if known is None else len(known.dropped))} for this "
                f"{type(model).__name__} with {tried.depth} layers, one of which stays; got "
                f"{self.arguments.prune_layers}.{why} Lower it."
            )

    def _refuse_single_layers(self, model: PreTrainedModel) -> None:
        """Refuse patterns that tell layers apart, because their numbers change."""
        for option, patterns in self.patterns.items():
            for pattern in patterns:
                if tells_layers_apart(model, pattern):
                    raise ValueError(
                        f"`--{option}` {pattern} matches in some layers and not in others, but with `--prune_layers "
                        f"{self.arguments.prune_layers}` layers get other numbers. Name what is alike in all layers, "
                        f"such as `attention`, {INSTEAD}."
                    )


def _inner(model: nn.Module) -> PreTrainedModel:
    return unadapted(transformer(model))


def _adapter(model: nn.Module) -> tuple[BaseTunerLayer, ...]:
    """Return a layer of the adapter of `model`; nothing if it has none."""
    return tuple(module for module in transformer(model).modules() if isinstance(module, BaseTunerLayer))[:1]


def _set_skipped(
    model: PreTrainedModel, gone: list[int], beside: int | None, adapter: tuple[BaseTunerLayer, ...] = ()
) -> None:
    """Pass over the layers `gone`, and no others."""
    _, layers = stack_of(model)
    for number, layer in enumerate(layers):
        if number in gone:
            skip(layer, beside, adapter)
        else:
            unskip(layer)


def _waits(args: TrainingArguments, model: nn.Module) -> bool:
    """Return whether DDP waits for the gradients of all weights, by the rule of Trainer."""
    if args.ddp_find_unused_parameters is not None:
        return not args.ddp_find_unused_parameters
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
