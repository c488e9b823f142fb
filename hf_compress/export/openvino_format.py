"""A checkpoint as an OpenVINO model: the ONNX graph with the same integers, in OpenVINO's own files."""

import tempfile
from pathlib import Path

from hf_compress.export import onnx_format
from hf_compress.export.descriptor import Format
from hf_compress.export.runtimes import OPENVINO_EXACT, in_openvino
from hf_compress.extras import extra


def write_openvino(folder: Path, path: Path) -> None:
    """Write the checkpoint in `folder` as the OpenVINO model `path` (.xml), with its .bin file beside it.

    It is converted from the ONNX graph in `folder`, or from a temporary one if there is none.
    """
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        graph = folder / onnx_format.PATH
        if not graph.is_file():
            graph = Path(scratch, onnx_format.PATH.name)
            onnx_format.write_graph(folder, graph)
        openvino.save_model(openvino.convert_model(str(graph)), path, compress_to_fp16=False)


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
feeds = {node.any_name: inputs.get(node.any_name, 0 * inputs["input_ids"]) for node in model.inputs}
logits = model(feeds)[0]""",
    exact="the property `{}` set to {}".format(*OPENVINO_EXACT),
    errors=("openvino.frontend", *onnx_format.ONNX.errors),
)
