"""The formats that a compressed model is written in beside the packed one, by name: who writes and who reads them."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_compress.export import compressed_tensors_format as compressed_tensors
from hf_compress.export import onnx_format as onnx
from hf_compress.export.parity import Parity, check_parity, load, random_batches
from hf_compress.export.runtimes import in_onnx_runtime, in_openvino
from hf_compress.extras import extra

Batches = Iterable[Mapping[str, Any]]
PACKED = "packed"
OPENVINO = Path("openvino", "openvino_model.xml")


@dataclass(frozen=True)
class Format:
    """One format: where it lies in the compressed folder, and who writes it there, reads it back and says what lacks.

    `read` gives a model that computes with nothing but what lies at the path; the reference lends its configuration.
    """

    path: Path
    require: Callable[[], None]
    write: Callable[[Path, Batches | None], Parity]
    read: Callable[[Path, PreTrainedModel], nn.Module]

    def stored_bytes(self, folder: Path) -> int:
        """The bytes of the format in `folder`, tokenizers and configurations aside."""
        path = folder / self.path
        files = path.glob("*.safetensors") if path.is_dir() else path.parent.glob(f"{path.stem}*")
        return sum(file.stat().st_size for file in files)


def export_openvino(folder: str | Path, batches: Batches | None = None) -> Parity:
    """How far the model written to `folder`/openvino/openvino_model.xml is from the checkpoint in `folder`.

    It is the graph of `export_onnx` in OpenVINO's own files, with the same integers.

    Raises:
        MissingExtraError: the extra `openvino` or `onnx` is not installed.
        ValueError: as `export_onnx`.
    """
    require_openvino()
    import openvino

    folder = Path(folder)
    reference = load(folder)
    target, aside = folder / OPENVINO.parent, folder / f".{OPENVINO.parent}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            graph = folder / onnx.PATH
            if not graph.is_file():
                graph = Path(scratch, onnx.PATH.name)
                onnx.write_graph(folder, graph)
            openvino.save_model(openvino.convert_model(str(graph)), aside / OPENVINO.name, compress_to_fp16=False)
        runtime = in_openvino(aside / OPENVINO.name, reference.config)
        parity = check_parity(reference, runtime, batches or random_batches(reference), what="the OpenVINO model")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return parity


def require_openvino() -> None:
    """Check that OpenVINO and the packages that write ONNX graphs are installed.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    onnx.require_onnx()
    with extra("openvino", "The format `openvino`"):
        import openvino  # noqa: F401


FORMATS: dict[str, Format] = {
    "onnx": Format(
        onnx.PATH,
        onnx.require_onnx,
        onnx.export_onnx,
        lambda path, reference: in_onnx_runtime(path, reference.config),
    ),
    "openvino": Format(
        OPENVINO,
        require_openvino,
        export_openvino,
        lambda path, reference: in_openvino(path, reference.config),
    ),
    "compressed-tensors": Format(
        compressed_tensors.FOLDER,
        compressed_tensors.require_compressed_tensors,
        compressed_tensors.export_compressed_tensors,
        lambda path, reference: load(path),
    ),
}


def check_formats(names: Sequence[str]) -> None:
    """Nothing, if every name is a format and what writes it is installed; for the start of a run.

    Raises:
        ValueError: a name is none of a format.
        MissingExtraError: a package is not installed.
    """
    for name in names:
        if name not in (PACKED, *FORMATS):
            raise ValueError(
                f"`--compress_formats` must be of {', '.join((PACKED, *FORMATS))}; got {name!r}. Choose one of "
                "these, or leave the flag out to write the packed file alone."
            )
        if name != PACKED:
            FORMATS[name].require()


def write_formats(folder: str | Path, names: Sequence[str], batches: Batches | None = None) -> dict[str, Parity]:
    """How far each format of `names`, written into the compressed `folder`, is from the packed file.

    Args:
        batches: inputs to compare on, as `export_onnx` takes them.

    Raises:
        MissingExtraError, ValueError: as the writer of that format.
    """
    kept = None if batches is None else list(batches)
    return {name: FORMATS[name].write(Path(folder), kept) for name in FORMATS if name in names}


def written(folder: str | Path) -> list[str]:
    """The formats that lie in `folder` beside the packed one."""
    return [name for name, kind in FORMATS.items() if (Path(folder) / kind.path).exists()]
