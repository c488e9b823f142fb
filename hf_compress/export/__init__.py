"""The compressed model in other formats: ONNX, for browsers, OpenVINO, plain and compressed-tensors.

Each format has a file with its `Format` descriptor, and `formats` is the registry of them. A format is written aside,
compared with the packed file on batches (`parity`), and only then moved into the folder. `runtimes` runs the written
graphs behind the interface of a model.
"""

from hf_compress.export.descriptor import Format as Format
from hf_compress.export.formats import FORMATS as FORMATS
from hf_compress.export.formats import write_formats as write_formats
from hf_compress.export.onnx_format import export_onnx as export_onnx
from hf_compress.export.onnx_format import program_of as program_of
from hf_compress.export.onnx_format import require_onnx as require_onnx
from hf_compress.export.onnx_format import write_graph as write_graph
from hf_compress.export.runtimes import in_onnx_runtime as in_onnx_runtime
from hf_compress.export.runtimes import in_openvino as in_openvino
