"""Affine grids: laws, an oracle in torch's own operators, and rows inside the range, which need no clipping."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_compress.layers.affine import (
    Bounds,
    affine_parameters,
    as_numbers,
    bounds_of,
    bounds_of_ends,
    bounds_of_range,
    fake_quantize_affine,
    round_affine,
)
from hf_compress.layers.compressed import CompressedLinear
from hf_compress.layers.grids import SCHEMES, Grid
from hf_compress.layers.shared_inputs import Extremes
from hf_compress.layers.turning import turn

TENSOR = Grid(bits=8, per="tensor")


def test_rounding_to_an_affine_grid_is_idempotent() -> None:
    scale, zero_point = affine_parameters(torch.tensor(-0.7), torch.tensor(2.3), TENSOR)
    once = fake_quantize_affine(torch.randn(1000), scale, zero_point, TENSOR)
    assert torch.equal(fake_quantize_affine(once, scale, zero_point, TENSOR), once)


def test_an_affine_grid_agrees_with_torchs_operator() -> None:
    values = torch.linspace(-3, 3, 1001)
    ours, torchs = values.clone().requires_grad_(), values.clone().requires_grad_()
    scale, zero_point = affine_parameters(torch.tensor(-1.0), torch.tensor(2.0), TENSOR)
    rounded = fake_quantize_affine(ours, scale, zero_point, TENSOR)
    expected = torch.fake_quantize_per_tensor_affine(torchs, scale.item(), int(zero_point), 0, 255)
    # Torch multiplies by the inverse of the scale: on a tie between two integers it may take the other one.
    assert (rounded - expected).abs().max() <= scale * 1.001
    assert torch.isclose(rounded, expected).float().mean() > 0.99
    rounded.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, torchs.grad)
    assert ours.grad[values < -1.1].eq(0).all() and ours.grad[values > 2.1].eq(0).all()
    assert ours.grad[(values > -0.9) & (values < 1.9)].eq(1).all()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact_whatever_the_observed_range(low: float, high: float) -> None:
    scale, zero_point = affine_parameters(torch.tensor(low), torch.tensor(high), TENSOR)
    assert fake_quantize_affine(torch.zeros(3), scale, zero_point, TENSOR).eq(0).all()
    assert 0 <= zero_point <= 255 and zero_point == zero_point.round()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_bounds_as_numbers_and_as_tensors_are_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is for CPUs, the other for GPUs and compilers."""
    grid = SCHEMES["int8"].activation
    values = (torch.randn(100_000) * 1.3).to(dtype).requires_grad_()
    scale, zero_point = affine_parameters(torch.tensor(-0.7), torch.tensor(1.1), grid)
    results = []
    for reads in (True, False):
        monkeypatch.setattr("hf_compress.layers.affine.reads_numbers", lambda _, reads=reads: reads)
        rounded = fake_quantize_affine(values, scale, zero_point, grid)
        (gradient,) = torch.autograd.grad(rounded.sum(), values)
        results.append((rounded, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert 0 < int((results[0][1] == 0).sum()) < len(values)


BOUNDS = bounds_of_range(-0.7, 1.1, TENSOR)
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
BROKEN = {"finite": [], "nan": [float("nan")], "infinite": [float("inf"), -float("inf")]}


def rows_with(outliers: int, dtype: torch.dtype = torch.float32, more: tuple[float, ...] = ()) -> Tensor:
    """40 rows inside the range, but for `outliers` rows, and one row for each value of `more`."""
    values = (torch.rand(2, 20, 8) * 1.7 - 0.65).to(dtype)
    rows = values.view(40, 8)
    for index in range(outliers):
        rows[index * 3, index % 8] = 5.0 if index % 2 else -5.0
    for index, value in enumerate(more):
        rows[-1 - index, index] = value
    # Values less than half a step outside are rounded, not clipped, and one is exactly on the limit.
    rows[20, :3] = torch.tensor([BOUNDS.high + BOUNDS.step / 3, BOUNDS.low - BOUNDS.step / 3, BOUNDS.most])
    rows[21, 0] = -1e-9
    return values


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("more", BROKEN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clipping_some_rows_only_changes_no_bit(dtype: torch.dtype, more: str, known: bool, alone: bool) -> None:
    values = rows_with(3, dtype, tuple(BROKEN[more]))
    outside = Extremes.of(values).outside(BOUNDS.low, BOUNDS.high)
    assert outside is not None and 0 < len(outside) < 10
    upstream, results = torch.randn(values.shape).to(dtype), []
    for rows in (None, outside):
        given = values.clone().requires_grad_()
        rounded = round_affine(given, BOUNDS, round_affine(values, BOUNDS) if known else None, rows, alone=alone)
        (gradient,) = torch.autograd.grad((rounded * upstream).sum(), given)
        # Torch's own mask gives NaN a gradient or not, by its place in memory.
        results.append((rounded, gradient.masked_fill(values.isnan(), 0.0)))
    assert all(torch.equal(bits(one), bits(other)) for one, other in zip(*results, strict=True))
    assert results[0][1].eq(0).any()


def bits(values: Tensor) -> Tensor:
    """The bits of `values` as integers, so that NaN equals NaN and zero does not equal negative zero."""
    return values.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])


def test_inside_the_range_nothing_is_kept_for_the_gradient() -> None:
    values = (torch.rand(3, 5) - 0.5).requires_grad_()
    outside = Extremes.of(values).outside(BOUNDS.low, BOUNDS.high)
    assert outside is not None and len(outside) == 0
    rounded = round_affine(values, BOUNDS, None, outside)
    assert rounded.grad_fn.saved_tensors == () and rounded.grad_fn.clipped is None
    upstream = torch.randn(3, 5)
    assert rounded.grad_fn.apply(upstream)[0] is upstream


def test_rows_are_picked_out_only_if_few_and_contiguous() -> None:
    low, high = BOUNDS.low, BOUNDS.high
    assert Extremes.of(rows_with(11)).outside(low, high) is None
    assert Extremes.of(rows_with(3).transpose(0, 1)).outside(low, high) is None
    assert Extremes.of(torch.tensor([9.0])).outside(low, high) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extremes_of_rows_are_those_of_the_whole(dtype: torch.dtype) -> None:
    values = torch.randn(4, 5, 6).to(dtype)
    rows, whole = Extremes.of(values), Extremes.of(values.transpose(0, 2))
    assert rows.least is not None and whole.least is None
    assert torch.equal(rows.whole, whole.whole) and rows.whole.dtype == torch.float32
    values[1, 2, 3] = float("nan")
    assert Extremes.of(values).whole.isnan().all() and Extremes.of(values.transpose(0, 2)).whole.isnan().all()


@pytest.mark.parametrize("seed", range(20))
def test_bounds_of_a_range_as_numbers_are_those_as_tensors(seed: int) -> None:
    ends = torch.randn(2, generator=torch.Generator().manual_seed(seed)).sort().values
    tensors = bounds_of(*affine_parameters(ends[0], ends[1], TENSOR), TENSOR)
    assert bounds_of_range(*ends.tolist(), TENSOR) == as_numbers(tensors) == Bounds(*map(float, tensors))


def layer_of() -> CompressedLinear:
    layer: Any = turn(nn.Linear(8, 4), "linear", SCHEMES["int8"].weight, TENSOR)
    layer.input_range.copy_(torch.tensor([-0.7, 1.1]))
    layer.observing = layer.quantizing = True
    return layer


def test_masking_in_place_changes_no_tensor_of_others() -> None:
    """The gradient that a caller gives, hooks see, or the layer's input had before."""
    layer, values = layer_of(), rows_with(3).requires_grad_()
    seen: list[Tensor] = []
    result = layer(values)
    result.register_hook(lambda gradient: seen.append(gradient.clone()))
    upstream = torch.randn_like(result)
    before = upstream.clone()
    first = torch.autograd.grad(result, values, upstream, retain_graph=True)[0].clone()
    again = torch.autograd.grad(result, values, upstream, retain_graph=True)[0]
    assert torch.equal(upstream, before) and torch.equal(seen[0], before) and torch.equal(first, again)


def test_a_gradient_of_the_gradient_is_that_of_a_full_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, given, found = layer_of(), rows_with(3), []
    for full in (False, True):
        if full:
            monkeypatch.setattr(Extremes, "outside", lambda *_: None)
        values = given.clone().requires_grad_()
        layer.weight.grad = None
        (slope,) = torch.autograd.grad(layer(values).square().sum(), values, create_graph=True)
        slope.square().sum().backward()
        found.append((slope, layer.weight.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][1].any()


def test_away_from_a_cpu_bounds_are_computed_once_per_range(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, values, expected, computed = layer_of(), rows_with(3), list[Tensor](), list[float]()
    other = torch.tensor([-0.5, 2.0])
    for bounds in (layer.input_range.clone(), other):
        layer.input_range.copy_(bounds)
        expected.append(layer(values))
    layer.input_range.copy_(torch.tensor([-0.7, 1.1]))

    def counted(ends: Tensor, grid: Grid) -> Bounds:
        computed.append(float(ends[1]))
        return bounds_of_ends(ends, grid)

    for module in ("affine", "rounded", "shared_inputs"):
        monkeypatch.setattr(f"hf_compress.layers.{module}.reads_numbers", lambda _: False)
    monkeypatch.setattr("hf_compress.layers.rounded.bounds_of_ends", counted)
    for _ in range(3):
        assert torch.equal(layer(values), expected[0])
    layer.input_range.copy_(other)
    copied = copy.deepcopy(layer)
    assert torch.equal(layer(values), expected[1]) and torch.equal(copied(values), expected[1])
    assert computed == pytest.approx([1.1, 2.0, 2.0])
    layer.input_range = torch.tensor([-0.7, 1.1])  # As loading may do.
    assert torch.equal(layer(values), expected[0])
    with torch.inference_mode():
        layer.input_range = torch.tensor([-0.5, 2.0])
        assert torch.equal(layer(values), expected[1])
    assert torch.equal(layer(values), expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_gpu_rounds_and_masks_as_a_cpu_does(dtype: torch.dtype) -> None:
    """Nothing may be fused or divided otherwise there: the integers of a file are those of training."""
    values, found = rows_with(3, dtype), []
    for device in ("cpu", "cuda"):
        layer, given = layer_of().to(device), values.detach().to(device).requires_grad_()
        for _ in range(2):
            rounded = layer.rounded_input(given)
        weight = layer.rounded_weight()
        (gradient,) = torch.autograd.grad(rounded.sum(), given)
        found.append([rounded.cpu(), gradient.cpu(), layer.step_range.cpu()])
    assert weight.is_cuda and all(torch.equal(bits(one), bits(other)) for one, other in zip(*found, strict=True))
