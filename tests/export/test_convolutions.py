"""Quantized convolutions in graphs and other formats: integers per output channel, between rounding operators."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ConvNextConfig,
    PreTrainedModel,
    SqueezeBertConfig,
    Wav2Vec2Config,
)

from hf_compress import export_onnx
from hf_compress.export import FORMATS
from hf_compress.export.formats import check_model
from hf_compress.export.onnx_convolutions import GraphConvolution1d, GraphConvolution2d, becomes_product
from hf_compress.layers import SCHEMES, Grid
from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.turning import compressed_layers, quantize_layers, turn
from hf_compress.models.layer_kinds import CONVOLUTIONS, as_rows, kind
from tests.export.test_onnx_format import SMALL, WAVEFORM, kernels_of
from tests.quantized import quantized

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

IMAGE = AutoModelForImageClassification
PATH = Path("onnx", "model_quantized.onnx")


def convnext(**changes: Any) -> PreTrainedModel:
    sizes = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2, "num_labels": 3}
    return IMAGE.from_config(ConvNextConfig(**sizes | changes))


PRODUCTS: dict[str, Callable[[], Any]] = {
    "patches": lambda: nn.Conv2d(3, 5, kernel_size=4, stride=4),
    "oblong": lambda: nn.Conv2d(2, 5, kernel_size=(2, 3), stride=(2, 3), bias=False),
    "waveform": lambda: nn.Conv1d(2, 5, kernel_size=3, stride=2),
    "padded": lambda: nn.Conv1d(2, 5, kernel_size=3, padding=1, bias=False),
    "dilated": lambda: nn.Conv1d(2, 5, kernel_size=2, dilation=3, padding=2),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "depthwise": lambda: nn.Conv2d(4, 4, kernel_size=3, padding=1, groups=4),
    "overlapping": lambda: nn.Conv2d(3, 5, kernel_size=3, stride=2),
    "mirrored": lambda: nn.Conv1d(2, 5, kernel_size=3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv1d(2, 5, kernel_size=3, padding="same"),
    "long": lambda: nn.Conv1d(2, 5, kernel_size=128),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ConvNeXt in `int8` with its graph."""
    torch.manual_seed(0)
    found = quantized(convnext(), tmp_path_factory.mktemp("onnx") / "compressed", "int8")
    assert export_onnx(found).agreement > 0.9
    return found


def producers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.node for name in node.output}


def test_a_depthwise_convolution_stands_between_roundings(folder: Path) -> None:
    graph, layers = onnx.load(folder / PATH).graph, compressed_layers(IMAGE.from_pretrained(folder))
    made, known = producers(graph), {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    expected = [layer for name, layer in layers.items() if name.endswith("dwconv")]
    found = [node for node in graph.node if node.op_type == "Conv"]
    assert len(found) == len(expected) == 2
    for node, layer in zip(found, expected, strict=True):
        values, weight = (made[name] for name in node.input[:2])
        assert values.op_type == weight.op_type == "DequantizeLinear"
        assert made[values.input[0]].op_type == "QuantizeLinear"
        step, zero = affine_parameters(*layer.input_range, layer.input_grid)  # type: ignore[arg-type]
        assert [float(known[values.input[1]]), int(known[values.input[2]])] == [float(step), int(zero)]
        integers, scale = (known[name] for name in weight.input[:2])
        assert integers.dtype == np.int8 and scale.shape == (len(integers),)
        assert [(one.name, one.i) for one in weight.attribute] == [("axis", 0)]
        stored = integers * scale.reshape(-1, 1, 1, 1)
        assert np.array_equal(stored, layer.weight.detach().numpy())


def test_convolutions_of_patches_become_products_of_integers(folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime multiplies integers two to three times as fast as floats, but only in products."""
    kernels, layers = kernels_of(folder, tmp_path), compressed_layers(IMAGE.from_pretrained(folder))
    assert kernels.count("MatMulIntegerToFloat") == sum(layer.has_range for layer in layers.values()) - 2


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_is_the_convolution(case: str) -> None:
    """With integers of 8 bits and a zero point that is not zero, gathered and multiplied as the graph does it."""
    plain = PRODUCTS[case]()
    layer: Any = turn(plain, cast(Any, kind(plain)), Grid(8, "row"), Grid(8, "tensor")).eval()
    layer.quantizing = True
    layer.input_range.copy_(torch.tensor([-1.0, 1.5]))
    assert becomes_product(layer, layer.weight_grid, layer.input_grid)
    values = torch.randn(2, layer.in_channels, *(9,) * len(layer.kernel_size))
    expected = layer(values)
    step, zero = affine_parameters(torch.tensor(-1.0), torch.tensor(1.5), Grid(8, "tensor"))
    integers = (values / step + zero).round().clamp(0, 255).to(torch.uint8)
    ours = GraphConvolution1d if isinstance(layer, nn.Conv1d) else GraphConvolution2d
    rows = as_rows(layer.rounded_weight().detach(), layer.layer_kind)
    weight, bias = ours.arranged(rows, layer.weight.shape), layer.bias
    layer.__class__, layer.zero_number = ours, int(zero)
    columns, sizes = layer.columns(integers)
    found = (columns.float() - zero) * step @ weight + (0 if bias is None else bias)
    assert torch.allclose(found.transpose(1, 2).unflatten(2, sizes), expected, atol=1e-5)


@pytest.mark.parametrize("case", OTHERS)
def test_other_convolutions_stay_convolutions(case: str) -> None:
    assert not becomes_product(OTHERS[case](), Grid(8, "row"), Grid(8, "tensor"))
    assert not becomes_product(PRODUCTS["patches"](), Grid(8, "row"), None)


OPTIONS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("int8-dynamic", (), {}),
    ("int8-weight", ("dwconv=3",), {}),
    # Rows of 48 values are one group, rows of 64 and 1024 are whole groups, rows of 400 have a shorter last one.
    ("int4-weight", (), {"hidden_sizes": [16, 100]}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "bits", "changes"), OPTIONS, ids=[option[0] for option in OPTIONS])
def test_convolutions_of_other_schemes_compute_the_same(
    scheme: str, bits: tuple[str, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = quantized(convnext(**changes), tmp_path / "compressed", scheme, *bits)
    assert export_onnx(folder).agreement > 0.9
    expected = {"int8-dynamic": {onnx.TensorProto.INT8}, "int4-weight": {onnx.TensorProto.INT4}}
    both = {onnx.TensorProto.INT8, onnx.TensorProto.INT4}
    assert {one.data_type for one in onnx.load(folder / PATH).graph.initializer} & both == expected.get(scheme, both)


def test_a_format_of_linear_layers_is_refused_before_training() -> None:
    model = convnext()
    quantize_layers(model, SCHEMES["int8"])
    check_model(["onnx", "openvino"], model)
    with pytest.raises(
        ValueError, match="compressed-tensors.*inputs of 4 convolutions, such as convnext.*int8-weight"
    ):
        check_model(["compressed-tensors"], model)
    excluded, weights = convnext(), convnext()
    quantize_layers(excluded, SCHEMES["int8"], ["dwconv", "patch", "downsampling"])
    quantize_layers(weights, SCHEMES["int8-weight"])
    for fitting in (excluded, weights):
        check_model(["compressed-tensors"], fitting)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "compressed-tensors"])
def test_other_files_hold_rounded_convolutions(name: str, tmp_path: Path) -> None:
    if name == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    folder = quantized(convnext(), tmp_path / "compressed", "int8-weight")
    assert FORMATS[name].export(folder, None).difference < 1e-6


@pytest.mark.slow
def test_a_waveform_is_read_by_products_of_integers(tmp_path: Path) -> None:
    config = Wav2Vec2Config(**SMALL, **WAVEFORM)
    found = quantized(AutoModelForAudioClassification.from_config(config), tmp_path / "compressed", "int8")
    assert export_onnx(found).agreement > 0.9
    layers = compressed_layers(AutoModelForAudioClassification.from_pretrained(found)).values()
    kernels = kernels_of(found, tmp_path)
    assert kernels.count("MatMulIntegerToFloat") == sum(layer.has_range for layer in layers)
    assert kernels.count("Conv") == 1  # Of positions, whose weight is normed.


@pytest.mark.slow
def test_openvino_holds_convolutions(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = quantized(convnext(), tmp_path / "compressed", "int8")
    assert FORMATS["openvino"].export(found, None).agreement > 0.9


@pytest.mark.slow
def test_a_browser_makes_convolutions_from_the_packed_file(tmp_path: Path) -> None:
    """SqueezeBERT reads texts by grouped convolutions."""
    sizes = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    groups = {f"{one}_groups": 2 for one in ("q", "k", "v", "intermediate")}  # The others become products.
    groups |= {"post_attention_groups": 1, "output_groups": 1}
    config = SqueezeBertConfig(vocab_size=29, intermediate_size=64, num_labels=3, **sizes, **groups)
    model = AutoModelForSequenceClassification.from_config(config)
    folder = quantized(model, tmp_path / "compressed", "int8")
    assert FORMATS["web"].export(folder, None).agreement > 0.9
    parts = json.loads((folder / "web" / "graph.json").read_text())["parts"]
    made = {part["tensor"] for part in parts if part["take"] == "values"}
    found = {f"{name}.weight" for name, layer in model.named_modules() if kind(layer) in CONVOLUTIONS}
    assert len(found) == 6 and found <= made
