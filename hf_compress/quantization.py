"""Quantization-aware training: the arguments, the fake-quantized layers and the callback that puts them in place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from hf_compress.options import warn_idle
from hf_compress.schemes import (
    SCHEMES,
    Grid,
    Scheme,
    affine_parameters,
    fake_quantize_affine,
    fake_quantize_symmetric,
)
from hf_compress.targets import Kind, kind, quantizable, tied

# Weight of the past in the moving average of activation ranges (Jacob et al., 2018, sec. 3.1: "close to 1").
RANGE_MOMENTUM = 0.95


@dataclass
class QuantizationArguments:
    """Options of quantization-aware training; off unless `quant_scheme` is given."""

    quant_scheme: str | None = field(
        default=None,
        metadata={
            "choices": list(SCHEMES),
            "help": "Number format to train for. `int8`: weights per row, embeddings per row, activations by ranges learned "
            "in training. `int8-dynamic`: activations by token, at run time. `int8-weight`, `int4-weight`: weights only.",
        },
    )
    quant_begin: float = field(
        default=0.1,
        metadata={
            "help": "Share of training, in [0, 1), after which values are rounded; before it ranges are observed."
        },
    )
    quant_freeze: float = field(
        default=0.9,
        metadata={"help": "Share of training, in (quant_begin, 1], after which activation ranges no longer move."},
    )
    quant_exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Regular expressions; modules in whose name one is found stay in floating point."},
    )

    @property
    def enabled(self) -> bool:
        return self.quant_scheme is not None

    @property
    def scheme(self) -> Scheme:
        if self.quant_scheme is None:
            raise ValueError(
                "`--quant_scheme` is not given, so there is no scheme. Choose one of " + ", ".join(SCHEMES)
            )
        return SCHEMES[self.quant_scheme]

    def __post_init__(self) -> None:
        if self.quant_scheme is not None and self.quant_scheme not in SCHEMES:
            raise ValueError(
                f"`--quant_scheme` must be one of {', '.join(SCHEMES)}; got {self.quant_scheme!r}. Choose one of these, or "
                "leave the flag out to train without quantization."
            )
        if not 0 <= self.quant_begin < 1:
            raise ValueError(
                f"`--quant_begin` must be a share of training in [0, 1); got {self.quant_begin}. Give 0.1 to round after the "
                "first tenth of the steps."
            )
        if not self.quant_begin < self.quant_freeze <= 1:
            raise ValueError(
                f"`--quant_freeze` must be a share of training in (`--quant_begin`, 1] = ({self.quant_begin}, 1]; got "
                f"{self.quant_freeze}. Raise it, or lower `--quant_begin`."
            )
        if not self.enabled:
            warn_idle(self, "quant_scheme")


class FakeQuantized(nn.Module):
    """What the fake-quantized layers share: their grids, the switches and the observed range of their input.

    Layers are never built but turned into (`fake_quantize_modules`), so that parameters, hooks and names stay. The one
    addition to the state dict is the buffer `input_range` (2,) of layers whose input has a static range: the float32
    moving average of its least and largest value, infinite and crossed before the first observation.
    """

    weight: nn.Parameter
    weight_grid: Grid | None
    input_grid: Grid | None
    input_range: Tensor
    step_range: Tensor | None  # Extremes since the last optimizer step. No buffer: DDP would overwrite it from rank 0.
    observing: bool
    quantizing: bool

    @property
    def has_range(self) -> bool:
        return self.input_grid is not None and self.input_grid.per == "tensor"

    @property
    def ready(self) -> bool:
        """Whether the layer was trained on its grids: rounding was on and the range, if it has one, was observed."""
        return self.quantizing and not (self.has_range and bool(self.input_range.isinf().any()))

    def rounded_weight(self) -> Tensor:
        """The weight as a matrix of rows, on its grid once quantization has begun."""
        if not self.quantizing or self.weight_grid is None:
            return self.weight
        return fake_quantize_symmetric(self.weight, self.weight_grid)

    def rounded_input(self, values: Tensor) -> Tensor:
        """The layer's input, observed while ranges move, on its grid once quantization has begun."""
        if self.input_grid is None:
            return values
        if self.has_range and self.observing and self.training:
            self._observe(values)
        if not self.quantizing:
            return values
        if not self.has_range:
            return fake_quantize_symmetric(values, self.input_grid)
        scale, zero_point = affine_parameters(self.input_range[0], self.input_range[1], self.input_grid)
        return fake_quantize_affine(values, scale, zero_point, self.input_grid)

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        low, high = torch.aminmax(values.detach())
        seen = torch.stack([low, high]).float()
        if self.step_range is not None:
            seen = torch.stack(
                [torch.minimum(self.step_range[0], seen[0]), torch.maximum(self.step_range[1], seen[1])]
            )
        self.step_range = seen


class FakeQuantizedLinear(FakeQuantized, nn.Linear):
    """A linear layer that computes with its weight, and its input if the scheme says so, on their grids."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.rounded_input(input), self.rounded_weight(), self.bias)


class FakeQuantizedConv1D(FakeQuantized, Conv1D):
    """GPT-2's linear layer, whose weight has shape (inputs, outputs), on its grids."""

    def rounded_weight(self) -> Tensor:
        if not self.quantizing or self.weight_grid is None:
            return self.weight
        # Contiguous as the stored weight will be: another layout may make the matrix product differ in the last bit.
        return fake_quantize_symmetric(self.weight.t(), self.weight_grid).t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rounded_input(x).reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, rows, self.rounded_weight()).view(*x.shape[:-1], self.nf)


class FakeQuantizedEmbedding(FakeQuantized, nn.Embedding):
    """An embedding that returns its rows on their grid; only the rows looked up are rounded."""

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        if not self.quantizing or self.weight_grid is None:
            return rows
        return fake_quantize_symmetric(rows, self.weight_grid)


LAYERS: dict[Kind, type[FakeQuantized]] = {
    "linear": FakeQuantizedLinear,
    "conv1d": FakeQuantizedConv1D,
    "embedding": FakeQuantizedEmbedding,
}


def fake_quantize_modules(model: PreTrainedModel, scheme: Scheme, exclude: Sequence[str] = ()) -> list[FakeQuantized]:
    """The layers of `model` that `scheme` rounds, turned in place into fake-quantized ones, still switched off.

    Parameters, hooks, names and ties stay as they are. A head tied to an embedding computes with the embedding's grid.
    Layers turned before keep their ranges.

    Raises:
        ValueError: an exclude pattern matches nothing, or nothing is left to quantize.
    """
    targets = quantizable(model, exclude)
    layers = []
    for target in targets + tied(model, targets):
        if target.shares_embedding:
            grids = scheme.embedding, None
        else:
            grids = scheme.weight, scheme.activation
        layers.append(_turn(target.module, target.kind, *grids))
    return layers


def restore_layers(model: PreTrainedModel, names: Sequence[str], input_grid: Grid) -> None:
    """Turn the linear layers `names` into ones that round their inputs; their weights are on their grids already."""
    for name in names:
        module = model.get_submodule(name)
        layer = _turn(module, kind(module), weight_grid=None, input_grid=input_grid)
        layer.quantizing = True


def fake_quantized(model: nn.Module) -> dict[str, FakeQuantized]:
    """The fake-quantized layers of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantized)}


def _turn(layer: nn.Module, layer_kind: Kind, weight_grid: Grid | None, input_grid: Grid | None) -> FakeQuantized:
    layer.__class__ = LAYERS[layer_kind]
    assert isinstance(layer, FakeQuantized)
    layer.weight_grid, layer.input_grid = weight_grid, input_grid
    layer.observing = layer.quantizing = False
    layer.step_range = None
    if layer.has_range and "input_range" not in layer._buffers:
        unseen = torch.tensor([math.inf, -math.inf], device=layer.weight.device, dtype=torch.float32)
        layer.register_buffer("input_range", unseen)
    return layer


class QuantizationCallback(TrainerCallback):
    """Quantization-aware training in any Trainer: switches the fake-quantized layers and commits their ranges.

    Layers are turned when the Trainer has been built: before its optimizer, its wrapping for several processes and the
    loading of a checkpoint. From the share `quant_begin` of the steps on, never in the first step, weights and inputs are
    rounded; ranges move until `quant_freeze`. A range is a moving average over optimizer steps of the extremes over all
    micro-batches and processes of a step, so that it depends on neither accumulation nor the number of processes.

    The head stays in floating point, BERT's pooler belongs to the body and is rounded; under 16-bit autocast scales,
    ranges and rounding are float32.

    Raises, from Trainer's construction or at the start of training:
        ValueError: an exclude pattern matches nothing, or the run is too short for quantization ever to begin.

    Raises, at the end of training:
        RuntimeError: it stopped before quantization began, or the best model is to be loaded and none was quantized.
    """

    def __init__(self, arguments: QuantizationArguments) -> None:
        self.arguments = arguments
        self._layers: list[FakeQuantized] = []

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._layers = fake_quantize_modules(kwargs["model"], self.arguments.scheme, self.arguments.quant_exclude)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._layers:  # Added to a Trainer that was already built.
            self.on_init_end(args, state, control, **kwargs)
        if self._begin_step(state) >= state.max_steps:
            raise ValueError(
                f"`--quant_begin {self.arguments.quant_begin}` leaves none of the {state.max_steps} optimizer steps to "
                "quantize in; quantization begins after the first step at the earliest. Train longer (`--max_steps`, "
                "`--num_train_epochs`) or lower `--quant_begin`."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        quantizing = state.global_step >= self._begin_step(state)
        observing = state.global_step < math.ceil(self.arguments.quant_freeze * state.max_steps)
        for layer in self._layers:
            layer.quantizing, layer.observing = quantizing, observing

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        observed = [layer for layer in self._layers if layer.step_range is not None]
        if not observed:
            return
        # Extremes of all processes in one message: the negated minimum makes both a maximum.
        extremes = torch.stack([layer.step_range * layer.step_range.new_tensor([-1.0, 1.0]) for layer in observed])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        seen = extremes * extremes.new_tensor([-1.0, 1.0])
        past = torch.stack([layer.input_range for layer in observed])
        average = torch.where(past.isinf(), seen, torch.lerp(seen, past, RANGE_MOMENTUM))
        for layer, moved in zip(observed, average, strict=True):
            layer.input_range.copy_(moved)
            layer.step_range = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._begin_step(state) + 1:
            # This step was the first to round; the best model so far computes in floating point and is not for shipping.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_hyper_param_search and not control.should_training_stop:
            return  # A trial that the search gives up on; its model is thrown away.
        if state.global_step <= self._begin_step(state):
            raise RuntimeError(
                f"training stopped at step {state.global_step} of {state.max_steps}, but quantization begins after step "
                f"{self._begin_step(state)}. Lower `--quant_begin` (now {self.arguments.quant_begin}), or let training go "
                "on for longer, say by a greater `early_stopping_patience`."
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise RuntimeError(
                "`--load_best_model_at_end` finds no checkpoint that was evaluated and saved after quantization began at "
                f"step {self._begin_step(state)}. Evaluate and save more often (`--eval_steps`, `--save_steps`), or lower "
                f"`--quant_begin` (now {self.arguments.quant_begin})."
            )

    def _begin_step(self, state: TrainerState) -> int:
        # Ranges are unknown in the first step.
        return max(1, round(self.arguments.quant_begin * state.max_steps))
