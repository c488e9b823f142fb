"""Gradual magnitude pruning: the callback that sets the smallest weights to zero in any Trainer."""

import warnings
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress.layers.lora import current_weight, merge_in_forward
from hf_compress.layers.rounded import CompressedLayer, maskable_layers
from hf_compress.models.sharding import Shards, count_zeros, local, refuse_shards, reshard
from hf_compress.models.targets import Target, prunable, transformer, whole
from hf_compress.options import refuse_averages
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.criteria import CRITERIA, Scope, disagreements, zero_counts
from hf_compress.prune.schedules import SCHEDULES

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # The integers as wide as a weight, by bytes.


class PruningCallback(TrainerCallback):
    """Gradual magnitude pruning in any Trainer: zeros in the body's linear layers, on schedule and to the last weight.

    Between the shares `prune_begin` and `prune_end` of the optimizer steps, every `prune_every` steps and in the very
    last, more of the smallest weights are chosen and set to zero. The masks are applied after each optimizer step, so
    that no optimizer moves a pruned weight, however large its steps: what is pruned stays so. Embeddings and head stay
    dense, and parameters the objects that the optimizer knows.

    Nothing is added to checkpoints: a pruned weight is one that is zero. Masks take one byte per prunable weight, on
    each process for the weights that it holds: those sharded by FSDP2 stay where they are.

    Where the model carries a LoRA adapter, weights stay as they are: what is ranked, and masked in every forward, is
    the weight merged with the adapter. Its masks are in the adapter's checkpoint, one bit per weight.

    The Trainer's logs gain `sparsity`. What was the best model before the target was reached is forgotten when it is:
    `load_best_model_at_end` and `save_total_limit` choose among models of the target sparsity.

    Source: Zhu & Gupta, 2017.

    Raises, at the start of training:
        ValueError: an exclude pattern matches nothing, nothing is left to prune, the run is too short for the
            schedule, the weights are sharded otherwise than by FSDP2, or an adapter or optimizer is not supported.

    Raises, later:
        ValueError: a weight became NaN.
        RuntimeError: processes disagree about a mask, training ended before the target was reached, or the model that
            it ends with falls short of it.
    """

    def __init__(self, arguments: PruningArguments) -> None:
        if not arguments.enabled:
            raise ValueError(
                f"`--prune_sparsity` must lie in (0, 1) for a PruningCallback; got {arguments.prune_sparsity}. Raise "
                "it, or train without the callback: `Recipe.callbacks()` leaves it out."
            )
        self.arguments = arguments
        self._scope = cast(Scope, arguments.prune_scope)
        self._targets: list[Target] = []
        self._begin = self._end = 0
        self._masks: list[Tensor] | None = None  # int8: all bits set where a weight is kept, none where it is pruned.
        self._sparsity = 0.0

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepares layers beside an adapter to carry masks, before a checkpoint that has some is loaded."""
        if isinstance(kwargs["model"], PeftModel):
            maskable_layers(prunable(kwargs["model"], self.arguments.prune_exclude))
            merge_in_forward(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Selects the layers, lays out the schedule and finds a resumed run's masks in its weights."""
        self.on_init_end(args, state, control, **kwargs)  # For a Trainer that was built before it had this callback.
        refuse_averages(kwargs.get("optimizer"), "--prune_sparsity")
        model = whole(kwargs["model"])
        reshard(model)
        selected = prunable(transformer(model), self.arguments.prune_exclude)
        self._targets = list({id(target.weight): target for target in selected}.values())  # Layers may share a weight.
        refuse_shards(model, {target.name: target.weight for target in self._targets}, "--prune_sparsity")
        self._plan(state.max_steps)
        if self._scope == "global" and state.global_step == 0:
            self._warn_of_emptied()
        self._choose(state.global_step)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the pruned weights to zero again, and chooses more of them when it is time to."""
        step = state.global_step + 1  # Trainer counts the step after this event.
        self._apply()
        if step == self._last_choice(step):
            # Among weights of which the pruned ones are zero: an optimizer may have moved one far enough to be kept.
            self._choose(step)
            self._apply()
        if step == self._end:
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forgets the masks as the checkpoint does, and finds them in the weights as a run resumed from it will."""
        # They could differ if training has moved a kept weight to exactly zero.
        reshard(whole(kwargs["model"]))
        self._choose(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds `sparsity`, the share of zeros among prunable weights, to the logs of training."""
        logs = kwargs["logs"]
        if "loss" in logs:
            logs["sparsity"] = self._sparsity
            for copied in state.log_history[-1:]:  # Trainer puts its copy there before this event.
                copied["sparsity"] = self._sparsity

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fails unless the model that training ends with has the target sparsity."""
        self._masks = None
        targets, self._targets = self._targets, []  # They would keep a model in memory that a search has done with.
        if state.is_hyper_param_search and not control.should_training_stop:
            return  # A trial that the search gives up on; its model is thrown away.
        asked = f"`--prune_sparsity {self.arguments.prune_sparsity}`"
        if state.global_step < self._end:
            raise RuntimeError(
                f"training stopped at step {state.global_step} of {state.max_steps} with a sparsity of "
                f"{self._sparsity:.4f}, but {asked} is reached at step {self._end}. Lower `--prune_end` (now "
                f"{self.arguments.prune_end}), or let training go on for longer, say by a greater "
                "`early_stopping_patience`."
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise RuntimeError(
                f"`--load_best_model_at_end` finds no checkpoint that was evaluated and saved after {asked} was "
                f"reached at step {self._end}. Evaluate and save more often (`--eval_steps`, `--save_steps`), or "
                f"lower `--prune_end` (now {self.arguments.prune_end})."
            )
        reshard(whole(kwargs["model"]))
        sizes = [target.weight.numel() for target in targets]
        zeros = count_zeros([current_weight(target.module) for target in targets])
        names = [target.name for target in targets]
        if self._scope == "global":
            zeros, names = [sum(zeros)], ["the whole model"]
        least = zero_counts(sizes, self.arguments.prune_sparsity, self._scope)
        short = [name for name, found, wanted in zip(names, zeros, least, strict=True) if found < wanted]
        if short:
            raise RuntimeError(
                f"{asked} was reached and lost again: {sum(zeros)} of {sum(sizes)} prunable weights are zero at the "
                f"end, too few in {', '.join(short[:3])}. Another callback changed the weights, or the best "
                "checkpoint that was loaded is not from this run. Let no other callback write to pruned weights, and "
                "start from an empty `--output_dir`."
            )

    def _apply(self) -> None:
        """Sets the weights that the masks in force prune to zero; beside an adapter every forward does."""
        if self._masks is None:
            return
        for target, mask in zip(self._targets, self._masks, strict=True):
            # On the bits, unlike a product, it leaves no negative zeros and no NaN, and is as fast as any.
            weight = local(target.weight)
            weight.view(BITS[weight.element_size()]).bitwise_and_(mask)

    def _plan(self, max_steps: int) -> None:
        # The first choice is made after the first step at the earliest.
        self._begin = max(1, round(self.arguments.prune_begin * max_steps))
        self._end = round(self.arguments.prune_end * max_steps)
        if self._end <= self._begin:
            raise ValueError(
                f"`--prune_begin {self.arguments.prune_begin}` and `--prune_end {self.arguments.prune_end}` leave no "
                f"step to prune in: of {max_steps} optimizer steps (`max_steps`), pruning would begin at "
                f"{self._begin} and end at {self._end}. Train longer (`--max_steps`, `--num_train_epochs`), or raise "
                "`--prune_end`."
            )
        if self._end - self._begin <= self.arguments.prune_every:
            warnings.warn(
                f"`--prune_every {self.arguments.prune_every}` prunes in one leap: only {self._end - self._begin} of "
                f"{max_steps} steps lie between `--prune_begin` and `--prune_end`. Lower it, or train longer.",
                stacklevel=2,
            )

    @torch.no_grad()
    def _warn_of_emptied(self) -> None:
        """Warns of layers that one threshold for all would leave without a weight, by the weights at the start."""
        weights = [current_weight(target.module).detach() for target in self._targets]
        masks = CRITERIA["magnitude"](weights, self.arguments.prune_sparsity, self._scope)
        kept = Shards.of(weights).total(np.array([int(mask.count_nonzero()) for mask in masks]))
        emptied = [target.name for target, count in zip(self._targets, kept, strict=True) if count == 0]
        if emptied:
            warnings.warn(
                f"`--prune_scope global` at `--prune_sparsity {self.arguments.prune_sparsity}` would set all weights "
                f"of {len(emptied)} of {len(kept)} layers to zero ({', '.join(emptied[:3])}): they are smaller than "
                "those of other layers, as those of an untrained layer are. Use `--prune_scope layer`, or keep such "
                f"layers dense (`--prune_exclude {emptied[0]}`).",
                stacklevel=2,
            )

    def _last_choice(self, step: int) -> int:
        """The latest step up to `step` at which masks are chosen; 0 before the first."""
        if step < self._begin:
            return 0
        if step >= self._end:
            return self._end
        return step - (step - self._begin) % self.arguments.prune_every

    @torch.no_grad()
    def _choose(self, step: int) -> None:
        """Derives the masks in force at `step` from the weights as they are."""
        self._masks, self._sparsity = None, 0.0  # Gone before the new ones come: never two bytes per weight.
        choice = self._last_choice(step)
        if choice == 0:
            return
        progress = (choice - self._begin) / (self._end - self._begin)
        schedule = SCHEDULES[self.arguments.prune_schedule]
        sparsity = schedule(progress, self.arguments.prune_initial_sparsity, self.arguments.prune_sparsity)
        weights = [current_weight(target.module).detach() for target in self._targets]
        sizes = [weight.numel() for weight in weights]
        zeros = sum(zero_counts(sizes, sparsity, self._scope))
        if zeros == 0:
            return
        masks = CRITERIA["magnitude"](weights, sparsity, self._scope)
        different = disagreements(masks, Shards.of(weights))
        if different:
            raise RuntimeError(
                f"processes have chosen different weights to prune in {len(different)} of {len(masks)} layers, the "
                f"first being {self._targets[different[0]].name}: their weights differ. Start every process from the "
                "same weights and train under DDP, and change weights on all processes alike."
            )
        self._sparsity = zeros / sum(sizes)
        carriers = [target.module for target in self._targets if isinstance(target.module, CompressedLayer)]
        if any(carrier.adapter for carrier in carriers):
            for carrier, mask in zip(carriers, masks, strict=True):
                carrier.mask = mask
        else:
            self._masks = [mask.view(torch.int8).neg_() for mask in masks]
