"""Quantization-aware training: the callback that switches the fake-quantized layers in any Trainer."""

import math
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.distributed.fsdp import is_fsdp_enabled

from hf_compress.layers.attention import round_attention
from hf_compress.layers.lora import merge_in_forward
from hf_compress.layers.rounded import CompressedLayer, compressed_layers, quantize_layers
from hf_compress.models.sharding import refuse_shards, reshard
from hf_compress.models.targets import quantizable, transformer, whole
from hf_compress.quantize.arguments import QuantizationArguments

# Weight of the past in the moving average of activation ranges (Jacob et al., 2018, sec. 3.1: "close to 1").
RANGE_MOMENTUM = 0.95


class QuantizationCallback(TrainerCallback):
    """Quantization-aware training in any Trainer: switches the fake-quantized layers and commits their ranges.

    Layers are turned when the Trainer has been built: before its optimizer, its wrapping for several processes and the
    loading of a checkpoint. From the share `quant_begin` of the steps on, never in the first step, weights and inputs
    are rounded; ranges move until `quant_freeze`. A range is a moving average over optimizer steps of the extremes
    over all micro-batches and processes of a step, so that it depends on neither accumulation nor the number of
    processes.

    The head stays in floating point, BERT's pooler belongs to the body and is rounded; under 16-bit autocast scales,
    ranges and rounding are float32. Beside a LoRA adapter the weight merged with it is rounded, and ranges are in the
    adapter's checkpoint.

    Raises, from Trainer's construction or at the start of training:
        ValueError: a pattern matches nothing, the model has attention that cannot be rounded as asked, the run is too
            short for quantization ever to begin, it is resumed without the ranges that it had, one process is to train
            on several GPUs, the weights are sharded otherwise than by FSDP2, or accelerate is to load them in a way
            that has no room for ranges.

    Raises, at the end of training:
        RuntimeError: it stopped before quantization began, or the best model is to be loaded and none was quantized.
    """

    def __init__(self, arguments: QuantizationArguments) -> None:
        self.arguments = arguments
        self._layers: list[CompressedLayer] = []

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = transformer(kwargs["model"])
        options = self.arguments
        layers = quantize_layers(model, options.scheme, options.quant_exclude, options.quant_bits)
        round_attention(model, options.scheme, options.quant_exclude)
        # True with `cpu_ram_efficient_loading` only.
        if is_fsdp_enabled() and any(layer.has_range for layer in layers):
            raise ValueError(
                f"`--quant_scheme {self.arguments.quant_scheme}` keeps ranges in buffers, which accelerate cannot "
                "load with `cpu_ram_efficient_loading`. Set that to false in `--fsdp_config` or accelerate's own "
                "configuration, or choose a scheme without ranges, such as `int8-dynamic`."
            )
        if isinstance(model, PeftModel):
            merge_in_forward(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        args = kwargs.get("st_args", args)  # SetFit hands over arguments of its own, and its trainer's beside them.
        if args.n_gpu > 1:
            raise ValueError(
                f"`--quant_scheme` cannot train one process on {args.n_gpu} GPUs (`nn.DataParallel`), whose copies of "
                "the model forget what they observe. Launch one process per GPU (`torchrun --nproc_per_node "
                f"{args.n_gpu}`, `accelerate launch`), or show it one (`CUDA_VISIBLE_DEVICES=0`)."
            )
        model = transformer(kwargs["model"])
        reshard(model)
        targets = quantizable(model, self.arguments.quant_exclude)
        refuse_shards(whole(kwargs["model"]), {target.name: target.weight for target in targets}, "--quant_scheme")
        if not all(isinstance(target.module, CompressedLayer) for target in targets):
            # `model_init` has made a new model, or the Trainer was built without this callback.
            self.on_init_end(args, state, control, **kwargs)
        self._layers = list(compressed_layers(model).values())
        ranges = [layer.input_range for layer in self._layers if layer.has_range]
        if state.global_step > 0 and ranges and all(bool(bounds.isinf().any()) for bounds in ranges):
            raise ValueError(
                f"`--quant_scheme {self.arguments.quant_scheme}` cannot resume here: the checkpoint has no ranges, or "
                "was loaded before the layers could hold them. Build the Trainer with this callback and with `model` "
                "in place of `model_init`, or start anew."
            )
        if self._begin_step(state) >= state.max_steps:
            raise ValueError(
                f"`--quant_begin {self.arguments.quant_begin}` leaves none of the {state.max_steps} optimizer steps "
                "to quantize in; quantization begins after the first step at the earliest. Train longer "
                "(`--max_steps`, `--num_train_epochs`) or lower `--quant_begin`."
            )
        # As the last step before a checkpoint left them: there may be no other to come.
        self._switch(state.global_step - 1, state)
        if state.global_step >= state.max_steps:
            # No step is left in which layers could show that they round; what has seen its inputs did.
            for layer in self._layers:
                layer.rounded = layer.weight.dtype if layer.ready else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._switch(state.global_step, state)

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        layers = [layer for layer in self._layers if layer.has_range and layer.observing]
        if not layers:
            return
        # One process may have seen what another has not; all must send messages of the same length, or none.
        steps = torch.stack([_unseen(layer) if layer.step_range is None else layer.step_range for layer in layers])
        # Extremes of all processes in one message: the negated minimum makes both a maximum.
        sign = steps.new_tensor([-1.0, 1.0])
        extremes = steps * sign
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        seen = extremes * sign
        past = torch.stack([layer.input_range for layer in layers])
        average = torch.where(past.isinf(), seen, torch.lerp(seen, past, RANGE_MOMENTUM))
        average = torch.where(seen.isinf(), past, average)
        for layer, moved in zip(layers, average, strict=True):
            layer.input_range.copy_(moved)
            layer.step_range = _unseen(layer)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._begin_step(state) + 1:
            # This step was the first to round; the best model so far computes in floating point: not for shipping.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the widths of activation ranges to the logs of training: `quant_range_mean`, `quant_range_max`."""
        ranges = [layer.input_range for layer in self._layers if layer.has_range and layer.weight_grid is not None]
        if "loss" not in kwargs["logs"] or not ranges:
            return
        widths = (torch.stack(ranges) @ ranges[0].new_tensor([-1.0, 1.0])).float()
        widths = widths[widths.isfinite()]  # What nobody calls has seen nothing.
        if len(widths):
            added = {"quant_range_mean": float(widths.mean()), "quant_range_max": float(widths.max())}
            kwargs["logs"].update(added)
            for copied in state.log_history[-1:]:  # Trainer puts its copy there before this event.
                copied.update(added)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._layers = []  # They would keep a model in memory that a search has done with.
        if state.is_hyper_param_search and not control.should_training_stop:
            return  # A trial that the search gives up on; its model is thrown away.
        if state.global_step <= self._begin_step(state):
            raise RuntimeError(
                f"training stopped at step {state.global_step} of {state.max_steps}, but quantization begins after "
                f"step {self._begin_step(state)}. Lower `--quant_begin` (now {self.arguments.quant_begin}), or let "
                "training go on for longer, say by a greater `early_stopping_patience`."
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise RuntimeError(
                "`--load_best_model_at_end` finds no checkpoint that was evaluated and saved after quantization began "
                f"at step {self._begin_step(state)}. Evaluate and save more often (`--eval_steps`, `--save_steps`), "
                f"or lower `--quant_begin` (now {self.arguments.quant_begin})."
            )

    def _switch(self, step: int, state: TrainerState) -> None:
        """Sets the layers to what they do in the step that `step` others have gone before."""
        quantizing = step >= self._begin_step(state)
        observing = step < math.ceil(self.arguments.quant_freeze * state.max_steps)
        for layer in self._layers:
            layer.quantizing, layer.observing = quantizing, observing
            if observing and layer.has_range and layer.step_range is None:
                layer.step_range = _unseen(layer)

    def _begin_step(self, state: TrainerState) -> int:
        # Ranges are unknown in the first step.
        return max(1, round(self.arguments.quant_begin * state.max_steps))


def _unseen(layer: CompressedLayer) -> Tensor:
    """The range before anything was seen: what a compiled forward finds is then always a tensor, and of its own.

    None in the first micro-batch of a step, or one tensor for all layers, would double the graphs of the compiler.
    """
    return layer.input_range.new_tensor([math.inf, -math.inf])
