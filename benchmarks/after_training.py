"""What others make of a dense model after training: the int8 graphs of ONNX Runtime, and of NNCF for OpenVINO.

NNCF's comes twice: as it is, and with nothing but linear layers and embeddings rounded, as our schemes do.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from torch import nn
from transformers import AutoConfig

from hf_compress.export.onnx_format import PATH, write_graph
from hf_compress.export.runtimes import in_onnx_runtime, in_openvino

FP32, DYNAMIC, STATIC, NNCF, NNCF_LINEAR = "fp32", "ort_dynamic", "ort_static", "nncf", "nncf_linear"
# ONNX Runtime's own list rounds softmax and additions too, and costs ten points of accuracy (SST-2, MiniLM).
PRODUCTS = ["MatMul", "Gemm", "Gather"]


class Reader(CalibrationDataReader):
    """Batches for ONNX Runtime's calibration."""

    def __init__(self, batches: Sequence[dict[str, np.ndarray]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Any:
        return next(self.batches, None)


def quantize_after_training(dense: Path, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Path]:
    """The graphs, by name, that are written into the folder of the model `dense` where `hf-compress bench` looks.

    Args:
        batches: inputs of the model to calibrate ranges on.
    """
    folder = dense / PATH.parent
    folder.mkdir(exist_ok=True)
    source, ready = folder / f"{FP32}.onnx", dense / "ready.onnx"
    write_graph(dense, source)
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    paths = {name: folder / f"{name}.onnx" for name in (FP32, DYNAMIC, STATIC)}
    quantize_dynamic(str(ready), str(paths[DYNAMIC]), per_channel=True, weight_type=QuantType.QInt8)
    quantize_static(
        str(ready),
        str(paths[STATIC]),
        Reader(batches),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=PRODUCTS,
    )
    # As OpenVINO's own files: ONNX Runtime refuses the graph of the same that NNCF writes from ONNX.
    for name in (NNCF, NNCF_LINEAR):
        graph = openvino.convert_model(str(source))
        left_out = (
            [] if name == NNCF else [node.get_friendly_name() for node in graph.get_ops() if _of_activations(node)]
        )
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=left_out),
        )
        paths[name] = dense / "openvino" / f"{name}.xml"
        openvino.save_model(quantized, paths[name], compress_to_fp16=False)
    return paths


def _of_activations(node: openvino.Node) -> bool:
    """Whether a node multiplies two activations, as attention does, and none with a weight."""
    return node.get_type_name() == "MatMul" and not any(
        _is_constant(value.get_node()) for value in node.input_values()
    )


def _is_constant(node: openvino.Node) -> bool:
    inputs = [value.get_node() for value in node.input_values()]
    return node.get_type_name() == "Constant" or bool(inputs and all(map(_is_constant, inputs)))


def load_graph(path: Path, folder: Path, runtime: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The graph at `path` of the model in `folder`: in `runtime`, or in the one that it is for."""
    run = runtime or (in_openvino if path.suffix == ".xml" else in_onnx_runtime)
    return run(path, AutoConfig.from_pretrained(folder))
