"""Convolutions on grids: against torch's rounding per channel, naive loops, and gradients of plain convolutions."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_compress import CompressionConfig
from hf_compress.layers import SCHEMES, Grid
from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.rounded import CompressedLayer, plain_class
from hf_compress.layers.turning import turn
from hf_compress.models.layer_kinds import kind

CONVOLUTIONS: dict[str, Any] = {
    "patches": lambda: nn.Conv2d(3, 6, kernel_size=2, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 4, kernel_size=3, padding=1, groups=4),
    "mirrored": lambda: nn.Conv2d(2, 4, kernel_size=3, padding=1, padding_mode="reflect", bias=False),
    "waveform": lambda: nn.Conv1d(2, 6, kernel_size=3, stride=2, bias=False),
    "grouped": lambda: nn.Conv1d(4, 6, kernel_size=3, dilation=2, groups=2),
}
GRIDS = [Grid(8, "row"), Grid(3, "row"), Grid(4, "group", group_size=4)]


@pytest.fixture(params=CONVOLUTIONS)
def plain(request: pytest.FixtureRequest) -> nn.Module:
    return CONVOLUTIONS[request.param]()


def inputs_for(layer: Any) -> Tensor:
    return torch.randn(2, layer.in_channels, *(6,) * len(layer.kernel_size))


def turned(plain: nn.Module, weight: Grid, inputs: Grid | None = None) -> CompressedLayer:
    """The layer `plain`, turned in place and rounding, with a range that clips some of its inputs."""
    layer = turn(plain, kind(plain), weight, inputs)  # type: ignore[arg-type]
    layer.quantizing = True
    if layer.has_range:
        layer.input_range.copy_(torch.tensor([-1.0, 1.5]))
    return layer


def naive(values: Tensor, weight: Tensor, bias: Tensor | None, layer: Any) -> Tensor:
    """A convolution by the definition: loops over rows, output channels and places."""
    while values.dim() < 4:  # Of one dimension: an image that is one pixel high.
        values, weight = values.unsqueeze(-2), weight.unsqueeze(-2)
    high, wide = weight.shape[2:]
    strides, spread = ((1, *layer.stride)[-2:], (1, *layer.dilation)[-2:])
    down, across = (0, *layer.padding)[-2:]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    values = nn.functional.pad(values, (across, across, down, down), mode) if down or across else values
    size = [
        (values.shape[2 + axis] - spread[axis] * (weight.shape[2 + axis] - 1) - 1) // strides[axis] + 1
        for axis in (0, 1)
    ]
    found = torch.zeros(len(values), len(weight), *size, dtype=values.dtype)
    inner = weight.shape[1]
    for row, out, y, x in itertools.product(*map(range, found.shape)):
        first = out // (len(weight) // layer.groups) * inner
        total = torch.zeros((), dtype=values.dtype) if bias is None else bias[out].clone()
        for channel, dy, dx in itertools.product(range(inner), range(high), range(wide)):
            place = y * strides[0] + dy * spread[0], x * strides[1] + dx * spread[1]
            total += values[row, first + channel, place[0], place[1]] * weight[out, channel, dy, dx]
        found[row, out, y, x] = total
    return found


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_weight_is_rounded_as_torch_rounds_channels(plain: Any, bits: int) -> None:
    layer = turned(plain, Grid(bits, "row"))
    weight, largest = layer.weight.detach(), 2 ** (bits - 1) - 1
    scale = (weight.abs().flatten(1).amax(1) / largest).bfloat16().float()
    points = torch.zeros(len(scale), dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, points, 0, -largest - 1, largest)
    assert torch.equal(layer.rounded_weight(), expected)
    assert not torch.equal(expected, weight)


def test_a_convolution_computes_what_loops_compute(plain: Any) -> None:
    values = inputs_for(plain)
    layer = turned(plain, Grid(8, "row"), Grid(8, "tensor")).eval()
    step, zero = affine_parameters(torch.tensor(-1.0), torch.tensor(1.5), Grid(8, "tensor"))
    rounded = torch.fake_quantize_per_tensor_affine(values, float(step), int(zero), 0, 255)
    exact = [None if one is None else one.double() for one in (rounded, layer.rounded_weight(), plain.bias)]
    found = layer(values).double()
    assert torch.allclose(found, naive(*exact, layer).reshape(found.shape), atol=1e-5)  # type: ignore[arg-type]
    assert not torch.allclose(found, naive(values.double(), *exact[1:], layer).reshape(found.shape), atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_a_convolution_twice_changes_no_bit(plain: Any, grid: Grid) -> None:
    layer = turned(plain, grid)
    with torch.no_grad():
        once = layer.rounded_weight().clone()
        layer.weight.copy_(once)
        assert torch.equal(layer.rounded_weight(), once)


def test_gradients_of_a_convolution_pass_the_rounding(plain: Any) -> None:
    values = inputs_for(plain).requires_grad_()
    layer = turned(plain, Grid(8, "row"), Grid(8, "tensor")).eval()
    layer(values).square().sum().backward()
    other = plain_class(type(layer))._conv_forward  # type: ignore[attr-defined]
    step, zero = affine_parameters(torch.tensor(-1.0), torch.tensor(1.5), Grid(8, "tensor"))
    rounded = torch.fake_quantize_per_tensor_affine(values.detach(), float(step), int(zero), 0, 255).requires_grad_()
    weight = layer.rounded_weight().detach().requires_grad_()
    other(layer, rounded, weight, layer.bias).square().sum().backward()
    inside = (values > -1.0 - step / 2) & (values < 1.5 + step / 2)
    assert 0 < int(inside.sum()) < values.numel()
    assert rounded.grad is not None and values.grad is not None
    assert torch.allclose(values.grad, torch.where(inside, rounded.grad, 0.0))
    assert layer.weight.grad is not None and weight.grad is not None
    assert torch.allclose(layer.weight.grad, weight.grad)


def test_channels_last_in_memory_give_the_same_numbers() -> None:
    layer, values = (
        turned(CONVOLUTIONS["patches"](), Grid(8, "row"), Grid(8, "tensor")).eval(),
        torch.randn(2, 3, 6, 6),
    )
    expected, weight = layer(values), layer.rounded_weight()
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not layer.weight.is_contiguous()
    assert torch.equal(layer.rounded_weight(), weight)
    assert torch.allclose(layer(values.to(memory_format=torch.channels_last)), expected, atol=1e-6)


def test_inputs_without_tokens_stay_in_floating_point() -> None:
    """A convolution slides over places, so there is no token whose scale its input could have."""
    config = CompressionConfig(scheme={"weight": vars(Grid(8, "row")), "embedding": vars(Grid(8, "row"))})
    assert config.grids is not None and config.grids.of_input("convolution1d") is None
    dynamic, static = SCHEMES["int8-dynamic"], SCHEMES["int8"]
    assert dynamic.of_input("convolution2d") is None and dynamic.of_input("linear") == dynamic.activation
    assert static.of_input("convolution2d") == static.of_input("linear") == static.activation is not None


def test_weight_normed_and_transposed_layers_are_of_no_kind() -> None:
    """Their weight is computed anew in each forward, so that no file could hold it rounded."""
    assert kind(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3))) is None
    assert kind(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))) is None
    assert kind(nn.ConvTranspose1d(2, 2, 3)) is kind(nn.Conv3d(2, 2, 3)) is None
