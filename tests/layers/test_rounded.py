"""A weight that stays as it is for several forwards is rounded once, and every forward has its own gradient."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Conv1D, TrainerCallback

from hf_compress.layers import rounded as layers
from hf_compress.layers.grids import SCHEMES, Grid
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import compressed_layers, turn
from tests.invariants.harness import PRUNE, QUANT, logged, same, trained
from tests.tiny import NO_DROPOUT, bert

TENSOR = Grid(bits=8, per="tensor")


@pytest.fixture
def weights_rounded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that were rounded to the scales of their rows, in order, while the test runs."""
    rounded: list[Tensor] = []

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counting(rows: Tensor, grid: Grid, known: Tensor | None = None) -> Tensor:
            if rows.ndim == 2 and known is None:
                rounded.append(rows)
            return function(rows, grid, known)

        return counting

    monkeypatch.setattr(layers, "fake_quantize_symmetric", counted(layers.fake_quantize_symmetric))
    return rounded


def layer_of(kind: str, *, steps: bool = False) -> CompressedLayer:
    plain = nn.Linear(6, 5) if kind == "linear" else Conv1D(5, 6)
    layer: Any = turn(plain, kind, SCHEMES["int8"].weight, None)
    if steps:
        layer.keep_step(torch.full((5, 1), 2.0**-9))
    layer.quantizing = True
    return layer.train()


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_rounding_once_changes_no_bit_of_two_gradients(kind: str, steps: bool) -> None:
    layer, inputs, found = layer_of(kind, steps=steps), torch.randn(3, 6), []
    for once in (False, True):
        layer.round_once(once)
        layer.weight.grad = None
        results = [layer(inputs), layer(2 * inputs)]  # Both graphs are alive.
        for result in results:
            result.square().sum().backward()
        found.append([*results, layer.weight.grad])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_weight_is_rounded_again_once_it_may_have_changed(weights_rounded: list[Tensor]) -> None:
    layer, inputs = layer_of("linear"), torch.randn(3, 6)
    layer.round_once(True)
    first = layer(inputs), layer(inputs)
    assert len(weights_rounded) == 1 and torch.equal(*first)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert not torch.equal(layer(inputs), first[0]) and len(weights_rounded) == 2
    layer.weight = nn.Parameter(torch.randn(5, 6))
    layer(inputs)
    assert len(weights_rounded) == 3
    layer.weight.data = torch.randn(5, 6)  # No counter sees this: whoever does it has to say so first.
    layer.round_once(True)
    layer(inputs)
    assert len(weights_rounded) == 4
    layer.round_once(False)
    layer(inputs)
    layer(inputs)
    assert len(weights_rounded) == 6 and layer.known_weight is None


def test_copies_and_casts_do_not_take_the_rounded_weight_along() -> None:
    layer, inputs = layer_of("linear"), torch.randn(3, 6)
    layer.round_once(True)
    layer(inputs)
    assert layer.known_weight is not None
    copied = copy.deepcopy(layer)
    assert copied.known_weight is None and torch.equal(copied(inputs), layer(inputs))
    assert layer.double().known_weight is None
    assert layer(inputs.double()).dtype == torch.float64


class Counts(TrainerCallback):
    """Notes how many weights were rounded in each step, and that none is kept when the optimizer moves them."""

    def __init__(self, rounded: list[Tensor]) -> None:
        self.rounded, self.counts = rounded, list[int]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.rounded.clear()

    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.counts.append(len(self.rounded))
        assert all(layer.known_weight is None for layer in compressed_layers(model).values())


def test_training_rounds_a_weight_once_per_step(
    weights_rounded: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four micro-batches per step: the run is that of rounding in each of them, bit by bit."""
    runs = []
    settings: dict[str, Any] = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "max_steps": 6}
    for once in (True, False):
        if not once:
            monkeypatch.setattr(CompressedLayer, "round_once", lambda *_: None)
        counts = Counts(weights_rounded)
        run = trained(tmp_path, (PRUNE, QUANT), model=bert(**NO_DROPOUT), callbacks=[counts], **settings)
        runs.append(run)
        weights = sum(layer.weight_grid is not None for layer in compressed_layers(run.model).values())
        rows = 3  # Embeddings round the rows that are looked up, (batch, length, width).
        assert counts.counts[-1] == (weights - rows) * (1 if once else 4)
    assert same(dict(runs[0].model.state_dict()), dict(runs[1].model.state_dict()))
    assert same(logged(runs[0], "loss", "grad_norm"), logged(runs[1], "loss", "grad_norm"))
