"""Quantized convolutions in graphs and other formats: integers per output channel, between rounding operators."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ConvNextConfig,
    PreTrainedModel,
    SqueezeBertConfig,
)

from hf_compress import export_onnx
from hf_compress.export import FORMATS
from hf_compress.export.formats import check_model
from hf_compress.layers import SCHEMES
from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.layer_kinds import CONVOLUTIONS, kind
from tests.quantized import quantized

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

IMAGE = AutoModelForImageClassification
PATH = Path("onnx", "model_quantized.onnx")


def convnext(**changes: Any) -> PreTrainedModel:
    sizes = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2, "num_labels": 3}
    return IMAGE.from_config(ConvNextConfig(**sizes | changes))


def producers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.node for name in node.output}


def test_a_convolution_stands_between_rounding_operators(tmp_path: Path) -> None:
    folder = quantized(convnext(), tmp_path / "compressed", "int8")
    assert export_onnx(folder).agreement > 0.9
    graph, layers = onnx.load(folder / PATH).graph, compressed_layers(IMAGE.from_pretrained(folder))
    made, known = producers(graph), {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    expected = [layer for layer in layers.values() if kind(layer) in CONVOLUTIONS]
    found = [node for node in graph.node if node.op_type == "Conv"]
    assert len(found) == len(expected) == 4
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
def test_openvino_holds_convolutions(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = quantized(convnext(), tmp_path / "compressed", "int8")
    assert FORMATS["openvino"].export(folder, None).agreement > 0.9


@pytest.mark.slow
def test_a_browser_makes_convolutions_from_the_packed_file(tmp_path: Path) -> None:
    """SqueezeBERT reads texts by grouped convolutions."""
    sizes = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    groups = {f"{one}_groups": 2 for one in ("q", "k", "v", "post_attention", "intermediate", "output")}
    config = SqueezeBertConfig(vocab_size=29, intermediate_size=64, num_labels=3, **sizes, **groups)
    model = AutoModelForSequenceClassification.from_config(config)
    folder = quantized(model, tmp_path / "compressed", "int8")
    assert FORMATS["web"].export(folder, None).agreement > 0.9
    parts = json.loads((folder / "web" / "graph.json").read_text())["parts"]
    made = {part["tensor"] for part in parts if part["take"] == "values"}
    found = {f"{name}.weight" for name, layer in model.named_modules() if kind(layer) in CONVOLUTIONS}
    assert len(found) == 6 and found <= made
