"""The kernels for GPUs give the bits of eager functions in triton's interpreter, and compile to operations that round.

    pip install triton
    TRITON_INTERPRET=1 pytest tests/layers/test_kernels.py
    pytest tests/layers/test_kernels.py

The first run interprets the kernels on a CPU, the second one compiles them. Neither needs a GPU. Triton is read when
other libraries are imported, so a process does one or the other. The wheel has 286 MB: `make test` does without it.
"""

import importlib
import importlib.util
import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_compress.layers import fused
from hf_compress.layers.grids import SCHEMES, Grid, round_rows
from hf_compress.layers.turning import turn

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton, which PyTorch's builds for CUDA bring")
interpreted = pytest.mark.skipif(not INTERPRETS, reason="needs TRITON_INTERPRET=1 before Python starts")
compiled = pytest.mark.skipif(INTERPRETS, reason="needs a process without TRITON_INTERPRET=1")
quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy warns of NaN and of overflow.

# Ranges are always float32.
CASES = [
    (name, dtype)
    for name in fused.FUNCTIONS
    for dtype in (fused.DTYPES if name not in ("bounds_of_ends", "wider") else fused.DTYPES[:1])
]


def kernel(name: str) -> Any:
    return getattr(importlib.import_module(fused.KERNELS), name)


@interpreted
@quietly
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_a_kernel_gives_the_bits_of_its_function(name: str, dtype: torch.dtype) -> None:
    function, samples = fused.FUNCTIONS[name]
    count = 0
    for count, sample in enumerate(samples(dtype), start=1):  # noqa: B007
        assert fused.same_bits(function(*sample), kernel(name)(*sample)), sample
    assert count > 2


@interpreted
@quietly
@pytest.mark.parametrize("width", [1, 7, 64, 200, 4096, 4097, 9000])
@pytest.mark.parametrize("grid", [Grid(8, "row"), Grid(2, "row"), Grid(8, "token")], ids=str)
def test_rows_of_any_width_are_rounded_as_eagerly(grid: Grid, width: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, width) * torch.logspace(-30, 20, 6).view(2, 3, 1)
    assert fused.same_bits(round_rows(values, grid), kernel("round_rows")(values, grid))


@interpreted
@quietly
def test_a_kernel_leaves_what_it_cannot_read_to_the_function() -> None:
    values = torch.randn(4, 6, 5)
    bounds = kernel("bounds_of_ends")(torch.tensor([-1.0, 2.0]), Grid(8, "tensor"))
    turned, gaps = values.transpose(1, 2), values[:, ::2]
    for given in (turned, values.movedim(2, 0)):  # Dense, in another order.
        expected = fused.FUNCTIONS["round_in_bounds"][0](given, bounds)
        assert fused.same_bits(kernel("round_in_bounds")(given, bounds), expected)
    assert kernel("round_in_bounds")(gaps, bounds) is None
    assert kernel("round_in_bounds")(values[:0], bounds) is None
    assert kernel("mask_by_bounds")(values, turned.contiguous().transpose(1, 2), bounds) is None
    assert kernel("mask_by_bounds")(torch.ones(()).expand(values.shape), values, bounds) is None
    assert kernel("round_rows")(turned, Grid(8, "row")) is None
    assert kernel("round_rows")(values, Grid(4, "group", 2)) is None
    assert kernel("round_to_steps")(values, torch.ones(1, 6, 1)) is None


def a_step(scheme: str, dtype: torch.dtype, *, steps: bool) -> list[Tensor]:
    """Everything that a layer computes in a training step: outputs, gradients and the range that it saw."""
    torch.manual_seed(0)
    grids = SCHEMES[scheme]
    layer: Any = turn(nn.Linear(128, 48).to(dtype), "linear", grids.weight, grids.activation)
    if layer.has_range:
        layer.input_range.copy_(torch.tensor([-0.7, 2.1]))
        layer.step_range = torch.tensor([torch.inf, -torch.inf])
    if steps:
        layer.keep_step(layer.weight.detach().abs().amax(1, keepdim=True).bfloat16() / 100)
    layer.observing = layer.quantizing = True
    values = torch.randn(3, 5, 128, dtype=dtype, requires_grad=True)
    result = layer(values)
    result.backward(torch.randn_like(result))
    seen = [layer.step_range] if layer.has_range else []
    return [result.detach(), values.grad, layer.weight.grad, layer.bias.grad, *seen]


@interpreted
@quietly
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4-weight"])
def test_a_layer_trains_with_the_same_bits(
    scheme: str, steps: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("affine", "rounded", "shared_inputs"):
        monkeypatch.setattr(f"hf_compress.layers.{module}.reads_numbers", lambda _: False)
    expected = a_step(scheme, dtype, steps=steps)
    used = dict[Any, Any]()
    monkeypatch.setattr(fused, "may_fuse", lambda values: not (values.requires_grad and torch.is_grad_enabled()))
    monkeypatch.setattr(fused, "_kernels", used)
    monkeypatch.setattr(fused, "_off", {})
    found = a_step(scheme, dtype, steps=steps)
    assert fused._off == {}
    assert all(fused.same_bits(one, other) for one, other in zip(found, expected, strict=True))
    names = {"round_to_steps", "mask_by_steps"} if steps else {"round_rows"}
    names |= {"int8": {"bounds_of_ends", "round_in_bounds", "mask_by_bounds", "wider"}}.get(scheme, set())
    assert {name for name, *_ in used} >= names


# The parameters of the kernels; a number is a constant.
FLAT: dict[str, Any] = {"count": "i32", "BLOCK": 1024}
ROW: dict[str, Any] = {"width": "i32", "BLOCK": 512}
RANGE = "*fp32"
KERNELS: dict[str, dict[str, Any]] = {
    "_bounds": {"ends": RANGE, "found": RANGE, "LEVELS": 255.0},
    "_in_bounds": {"values": "*", "found": "*", "step": RANGE, "low": RANGE, "high": RANGE, **FLAT},
    "_mask_by_bounds": {"gradient": "*", "values": "*", "found": "*", "least": RANGE, "most": RANGE, **FLAT},
    "_rows": {"values": "*", "found": "*", "width": "i32", "LARGEST": 127.0, "UP": False, "BLOCK": 512},
    "_to_steps": {"values": "*", "found": "*", "step": RANGE, **ROW},
    "_mask_by_steps": {"gradient": "*", "values": "*", "found": "*", "step": RANGE, **ROW},
    "_wider": {"one": RANGE, "other": RANGE, "found": RANGE},
}


def assembly(name: str, dtype: str, capability: int, **options: Any) -> str:
    """The instructions that triton makes of a kernel for a GPU, which need not be there."""
    from triton import compile as compile_
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    given = {key: f"*{dtype}" if value == "*" else value for key, value in KERNELS[name].items()}
    constants = {key: value for key, value in given.items() if not isinstance(value, str)}
    source = ASTSource(
        fn=kernel(name),
        signature={key: "constexpr" if key in constants else value for key, value in given.items()},
        constexprs=constants,
    )
    made = compile_(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4} | options)
    return str(made.asm["ptx"])


# Arithmetic in floating point. `neg` and `abs` are exact, and so is a conversion that widens.
ARITHMETIC = re.compile(
    r"\b((?:add|sub|mul|div|fma|mad|rcp|sqrt|min|max|cvt)\.(?:\w+\.)*(?:f16|bf16|f32)\w*(?:\.\w+)*)"
)


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_compiled_kernel_rounds_every_operation_to_nearest(name: str, dtype: str, capability: int) -> None:
    """As IEEE 754 does and eager operations do: no division by an inverse, no contraction, no flush to zero."""
    found = set(ARITHMETIC.findall(assembly(name, dtype, capability, enable_fp_fusion=False)))
    allowed = {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32", "cvt.f32.f16", "cvt.rn.f16.f32"}
    assert found <= allowed
    rounds = {"_bounds", "_in_bounds", "_rows", "_to_steps"}
    assert (name in rounds) == ("div.rn.f32" in found)


@compiled
def test_without_the_option_a_kernel_would_contract() -> None:
    """What the test above can find."""
    assert "fma.rn.f32" in ARITHMETIC.findall(assembly("_bounds", "fp32", 90, enable_fp_fusion=True))
