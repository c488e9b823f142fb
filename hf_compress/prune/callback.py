"""Gradual pruning: the callback that sets the lowest-scored weights to zero in any Trainer."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress.callbacks import add_to_logs, log_first, progress, refuse_diverged
from hf_compress.layers.lora import current_weight, merge_in_forward
from hf_compress.layers.turning import maskable_layers
from hf_compress.models.sharding import refuse_shards, reshard
from hf_compress.models.targets import transformer, whole
from hf_compress.options import refuse_averages
from hf_compress.prune.allotment import SpeedGoal
from hf_compress.prune.allotting import allotted, refuse_allotment
from hf_compress.prune.arguments import AUTO, PruningArguments
from hf_compress.prune.coverage import Coverage
from hf_compress.prune.criteria import CRITERIA
from hf_compress.prune.masking import Masking
from hf_compress.prune.requirements import (
    log_coverage,
    refuse_correction,
    refuse_coverage,
    refuse_optimizer,
    refuse_removal,
    refuse_unsupported,
    warn_of_corrections,
    warn_of_emptied,
    warn_of_one_leap,
)
from hf_compress.prune.schedules import SCHEDULES, Timetable
from hf_compress.prune.state_file import load_state, save_state

REACHED, KEPT = "sparsity", "kept_groups"


class PruningCallback(TrainerCallback):
    """Gradual pruning in any Trainer: zeros in linear layers and convolutions, on schedule and with an exact count.

    Between the shares `prune_begin` and `prune_end` of the optimizer steps, every `prune_every` steps and in the last
    one, the weights with the lowest scores are chosen and set to zero. Masks are applied after each optimizer step, so
    no optimizer can move a pruned weight. A pruned weight stays pruned. Embeddings and the head stay dense. Parameters
    stay the objects that the optimizer knows.

    Checkpoints need no extra file for the criterion `magnitude`: its masks are the zeros of the weights. A
    criterion that needs gradients, optimizer state or memory has a file `pruning_state.safetensors` in each training
    checkpoint, with one bit per weight. Weights sharded by FSDP2 stay sharded.

    The criterion `sparsegpt` also corrects the weights that stay whenever others are chosen, on rows of the training
    set.

    Beside a LoRA adapter the weights stay as they are. The weight merged with the adapter is ranked, and masked in
    every forward; the adapter's checkpoint holds the masks.

    The logs of training gain `sparsity`, the share of zeros among the weights that the pattern covers: all of the
    body's linear layers, or those of the groups. The best model so far is forgotten when the target is reached:
    `load_best_model_at_end` and `save_total_limit` choose among models with the target sparsity.

    Patterns of groups prune whole neurons or attention heads, ranked by the sums of their weights' scores. All other
    weights stay dense. With a `speed`, the numbers of groups that stay are chosen when pruning begins: those with
    which the model is as fast as asked and the outputs change least, on rows of the training set (`SpeedGoal`). A
    resumed run keeps them.

    Source: Zhu & Gupta, 2017.

    Args:
        arguments: with `prune_sparsity` above 0, or `prune_keep`.
        kept: how many groups of each block stay at the end, by the names of `Groups`; None for the same share in each.
            Only for a pattern of groups. The schedule then says which share of the others is pruned. By default those
            of `prune_keep`.
        speed: chooses these numbers, if `prune_keep` is "auto".

    Raises:
        ValueError: at the start of training, if an exclude pattern matches nothing, nothing is left to prune, the run
            is too short for the schedule, the criterion cannot work with the model or optimizer, the weights are
            sharded other than by FSDP2, or an adapter or optimizer is not supported. Later, if a score is NaN.
        RuntimeError: later, if processes disagree about a mask, training ends before the target is reached, or the
            final model falls short of it.

    Example:
        >>> from transformers import Trainer
        >>> from hf_compress import PruningArguments, PruningCallback
        >>> callback = PruningCallback(PruningArguments(prune_sparsity=0.6))
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self, arguments: PruningArguments, kept: Mapping[str, int] | None = None, speed: SpeedGoal | None = None
    ) -> None:
        if not arguments.enabled:
            raise ValueError(
                f"`--prune_sparsity` must be in (0, 1) for a PruningCallback; got {arguments.prune_sparsity}. Raise "
                "it, or train without the callback: `Recipe.callbacks()` leaves it out."
            )
        self.arguments = arguments
        self.criterion = CRITERIA[arguments.prune_criterion]
        if arguments.prune_keep == [AUTO] and kept is None and speed is None:
            raise ValueError(
                "`--compress_speedup` needs the latency of the model, measured before training. Call "
                "`compress(trainer, recipe)`, or give its table: `recipe.callbacks(SpeedGoal(speedup, "
                "measure_table(...)))`."
            )
        self.kept, self.speed = kept, speed
        self._masking: Masking | None = None
        self._record: dict[str, Any] = {}  # What a resumed run must not undo.
        self._timetable = Timetable(0, 0, 1)
        self._reached = 0.0  # The sparsity that the schedule has asked for so far.
        self._sparsity = 0.0
        self._stepped = False  # Whether the optimizer has made a step since training began.

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare layers beside an adapter to carry masks, before a checkpoint with masks is loaded."""
        if isinstance(kwargs["model"], PeftModel):
            maskable_layers(Coverage.of(kwargs["model"], self.arguments).targets)
            merge_in_forward(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Select the layers, plan the steps, and restore the masks of a resumed run."""
        self.on_init_end(args, state, control, **kwargs)  # A Trainer may have been built before it had this callback.
        log_first(self)
        optimizer = kwargs.get("optimizer")
        refuse_averages(optimizer, "--prune_sparsity", "in which pruned weights are not zero")
        model = whole(kwargs["model"])
        reshard(model)
        self._record = progress(state)
        self._masking = Masking(self._coverage(model), self.criterion)
        if not self._undecided:
            refuse_coverage(self._masking.coverage, self.arguments)
        else:
            refuse_allotment(cast(SpeedGoal, self.speed), self._masking.coverage, kwargs.get("train_dataloader"))
        refuse_removal(self._masking.coverage, self.arguments, model)
        refuse_unsupported(self._masking, kwargs.get("st_args", args), model, optimizer)
        refuse_correction(self._masking, model, optimizer, kwargs.get("train_dataloader"))
        self._stepped, self._sparsity = False, 0.0
        options = self.arguments
        if state.is_world_process_zero:
            log_coverage(self._masking, options, transformer(model))
        self._timetable = Timetable.of(options.prune_begin, options.prune_end, options.prune_every, state.max_steps)
        warn_of_one_leap(options, self._timetable, state.max_steps)
        if self.criterion.corrects:
            once = options.prune_initial_sparsity == options.goal
            warn_of_corrections(self.criterion, 1 if once else self._timetable.choices, state.max_steps)
        if state.global_step == 0 and not self.criterion.has_state:
            warn_of_emptied(self._masking, options)
        self._reached = self._initial(model) if state.global_step == 0 else progress(state).get(REACHED, 0.0)
        if self.criterion.has_state and state.global_step > 0:
            self._sparsity = self._masking.load(load_state(args, state, self.criterion.name))
        elif self.criterion.has_state and self._reached > 0:
            self._take_zeros(self._masking)
        else:
            self._choose(state.global_step, **kwargs)
        progress(state)[REACHED] = self._reached

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let a criterion that needs gradients see them, and choose more weights when it is time to."""
        if not self.criterion.needs_gradients or self._masking is None:
            return
        step = state.global_step + 1  # Trainer counts the step after the optimizer step.
        if all(target.weight.grad is None for target in self._masking.targets):
            raise ValueError(
                f"`--prune_criterion {self.criterion.name}` needs gradients, but no layer has one before optimizer "
                f"step {step}: this optimizer consumes them during the backward pass. Choose another `--optim`, such "
                "as `adamw_torch`."
            )
        self._masking.observe(step, kwargs.get("optimizer"))
        if step == self._timetable.last_choice(step):
            self._choose(step, **kwargs)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the pruned weights to zero again, and choose more of them when it is time to."""
        step = state.global_step + 1  # Trainer counts the step after this event.
        if self._masking is None:
            return
        if not self._stepped:
            refuse_optimizer(self._masking, kwargs.get("optimizer"), stepped=True)
            self._stepped = True
        self._masking.apply()
        if not self.criterion.needs_gradients:
            self._masking.observe(step, kwargs.get("optimizer"))
            if step == self._timetable.last_choice(step):
                # After masks were applied: an optimizer may have moved a pruned weight far enough to be kept.
                self._choose(step, **kwargs)
                self._masking.apply()
        progress(state)[REACHED] = self._reached
        if step == self._timetable.end:
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write masks that the weights do not show into the checkpoint; derive the others from the weights again."""
        reshard(whole(kwargs["model"]))
        if self._masking is None:
            return
        if self.criterion.has_state:
            tensors = self._masking.state()
            if args.should_save:
                save_state(tensors, args, state, self.criterion.name)
        else:
            # A run resumed from here does the same. Masks change if training has moved a kept weight to exactly zero.
            self._choose(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add `sparsity`, the share of zeros among the weights that the pattern covers, to the logs of training."""
        add_to_logs(kwargs["logs"], state, {"sparsity": self._sparsity})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fail unless the final model has the target sparsity."""
        masking, self._masking = self._masking, None  # It would keep a search's model in memory.
        if state.is_hyper_param_search and not control.should_training_stop:
            return  # The search gives up on this trial; its model is thrown away.
        self._refuse_early_end(args, state)
        reshard(whole(kwargs["model"]))
        refuse_diverged(whole(kwargs["model"]), state)
        if masking is not None:
            self._refuse_lost_zeros(masking)

    def planned_zeros(self, model: nn.Module) -> dict[str, Tensor]:
        """Return where weights of `model` would be kept if all were pruned now, by the names of layers. Collective.

        A criterion that looks at more than the weights is replaced by magnitude.
        """
        criterion = CRITERIA["magnitude"] if self.criterion.has_state else self.criterion
        return Masking(self._coverage(whole(model)), criterion).planned(self.arguments.goal)

    def _initial(self, model: nn.Module) -> float:
        """Return the sparsity that a model loaded from a pruned file has already; 0 for any other model."""
        known = getattr(getattr(transformer(model), "hf_quantizer", None), "quantization_config", None)
        pruned = set(getattr(known, "pruned", []))
        coverage = cast(Masking, self._masking).coverage
        if not all(target.name in pruned for target in coverage.targets):
            return 0.0
        return coverage.sparsity()

    def _take_zeros(self, masking: Masking) -> None:
        """Take over the zeros of a pruned file, which magnitude finds, before there is a gradient or a state."""
        by_magnitude = Masking(masking.coverage, CRITERIA["magnitude"])
        self._sparsity = by_magnitude.choose(self._reached, 0)
        masking.masks = by_magnitude.masks

    def _coverage(self, model: nn.Module) -> Coverage:
        coverage = Coverage.of(transformer(model), self.arguments, self.kept or self._record.get(KEPT))
        refuse_shards(model, {target.name: target.weight for target in coverage.targets}, "--prune_sparsity")
        return coverage

    @property
    def _undecided(self) -> bool:
        """Whether the numbers of groups that stay are still to be chosen."""
        return self.arguments.prune_keep == [AUTO] and self.kept is None and KEPT not in self._record

    def _choose(self, step: int, **kwargs: Any) -> None:
        """Choose the masks that are in force at `step`; none before the first choice. `kwargs` are those of events."""
        masking, choice = cast(Masking, self._masking), self._timetable.last_choice(step)
        sparsity = 0.0
        if choice > 0:
            schedule = SCHEDULES[self.arguments.prune_schedule]
            share = self._timetable.progress(choice)
            sparsity = schedule(share, self.arguments.prune_initial_sparsity, self.arguments.goal)
            if self._undecided:
                speed = cast(SpeedGoal, self.speed)
                given = masking.coverage, kwargs["model"], kwargs["train_dataloader"]
                self._record[KEPT] = allotted(speed, *given, uniform=self.arguments.prune_uniform)
                masking.coverage = self._coverage(whole(kwargs["model"]))
        # A run that is resumed with more steps is earlier in its schedule than before; sparsity only grows.
        self._reached = max(self._reached, sparsity)
        if self.criterion.corrects:
            if masking.coverage.zeros(self._reached) == round(self._sparsity * masking.coverage.size):
                return  # A correction costs time, and there is nothing to correct.
            masking.look(kwargs["model"], kwargs.get("train_dataloader"))
            reshard(whole(kwargs["model"]))
        self._sparsity = masking.choose(self._reached, step, kwargs.get("optimizer"))
        masking.moments = {}

    def _refuse_early_end(self, args: TrainingArguments, state: TrainerState) -> None:
        options, end = self.arguments, self._timetable.end
        asked = options.asked
        if state.global_step < end:
            raise RuntimeError(
                f"training stopped at step {state.global_step} of {state.max_steps} with a sparsity of "
                f"{self._sparsity:.4f}, but {asked} is reached at step {end}. Lower `--prune_end` (now "
                f"{options.prune_end}), or let training go on for longer, for example with a greater "
                "`early_stopping_patience`."
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise RuntimeError(
                f"`--load_best_model_at_end` finds no checkpoint that was evaluated and saved after {asked} was "
                f"reached at step {end}. Evaluate and save more often (`--eval_steps`, `--save_steps`), or lower "
                f"`--prune_end` (now {options.prune_end})."
            )

    def _refuse_lost_zeros(self, masking: Masking) -> None:
        coverage, sparsity = masking.coverage, self.arguments.goal
        zeros = coverage.found([current_weight(target.module) for target in masking.targets])
        short = coverage.short(sparsity, zeros)
        if short:
            raise RuntimeError(
                f"{self.arguments.asked} was reached and lost again: {sum(zeros)} of "
                f"{sum(contest.total for contest in coverage.contests)} {masking.pattern.units} are zero at the end, "
                f"too few in {', '.join(short[:3])}. Another callback changed the weights, or the best checkpoint "
                "that was loaded is not from this run. Let no other callback write to pruned weights, and start from "
                "an empty `--output_dir`."
            )
