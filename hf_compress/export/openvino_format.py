"""A checkpoint as an OpenVINO model: the ONNX graph with the same integers, in OpenVINO's own files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hf_compress.export import onnx_format
from hf_compress.export.descriptor import Format
from hf_compress.export.runtimes import OPENVINO_EXACT, in_openvino
from hf_compress.extras import extra


def write_openvino(folder: Path, path: Path) -> None:
    """Write the checkpoint in `folder` as the OpenVINO model `path` (.xml), with its .bin file beside it.

    It is converted from the ONNX graph in `folder`, or from a temporary one if there is none. Int8 weights of linear
    layers are stored with one row per output.
    """
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        graph = folder / onnx_format.PATH
        if not graph.is_file():
            graph = Path(scratch, onnx_format.PATH.name)
            onnx_format.write_graph(folder, graph)
        model = openvino.convert_model(str(graph))
        _store_rows_per_output(model)
        openvino.save_model(model, path, compress_to_fp16=False)


def _store_rows_per_output(model: Any) -> None:
    """Transpose the int8 weights of matrix products, which ONNX holds as (inputs, outputs), and mark the products.

    OpenVINO otherwise transposes them when it compiles, and its kernels for sparse weights only take constants.
    """
    from openvino import opset13 as operators

    transposed: dict[str, Any] = {}  # By the name of what they replace: layers may share weights.
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or product.get_attributes()["transpose_b"]:
            continue
        scaled = product.input_value(1).get_node()
        stored = _stored(scaled)
        if stored is None:
            continue
        name = scaled.get_friendly_name()
        if name not in transposed:
            weight, scale = (operators.constant(np.ascontiguousarray(array.T)) for array in stored)
            weight.set_friendly_name(scaled.input_value(0).get_node().input_value(0).get_node().get_friendly_name())
            transposed[name] = operators.multiply(operators.convert(weight, "f32"), scale)
        product.set_argument(1, transposed[name].output(0))
        product.set_attribute("transpose_b", True)
    model.validate_nodes_and_infer_types()


def _stored(scaled: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return integers and scale of a weight, (inputs, outputs) and (1, outputs), or None if it is no such weight."""
    if scaled.get_type_name() != "Multiply":
        return None
    converted, scale = (value.get_node() for value in scaled.input_values())
    if scale.get_type_name() == "Reshape":
        scale = scale.input_value(0).get_node()
    if [node.get_type_name() for node in (converted, scale)] != ["Convert", "Constant"]:
        return None
    weight = converted.input_value(0).get_node()
    if weight.get_type_name() != "Constant" or weight.get_element_type().get_type_name() != "i8":
        return None
    integers = weight.data
    if integers.ndim != 2 or scale.data.size != integers.shape[1]:
        return None
    return integers, scale.data.reshape(1, -1)


def _require() -> None:
    with extra("openvino", "The format `openvino`"):
        onnx_format.require_onnx()
        import openvino  # noqa: F401


OPENVINO = Format(
    name="openvino",
    path=Path("openvino", "openvino_model.xml"),
    require=_require,
    write=write_openvino,
    read=lambda path, reference: in_openvino(path, reference.config, exact=True),
    help="the ONNX graph as OpenVINO's own files",
    card="`openvino`: OpenVINO runs it on CPUs, without hf_compress and without PyTorch.",
    loading="""\
import openvino

model = openvino.Core().compile_model(folder + "/openvino/openvino_model.xml", "CPU")""",
    native=lambda path, reference: in_openvino(path, reference.config),
    runtime="OpenVINO",
    install="openvino transformers",
    running="""\
feeds = {node.any_name: inputs.get(node.any_name{missing}) for node in model.inputs}
logits = model(feeds)[0]""",
    unfit=lambda model: onnx_format.headless(model, "openvino"),
    exact="the property `{}` set to {}".format(*OPENVINO_EXACT),
    errors=("openvino.frontend", *onnx_format.ONNX.errors),
)
