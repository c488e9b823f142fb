"""The ways to run what a folder holds: in PyTorch, dense or in integers, and in the runtimes of its graphs."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from hf_compress.export.runtimes import in_onnx_runtime, in_openvino
from hf_compress.folders import repository
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import model_class
from hf_compress.models.widths import resize
from hf_compress.report.sizes import dense_size

RUNTIMES = {"onnxruntime": in_onnx_runtime, "openvino": in_openvino}
GRAPHS = {"onnxruntime": ("onnx/*.onnx",), "openvino": ("onnx/*.onnx", "openvino/*.xml")}
VARIANTS = ("torch-fp32", "torch-dense", "torch-int8", *RUNTIMES)


@dataclass(frozen=True)
class Runnable:
    """A variant that can be loaded.

    Args:
        name: its name, with the folder's name in front if there are several folders.
        folder: the folder that it was found in.
        file_bytes: bytes of the file with its weights.
        load: loads it.
    """

    name: str
    folder: Path
    file_bytes: int
    load: Callable[[], nn.Module]


def find_variants(folders: Sequence[Path], names: Sequence[str], device: torch.device) -> list[Runnable]:
    """The variants in `folders`, those of dense folders first.

    Args:
        folders: where models were saved.
        names: which of `VARIANTS` to return.
        device: of PyTorch. The other runtimes are left out unless it is a CPU.

    Raises:
        ValueError: a folder without a model, an unknown name, or nothing is left.
    """
    if unknown := set(names) - set(VARIANTS):
        raise ValueError(f"`--variants` must be among {', '.join(VARIANTS)}; got {', '.join(sorted(unknown))}.")
    for folder in folders:
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder} holds no *.safetensors file. Give a folder that a model was saved to.")
    dense = [folder for folder in folders if not _packing(folder)]
    # A compressed folder alone is compared with its own dense model.
    found = list(_torch_variants(dense, folders, device)) + list(_graphs(folders, device))
    chosen = [(kind, variant) for kind, variant in found if kind in names]
    if not chosen:
        raise ValueError(
            f"`--variants` leaves nothing to measure in {', '.join(map(str, folders))}; got {', '.join(names)}. "
            f"The folders hold: {', '.join(dict.fromkeys(kind for kind, _ in found))}."
        )
    order = [*dense, *(folder for folder in folders if folder not in dense)]
    return [variant for _, variant in sorted(chosen, key=lambda item: order.index(item[1].folder))]


def label(folder: Path) -> str:
    """The folder's name, with that of the run around it if it is called `compressed`; the id of a copy from the Hub.

    Example:
        >>> from pathlib import Path
        >>> from hf_compress.report.variants import label
        >>> label(Path("runs/sst2/compressed"))
        'sst2/compressed'
    """
    folder = folder.resolve()
    repo_id = repository(folder)
    if repo_id is not None:
        return repo_id
    return f"{folder.parent.name}/{folder.name}" if folder.name == "compressed" else folder.name


def _prefix(folder: Path, folders: Sequence[Path]) -> str:
    return f"{label(folder)}: " if len(folders) > 1 else ""


def _packing(folder: Path) -> dict[str, Any]:
    packing: dict[str, Any] = getattr(AutoConfig.from_pretrained(folder), "quantization_config", {})
    return packing


def _torch_variants(
    dense: Sequence[Path], folders: Sequence[Path], device: torch.device
) -> Iterator[tuple[str, Runnable]]:
    for folder in folders:
        prefix, size = _prefix(folder, folders), sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if folder in dense:
            yield "torch-fp32", Runnable(f"{prefix}torch-fp32", folder, size, partial(_load, folder, device))
            continue
        if not dense and folder == folders[0]:
            plain = partial(_load_without_rounding, folder, device)
            yield "torch-fp32", Runnable(f"{prefix}torch-fp32", folder, dense_size(empty_model(folder))[0], plain)
        yield "torch-dense", Runnable(f"{prefix}torch-dense", folder, size, partial(_load, folder, device))
        if _packing(folder).get("quantized"):
            integers = partial(_load, folder, device, run="int8")
            yield "torch-int8", Runnable(f"{prefix}torch-int8", folder, size, integers)


def _graphs(folders: Sequence[Path], device: torch.device) -> Iterator[tuple[str, Runnable]]:
    for folder in folders if device.type == "cpu" else ():
        config = AutoConfig.from_pretrained(folder)
        for kind, runtime in RUNTIMES.items():
            if importlib.util.find_spec(kind) is None:
                continue
            files = [file for pattern in GRAPHS[kind] for file in sorted(folder.glob(pattern))]
            for file in files:
                own = f" {file.stem}" if len(files) > 1 else ""
                weights = file.with_suffix(".bin") if file.suffix == ".xml" else file
                load = partial(runtime, file, config)
                yield kind, Runnable(f"{_prefix(folder, folders)}{kind}{own}", folder, weights.stat().st_size, load)


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of `folder` without its weights, on the meta device."""
    with torch.device("meta"):
        model = model_class(folder)(AutoConfig.from_pretrained(folder))
    resize(model, _packing(folder).get("widths", {}))
    return model


def _load(folder: Path, device: torch.device, **run: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder)
    if run:
        config.quantization_config |= run
    return model_class(folder).from_pretrained(folder, config=config).to(device).eval()


def _load_without_rounding(folder: Path, device: torch.device) -> PreTrainedModel:
    model = _load(folder, device)
    for layer in compressed_layers(model).values():
        layer.input_grid = None
    return model
