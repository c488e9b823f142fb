"""Quantize a dense model after training with ONNX Runtime and with NNCF, for comparison with our int8 graph.

`onnx_speed.py`, `onnx_accuracy.py` and `peers.py` use these graphs; this file is not a program. NNCF quantizes twice:
with its defaults, and with linear layers and embeddings only, which are the layers that our schemes round. Needs the
extra `benchmarks`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn
from transformers import AutoConfig

from hf_compress.export import FORMATS, in_onnx_runtime, in_openvino, write_graph

FP32, DYNAMIC, STATIC, NNCF, NNCF_LINEAR = "fp32", "ort_dynamic", "ort_static", "nncf", "nncf_linear"
# Weights of four bits, in blocks; "linear" leaves embeddings in floating point, as ONNX Runtime does by default.
ORT4_LINEAR, ORT4, NNCF4, NNCF4_GPTQ = "ort_int4_linear", "ort_int4", "nncf_int4", "nncf_int4_gptq"
BLOCK = 32
# ONNX Runtime's default list also rounds softmax and additions; that costs ten points of accuracy (SST-2, MiniLM).
PRODUCTS = ["MatMul", "Gemm", "Gather"]


class Reader(CalibrationDataReader):
    """Hands batches to ONNX Runtime's calibration."""

    def __init__(self, batches: Sequence[dict[str, np.ndarray]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Any:
        return next(self.batches, None)


def quantize_after_training(dense: Path, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Path]:
    """Write the quantized graphs of the model in `dense` where `hf-compress bench` looks; return their paths by name.

    Args:
        dense: folder of the dense model.
        batches: inputs of the model, as arrays, to calibrate ranges on.
    """
    import nncf  # Here, so that `--help` works without it.

    folder = dense / FORMATS["onnx"].path.parent
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
    # Written as OpenVINO files: ONNX Runtime refuses the graph that NNCF writes from ONNX.
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


def compress_weights(dense: Path, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Path]:
    """Write graphs with 4-bit weights beside those of `quantize_after_training`; return their paths by name.

    Args:
        dense: folder of the dense model, after `quantize_after_training`.
        batches: inputs of the model, as arrays; GPTQ makes up for errors on them.
    """
    import nncf

    source = dense / FORMATS["onnx"].path.parent / f"{FP32}.onnx"
    paths = {}
    for name, operators in ((ORT4_LINEAR, ("MatMul",)), (ORT4, ("MatMul", "Gather"))):
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=4, block_size=BLOCK, is_symmetric=True, op_types_to_quantize=operators
        )
        quantizer.process()
        paths[name] = source.with_name(f"{name}.onnx")
        quantizer.model.save_model_to_file(str(paths[name]))
    for name in (NNCF4, NNCF4_GPTQ):
        more = {"dataset": nncf.Dataset(batches), "gptq": True} if name == NNCF4_GPTQ else {}
        compressed = nncf.compress_weights(
            openvino.convert_model(str(source)),
            mode=nncf.CompressWeightsMode.INT4_SYM,
            ratio=1.0,
            group_size=BLOCK,
            all_layers=True,
            **more,
        )
        paths[name] = dense / FORMATS["openvino"].path.parent / f"{name}.xml"
        openvino.save_model(compressed, paths[name], compress_to_fp16=False)
    return paths


def _of_activations(node: openvino.Node) -> bool:
    """Return whether a node multiplies two activations, as attention does, rather than an activation and a weight."""
    return node.get_type_name() == "MatMul" and not any(
        _is_constant(value.get_node()) for value in node.input_values()
    )


def _is_constant(node: openvino.Node) -> bool:
    inputs = [value.get_node() for value in node.input_values()]
    return node.get_type_name() == "Constant" or bool(inputs and all(map(_is_constant, inputs)))


def load_graph(path: Path, folder: Path, runtime: Callable[..., nn.Module] | None = None) -> nn.Module:
    """Load the graph at `path` of the model in `folder` in `runtime`; the default is the runtime for its file type."""
    run = runtime or (in_openvino if path.suffix == ".xml" else in_onnx_runtime)
    return run(path, AutoConfig.from_pretrained(folder))
