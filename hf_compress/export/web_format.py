"""The ONNX graph without its weights, for browsers: they make the weights from the packed file.

So a browser downloads the packed file and a graph of some ten kilobytes, in place of a graph of one byte a weight.
"""

import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import METHOD
from hf_compress.checkpoint.files import packed_tensors
from hf_compress.export.descriptor import Format
from hf_compress.export.onnx_format import ONNX, graph_of, headless, require_onnx
from hf_compress.export.runtimes import in_onnx_runtime
from hf_compress.export.web_parts import Part, find_parts, places
from hf_compress.models.heads import find_outputs
from hf_compress.packing.packed import Packed
from hf_compress.recipe import Recipe

PATH = Path("web", "graph.onnx")
COMPRESS = "Compress the model (`--quant_scheme int8`, `--prune_sparsity 0.6`), or write `onnx`."
VERSION = 1  # Of the list of parts.
DATA = "weights"  # What the graph calls the file with its constants.
INLINE = 256  # Constants of fewer bytes stay in the graph. Runtimes read some of them, such as shapes, at once.


def write_web(folder: Path, path: Path) -> None:
    """Write the graph of the checkpoint in `folder` without its weights to `path`, and the list of them beside it.

    The list (`path` with the suffix .json) says how to make each constant of the graph from the packed file.
    docs/format.md specifies it. A constant that the packed file does not hold in any known layout stays in the graph.

    Raises:
        ValueError: the checkpoint is not packed.
    """
    import onnx_ir as ir

    settings = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config") or {}
    if settings.get("quant_method") != METHOD:
        raise ValueError(
            f"`--compress_formats web` makes weights from a packed file, and {folder} holds dense ones. {COMPRESS}"
        )
    program = graph_of(folder)
    tensors = packed_weights(folder)
    constants = {name: value.const_value for name, value in program.model.graph.initializers.items()}
    big = {name: value.tobytes() for name, value in constants.items() if value.nbytes >= INLINE}
    parts = find_parts(big, tensors.values())
    sizes = {part: len(big[name]) for name, part in parts.items()}
    begins, size = places(sizes)
    for name, part in parts.items():
        value = constants[name]
        external = ir.ExternalTensor(DATA, begins[part], sizes[part], value.dtype, shape=value.shape, name=name)
        program.model.graph.initializers[name].const_value = external
    ir.save(program.model, path)
    graph = path.read_bytes()
    listed = {
        "version": VERSION,
        "seal": next(iter(tensors.values())).seal,
        "files": [file.name for file in _files(folder)],
        "graph": {"bytes": len(graph), "crc32": zlib.crc32(graph)},
        "data": {"name": DATA, "bytes": size},
        "parts": [part.to_dict() | {"at": begins[part], "bytes": sizes[part]} for part in sizes],
    }
    path.with_suffix(".json").write_text(json.dumps(listed, separators=(",", ":")) + "\n", "utf-8")


def read_web(path: Path, reference: PreTrainedModel, *, exact: bool = True) -> nn.Module:
    """Return the model of the graph `path`, with weights from the packed file, in ONNX Runtime.

    The packed file is in the folder above the graph's, or in that of `reference` while the format is written.

    Raises:
        ValueError: graph, list and packed file do not belong together.
    """
    listed, graph = json.loads(path.with_suffix(".json").read_text("utf-8")), path.read_bytes()
    if listed["graph"] != {"bytes": len(graph), "crc32": zlib.crc32(graph)}:
        raise ValueError(f"{path} is not the graph that {path.stem}.json describes. Write the format `web` again.")
    beside = path.parent.parent
    tensors = packed_weights(beside if (beside / listed["files"][0]).is_file() else Path(reference.name_or_path))
    if {tensor.seal for tensor in tensors.values()} != {listed["seal"]}:
        raise ValueError(f"{path} belongs to other weights than those beside it. Write the format `web` again.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        Path(scratch, path.name).write_bytes(graph)
        Path(scratch, listed["data"]["name"]).write_bytes(data_of(listed, tensors))
        return in_onnx_runtime(Path(scratch, path.name), reference.config, exact=exact)


def data_of(listed: Mapping[str, Any], tensors: Mapping[str, Packed]) -> bytearray:
    """Return the constants of a graph as its runtime reads them: `DATA`, made from the packed file.

    Args:
        listed: the list that `write_web` wrote.
        tensors: of the packed file, by name.
    """
    data = bytearray(listed["data"]["bytes"])
    for entry in listed["parts"]:
        part = Part(**{name: value for name, value in entry.items() if name not in ("at", "bytes")})
        data[entry["at"] : entry["at"] + entry["bytes"]] = part.data(tensors[part.tensor]).tobytes()
    return data


def packed_weights(folder: Path) -> dict[str, Packed]:
    """Return the packed tensors in `folder`, opened, by name.

    Raises:
        ValueError: there are none.
    """
    tensors = {tensor.key: tensor for file in _files(folder) for tensor in packed_tensors(file, {})}
    if not tensors:
        raise ValueError(f"{folder} has no *.safetensors file. Give a folder that `save_compressed` wrote.")
    return tensors


def _files(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("*.safetensors"))


def _refusal(recipe: Recipe) -> str:
    if recipe.name == "dense":
        return f"`--compress_formats web` makes weights from a packed file, and this run writes dense ones. {COMPRESS}"
    return ""


def _unfit(model: PreTrainedModel) -> str:
    if said := headless(model, "web"):
        return said
    head = find_outputs(model)
    if not head.takes_text:
        return (
            f"`--compress_formats web` is for models that read text; this {type(model).__name__} reads "
            f"`{head.main_input}`. Write `onnx`, which browsers run as well."
        )
    return ""


WEB = Format(
    name="web",
    path=PATH,
    require=require_onnx,
    write=write_web,
    read=read_web,
    help="the graph without weights, for browsers, which make them from the packed file",
    card="`web`: a browser downloads this and the packed file, and makes the weights of the ONNX graph.",
    loading="",
    native=lambda path, reference: read_web(path, reference, exact=False),
    runtime="the browser",
    exact=ONNX.exact,
    errors=ONNX.errors,
    refusal=_refusal,
    unfit=_unfit,
)
