"""Rounding: laws of the grids, an oracle in torch's own operators, and the gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_compress.layers.attention import Operand
from hf_compress.layers.grids import (
    SCHEMES,
    Grid,
    fake_quantize_symmetric,
    from_integers,
    symmetric_scale,
    to_integers,
)
from hf_compress.layers.turning import turn

SYMMETRIC = sorted({grid for scheme in SCHEMES.values() for grid in (scheme.weight, scheme.embedding)}, key=str)


@pytest.mark.parametrize("grid", SYMMETRIC, ids=str)
@pytest.mark.parametrize("width", [1, 63, 64, 100, 128])
def test_rounding_to_a_symmetric_grid_is_idempotent(grid: Grid, width: int) -> None:
    once = fake_quantize_symmetric(torch.randn(500, width) * torch.logspace(-12, 12, 500)[:, None], grid)
    assert torch.equal(fake_quantize_symmetric(once, grid), once)


@pytest.mark.parametrize("grid", SYMMETRIC, ids=str)
def test_integers_times_scales_are_the_rounded_values(grid: Grid) -> None:
    values = torch.randn(50, 100)
    scale = symmetric_scale(values, grid)
    integers = to_integers(values, scale, grid)
    assert integers.abs().max() == grid.largest
    assert torch.equal(from_integers(integers.to(torch.int8), scale, grid), fake_quantize_symmetric(values, grid))


@pytest.mark.parametrize("grid", SYMMETRIC, ids=str)
def test_scales_of_weights_are_the_nearest_bfloat16_numbers(grid: Grid) -> None:
    values = torch.randn(50, 64)
    scale = symmetric_scale(values, grid)
    assert torch.equal(scale, (values.abs().amax(-1, keepdim=True) / grid.largest).bfloat16().float())


def test_rows_agree_with_torchs_per_channel_operator() -> None:
    values, grid = torch.randn(20, 64), Grid(bits=8, per="row")
    scale = symmetric_scale(values, grid).flatten()
    zero = torch.zeros(20, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(values, scale, zero, 0, -127, 127)
    torch.testing.assert_close(fake_quantize_symmetric(values, grid), expected)


def test_groups_are_rows_of_the_group_size() -> None:
    values = torch.randn(8, 128)
    grouped = fake_quantize_symmetric(values, Grid(bits=4, per="group", group_size=32))
    as_rows = fake_quantize_symmetric(values.reshape(32, 32), Grid(bits=4, per="row"))
    assert torch.equal(grouped, as_rows.reshape(8, 128))


@pytest.mark.parametrize("grid", SYMMETRIC, ids=str)
def test_zeros_stay_zero_and_an_empty_row_does_no_harm(grid: Grid) -> None:
    values = torch.randn(6, 100)
    values[2] = 0
    values[:, ::3] = 0
    rounded = fake_quantize_symmetric(values, grid)
    assert rounded[values == 0].eq(0).all() and rounded.isfinite().all()


def test_the_gradient_of_a_symmetric_grid_is_straight_through() -> None:
    values = torch.randn(4, 10, requires_grad=True)
    upstream = torch.randn(4, 10)
    fake_quantize_symmetric(values, Grid(bits=8, per="row")).backward(upstream)
    assert torch.equal(values.grad, upstream)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_float32_and_values_keep_their_16_bit_dtype(dtype: torch.dtype) -> None:
    values, grid = torch.randn(4, 10).to(dtype), Grid(bits=8, per="token")
    assert symmetric_scale(values, grid).dtype == torch.float32
    assert fake_quantize_symmetric(values, grid).dtype == dtype
    expected = fake_quantize_symmetric(values.float(), grid).to(dtype)
    assert torch.equal(fake_quantize_symmetric(values, grid), expected)


class Divisions(TorchDispatchMode):
    """Remembers what tensors are divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.divisors: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith("aten::div"):
            self.divisors.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4-weight"])
def test_no_scale_is_divided_by_a_number(scheme: str) -> None:
    """A GPU multiplies by the inverse of a number, which rounds twice; a CPU, which reads the file, divides."""
    grids = SCHEMES[scheme]
    with torch.device("meta"):
        layer: Any = turn(nn.Linear(128, 4), "linear", grids.weight, grids.activation)
        operand = Operand(SCHEMES["int8-attention"].attention, torch.device("meta"))  # type: ignore[arg-type]
        values = torch.randn(3, 128)
    operand.quantizing = layer.quantizing = True
    with Divisions() as seen:
        layer(values)
        operand(values)
    assert len(seen.divisors) >= 4
    assert all(isinstance(divisor, Tensor) and divisor.is_meta for divisor in seen.divisors)
