"""Quantization-aware training: the callback that switches rounding on and updates the activation ranges."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.utils import logging

from hf_compress.callbacks import add_to_logs, log_first, progress, refuse_diverged
from hf_compress.layers.attention import round_attention
from hf_compress.layers.lora import merge_in_forward
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.heads import bare
from hf_compress.models.sentences import pooling_of
from hf_compress.models.sharding import is_sharded, refuse_shards, reshard
from hf_compress.models.targets import quantizable, token_embedding, transformer, whole
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.ranges import RANGE_WARMUP, moved, negated_low, refuse_plain_loading, unseen
from hf_compress.quantize.requirements import log_quantized, refuse_unsupported
from hf_compress.quantize.spending import Masks, spend
from hf_compress.quantize.trimming import trim
from hf_compress.rate import sample_batches, token_counts

logger = logging.get_logger(__name__)

BEGIN, CONSTANT = "rounding_begins", "step_constant"


class QuantizationCallback(TrainerCallback):
    """Quantization-aware training in any Trainer: switches rounding on, and updates activation ranges.

    Layers are replaced in place when the Trainer has been built: before it makes the optimizer, wraps the model for
    several processes, and loads a checkpoint. Weights and inputs are rounded from the share `quant_begin` of the steps
    on, but never in the first step. Ranges move until `quant_freeze`.

    A range is a moving average over optimizer steps of the extremes over all micro-batches and processes of a step. It
    depends neither on gradient accumulation nor on the number of processes. Extremes that are not finite are skipped,
    and outliers are bounded (`quantize.ranges`).

    The head stays in floating point; BERT's pooler belongs to the body and is rounded. Under 16-bit autocast scales,
    ranges and rounding are float32. Beside a LoRA adapter the merged weight is rounded, and the ranges are in the
    adapter's checkpoint. While a step accumulates gradients, a weight is rounded once: one rounded copy of the weights
    stays in memory then. Under FSDP or `torch_compile` and beside an adapter every forward rounds.

    With a `budget` or a `quant_step`, weights are rounded to fixed steps; otherwise the largest weight of a row sets
    its step. When rounding begins, 512 rows of the training set tell how much each layer counts, the steps are chosen,
    and the weights are rounded once with error feedback (`spend`). Training goes on from there and keeps the steps,
    which are buffers, so checkpoints hold them.

    The logs of training gain `quant_range_mean` and `quant_range_max`, and `quant_ranges_skipped`, the number of
    extremes skipped so far, if there are any.

    Args:
        arguments: with a `quant_scheme`.
        budget: bytes of the packed file that steps are chosen for.
        zeros: returns, for the model, where weights will be kept when pruning ends, by the names of layers.

    Raises:
        ValueError: when the Trainer is built or training starts, if a pattern matches nothing, the attention of the
            model cannot be rounded, the run is too short, it is resumed without the ranges it had, one process trains
            on several GPUs, the weights are sharded other than by FSDP2, or accelerate loads them without ranges.
        RuntimeError: at the end of training, if it stopped before rounding began, no rounded model qualifies as the
            best one, or weights or ranges are not finite.

    Example:
        >>> from transformers import Trainer
        >>> from hf_compress import QuantizationArguments, QuantizationCallback
        >>> callback = QuantizationCallback(QuantizationArguments(quant_scheme="int8"))
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        arguments: QuantizationArguments,
        budget: float | None = None,
        zeros: Callable[[nn.Module], Masks] | None = None,
    ) -> None:
        self.arguments, self.budget, self.zeros = arguments, budget, zeros
        self._layers: list[CompressedLayer] = []
        self._begin, self._accumulates = 0, False
        self._loads_in_place = False  # Whether `compress` makes the trainer load checkpoints into these very layers.
        self._skipped: Tensor | int = 0

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the layers of the model, still without rounding."""
        self._loads_in_place = kwargs.get("loads_in_place", self._loads_in_place)
        model = transformer(kwargs["model"])
        options = self.arguments
        layers = quantize_layers(
            model, options.scheme, options.quant_exclude, options.quant_bits, steps=self.has_steps
        )
        round_attention(model, options.scheme, options.quant_exclude)
        # True with `cpu_ram_efficient_loading` only.
        if is_fsdp_enabled() and any(layer.has_range or layer.step is not None for layer in layers):
            what = "steps" if self.has_steps else "ranges"
            remedy = "" if self.has_steps else ", or choose a scheme without ranges, such as `int8-dynamic`"
            raise ValueError(
                f"`--quant_scheme {self.arguments.quant_scheme}` keeps {what} in buffers, which accelerate cannot "
                "load with `cpu_ram_efficient_loading`. Set that to false in `--fsdp_config` or in accelerate's "
                f"configuration{remedy}."
            )
        if isinstance(model, PeftModel):
            merge_in_forward(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the run can be quantized, and switch the layers to what they do in its first step."""
        args = kwargs.get("st_args", args)  # SetFit passes its own arguments, and its trainer's beside them.
        if args.n_gpu > 1:
            raise ValueError(
                f"`--quant_scheme` cannot train one process on {args.n_gpu} GPUs (`nn.DataParallel`), whose copies of "
                "the model forget the ranges that they observe. Launch one process per GPU (`torchrun "
                f"--nproc_per_node {args.n_gpu}`, `accelerate launch`), or show it one (`CUDA_VISIBLE_DEVICES=0`)."
            )
        log_first(self)
        if self.has_steps:
            option = "--quant_step" if self.budget is None else "--compress_budget_mb"
            refuse_unsupported(option, kwargs.get("optimizer"), kwargs.get("train_dataloader"))
        model = transformer(kwargs["model"])
        reshard(model)
        targets = quantizable(model, self.arguments.quant_exclude)
        refuse_shards(whole(kwargs["model"]), {target.name: target.weight for target in targets}, "--quant_scheme")
        if not all(isinstance(target.module, CompressedLayer) for target in targets):
            # `model_init` has made a new model, or the Trainer was built without this callback.
            self.on_init_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            log_quantized(model, targets, self.arguments)
        self._layers, self._skipped = list(compressed_layers(model).values()), 0
        # FSDP would have every process keep the whole weights that it spreads.
        self._accumulates = args.gradient_accumulation_steps > 1 and not is_sharded(whole(kwargs["model"]))
        self._refuse_lost_ranges(state)
        loads_best = args.load_best_model_at_end and not self._loads_in_place
        refuse_plain_loading(self._layers, kwargs["model"], loads_best=loads_best)
        self._plan(state)
        # As the last step before a checkpoint left them: no other step may follow.
        self._switch(state.global_step - 1, state)
        if state.global_step >= state.max_steps:
            # No forward is left to record which layers round. A layer whose range was observed has rounded.
            for layer in self._layers:
                layer.rounded = layer.weight.dtype if layer.ready else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch rounding and observing on or off for this step, and choose the steps when rounding begins."""
        if self.has_steps and state.global_step >= self._begin and CONSTANT not in progress(state):
            self._spend(state, kwargs["model"], kwargs.get("train_dataloader"))
        self._switch(state.global_step, state)
        for layer in self._layers:
            layer.round_once(self._accumulates)

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the extremes of the step to the moving averages, and forget the rounded weights."""
        for layer in self._layers:
            layer.round_once(False)
        layers = [layer for layer in self._layers if layer.has_range and layer.observing]
        if not layers:
            return
        # One process may have seen what another has not; all must send messages of the same length, or none.
        steps = torch.stack([unseen(layer) if layer.step_range is None else layer.step_range for layer in layers])
        # Extremes of all processes in one message: the negated minimum makes both a maximum.
        extremes = torch.where(steps.isnan(), math.inf, negated_low(steps))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        broken = extremes.isposinf().any(dim=1, keepdim=True)
        seen, past = negated_low(extremes), torch.stack([layer.input_range for layer in layers])
        average = moved(seen, past, warming_up=state.global_step < RANGE_WARMUP)
        average = torch.where(broken, past, average)
        self._skipped = self._skipped + broken.sum()
        torch._foreach_copy_([layer.input_range for layer in layers], list(average.unbind()))
        nothing = unseen(layers[0])
        for layer in layers:
            layer.step_range = nothing.clone()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the best model so far when rounding has begun."""
        if state.global_step == self._begin + 1:
            # This step was the first to round. The best model so far computes in floating point.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the widths of activation ranges to the logs of training, and the number of skipped extremes."""
        ranges = [layer.input_range for layer in self._layers if layer.has_range and layer.weight_grid is not None]
        if "loss" not in kwargs["logs"] or not ranges:
            return
        added: dict[str, float] = {}
        widths = (torch.stack(ranges) @ ranges[0].new_tensor([-1.0, 1.0])).float()
        widths = widths[widths.isfinite()]  # A layer that nobody calls has seen nothing.
        if len(widths):
            added = {"quant_range_mean": float(widths.mean()), "quant_range_max": float(widths.max())}
        if skipped := int(self._skipped):
            added["quant_ranges_skipped"] = skipped
        add_to_logs(kwargs["logs"], state, added)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fail unless the final model was trained with rounding and is finite."""
        self._layers = []  # They would keep a search's model in memory.
        if state.is_hyper_param_search and not control.should_training_stop:
            return  # The search gives up on this trial; its model is thrown away.
        if state.global_step <= self._begin:
            raise RuntimeError(
                f"training stopped at step {state.global_step} of {state.max_steps}, but quantization begins after "
                f"step {self._begin}. Lower `--quant_begin` (now {self.arguments.quant_begin}), or let training go on "
                "for longer, for example with a greater `early_stopping_patience`."
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise RuntimeError(
                "`--load_best_model_at_end` finds no checkpoint that was evaluated and saved after quantization began "
                f"at step {self._begin}. Evaluate and save more often (`--eval_steps`, `--save_steps`), or lower "
                f"`--quant_begin` (now {self.arguments.quant_begin})."
            )
        refuse_diverged(whole(kwargs["model"]), state)
        self._keep_budget(kwargs["model"])

    @property
    def has_steps(self) -> bool:
        """Whether weights are rounded to fixed steps."""
        return self.budget is not None or self.arguments.quant_step is not None

    def _spend(self, state: TrainerState, wrapped: nn.Module, loader: Any) -> None:
        """Choose the steps, and round the weights to them. Collective."""
        model, trained = transformer(wrapped), whole(wrapped)
        reshard(trained)
        refuse_diverged(trained, state)
        words = token_embedding(cast(PreTrainedModel, bare(model)))
        counts = None if words is None else token_counts(loader, len(words.weight), trained)
        spent = spend(
            model,
            sample_batches(loader, trained),
            self.budget,
            constant=self.arguments.quant_step,
            counts=counts,
            exclude=self.arguments.quant_exclude,
            zeros=None if self.zeros is None else self.zeros(wrapped),
            pooling=pooling_of(bare(trained)),
        )
        progress(state)[CONSTANT] = spent.constant
        if self.budget is not None and self.arguments.quant_step is None and state.is_world_process_zero:
            logger.warning(
                f"`--compress_budget_mb {self.budget / 1e6:g}`: the weights now have steps for a file of about "
                f"{spent.bytes / 1e6:.3g} MB. `--quant_step {spent.constant:g}` gives the same steps again."
            )

    def _keep_budget(self, wrapped: nn.Module) -> None:
        """Make the file of the final model as small as the budget. Collective."""
        model = transformer(wrapped)
        if self.budget is None or isinstance(model, PeftModel):
            return
        reshard(whole(wrapped))
        if trim(model, self.budget, self.arguments.quant_exclude):
            logger.info("Training had made the file larger than its budget. Some weights were rounded to fewer bits.")

    def _refuse_lost_ranges(self, state: TrainerState) -> None:
        ranges = [layer.input_range for layer in self._layers if layer.has_range]
        if state.global_step > 0 and ranges and all(bool(bounds.isinf().any()) for bounds in ranges):
            raise ValueError(
                f"`--quant_scheme {self.arguments.quant_scheme}` cannot resume here: the checkpoint has no ranges, or "
                "was loaded before the layers could hold them. Build the Trainer with this callback and with `model` "
                "instead of `model_init`, or start again."
            )
        steps = [layer.step for layer in self._layers if layer.step is not None]
        if CONSTANT in progress(state) and self.has_steps and not any(bool(step.any()) for step in steps):
            raise ValueError(
                "the run cannot be resumed here: its steps were chosen, but the checkpoint has none, or was loaded "
                "before the layers could hold them. Build the Trainer with this callback and with `model` instead of "
                "`model_init`, or start again."
            )

    def _plan(self, state: TrainerState) -> None:
        """Find the step after which values are rounded; a resumed run that rounded already goes on rounding."""
        # Ranges are unknown in the first step.
        self._begin = max(1, round(self.arguments.quant_begin * state.max_steps))
        record = progress(state)
        begun = record.get(BEGIN)
        if begun is not None and begun < state.global_step:
            self._begin = min(self._begin, begun)
        if self._begin >= state.max_steps:
            raise ValueError(
                f"`--quant_begin {self.arguments.quant_begin}` leaves none of the {state.max_steps} optimizer steps "
                "to quantize in; rounding begins after the first step at the earliest. Train longer (`--max_steps`, "
                "`--num_train_epochs`) or lower `--quant_begin`."
            )
        record[BEGIN] = self._begin

    def _switch(self, step: int, state: TrainerState) -> None:
        """Set the layers to what they do in the step after `step` others."""
        quantizing = step >= self._begin
        observing = step < math.ceil(self.arguments.quant_freeze * state.max_steps)
        for layer in self._layers:
            layer.quantizing, layer.observing = quantizing, observing
            if observing and layer.has_range and layer.step_range is None:
                layer.step_range = unseen(layer)
