"""Activation ranges against values that are not finite, and against outliers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, QuantizationCallback, Recipe
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import compressed_layers, turn
from hf_compress.quantize.ranges import RANGE_MOMENTUM, RANGE_REACH
from tests.tiny import NO_DROPOUT, bert

MakeBert = Callable[..., PreTrainedModel]


class SkipsBrokenSteps(torch.optim.SGD):
    """An optimizer that leaves out steps with gradients that are not finite, as the scaler of fp16 does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        parameters = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        if all(one.grad.isfinite().all() for one in parameters):
            super().step(closure)


class Disturb(TrainerCallback):
    """Replaces one input value of a layer in the forward passes of some steps."""

    def __init__(self, layer: nn.Module, values: dict[int, float]) -> None:
        self.values, self.step = values, 0
        layer.register_forward_pre_hook(self.replace)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step = state.global_step

    def replace(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if self.step not in self.values or not layer.training:
            return None
        values = inputs[0].clone()
        values.view(-1)[0] = self.values[self.step]
        return (values,)


def trained(
    model: PreTrainedModel, data: Dataset, folder: Path, values: dict[int, float], steps: int = 30, **options: Any
) -> Trainer:
    disturb = Disturb(model.bert.encoder.layer[0].output.dense, values)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        max_grad_norm=0.0,
    )
    plan = Recipe(quantization=QuantizationArguments(quant_scheme="int8", **options))
    optimizer = SkipsBrokenSteps(model.parameters(), lr=0.01)
    run = Trainer(
        model, arguments, train_dataset=data, callbacks=[disturb, *plan.callbacks()], optimizers=(optimizer, None)
    )
    run.train()
    return run


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run on the values as they are."""
    return trained(bert(**NO_DROPOUT), tiny_dataset, tmp_path_factory.mktemp("undisturbed"), {})


def width(model: PreTrainedModel) -> float:
    low, high = compressed_layers(model)["bert.encoder.layer.0.output.dense"].input_range.tolist()
    return high - low


@pytest.mark.parametrize(("step", "value"), [(0, math.nan), (9, math.inf), (9, -math.inf)])
def test_extremes_that_are_not_finite_are_skipped(
    step: int, value: float, undisturbed: Trainer, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = trained(make_bert(), tiny_dataset, tmp_path, {step: value})
    ranges = [one.input_range for one in compressed_layers(run.model).values() if one.has_range]
    assert all(one.isfinite().all() for one in ranges)
    assert width(run.model) == pytest.approx(width(undisturbed.model), rel=0.3)
    logged = [entry.get("quant_ranges_skipped", 0) for entry in run.state.log_history if "loss" in entry]
    assert logged == sorted(logged) and logged[-1] >= 1 and not any(logged[:step])
    assert all("quant_ranges_skipped" not in entry for entry in undisturbed.state.log_history)


@pytest.mark.parametrize(("step", "value"), [(0, 1e6), (1, 1e30), (12, -1e30), (26, 1e6)])
def test_one_outlier_cannot_widen_a_range_beyond_use(
    step: int, value: float, undisturbed: Trainer, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = trained(make_bert(), tiny_dataset, tmp_path, {step: value})
    growth = RANGE_MOMENTUM + (1 - RANGE_MOMENTUM) * RANGE_REACH
    assert width(run.model) <= (RANGE_REACH if step == 0 else 2 * growth) * width(undisturbed.model)


def test_a_lasting_change_of_scale_is_followed(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = trained(make_bert(), tiny_dataset, tmp_path, dict.fromkeys(range(5, 40), 1000.0), steps=40, quant_freeze=1.0)
    assert width(run.model) > 400


@pytest.mark.parametrize(
    "plan",
    [
        Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_every=1)),
        Recipe(quantization=QuantizationArguments(quant_scheme="int8")),
        Recipe(quantization=QuantizationArguments(quant_scheme="int8-weight")),
        Recipe(),
    ],
    ids=lambda plan: plan.name,
)
def test_a_model_that_is_not_finite_is_refused(
    plan: Recipe, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    class Diverge(TrainerCallback):
        def on_step_begin(self, args: Any, state: TrainerState, *_: Any, model: PreTrainedModel, **__: Any) -> None:
            if state.global_step == 7:  # After `prune_end`.
                for parameter in model.parameters():
                    parameter.data.fill_(math.nan)

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=10, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no"
    )
    run = Trainer(make_bert(), arguments, train_dataset=tiny_dataset, callbacks=[Diverge(), *plan.callbacks()])
    said = r"training diverged: \d+ of \d+ .* at step 10, for example bert\..*; the logged `\w+` is not finite since"
    with pytest.raises(RuntimeError, match=said):
        run.train()


class Tensors(TorchDispatchMode):
    """Counts operations, and remembers the devices of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.devices = 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += not func.is_view
        self.devices |= {result.device.type} if isinstance(result, torch.Tensor) else set()
        return result


def operations(count: int) -> Tensors:
    """What moving the ranges of that many layers computes after a step, as if they were on a GPU."""
    callback = QuantizationCallback(QuantizationArguments(quant_scheme="int8"))
    grids = SCHEMES["int8"]
    with torch.device("meta"):
        layers: Any = [turn(nn.Linear(2, 2), "linear", grids.weight, grids.activation) for _ in range(count)]
        for layer in layers:
            layer.observing, layer.step_range = True, torch.ones(2)
    callback._layers = layers
    with Tensors() as seen:
        callback.on_pre_optimizer_step(None, TrainerState(global_step=30), TrainerControl())  # type: ignore[arg-type]
    assert len({id(layer.step_range) for layer in layers}) == count
    return seen


def test_moving_ranges_never_waits_for_a_gpu() -> None:
    """A copy of a list from the CPU would wait until the GPU has computed all that is queued."""
    few, more = operations(2), operations(5)
    assert few.devices == {"meta"}
    assert more.count - few.count == 3  # One for each layer.
