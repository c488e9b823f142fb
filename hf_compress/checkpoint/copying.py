"""The decoded copy of a packed checkpoint that a model is loaded from: found, or made first."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_compress.checkpoint import decoded
from hf_compress.checkpoint.files import located
from hf_compress.checkpoint.layout import Layout, ordered
from hf_compress.layers.rounded import RANGE
from hf_compress.packing.packed import Packed

if TYPE_CHECKING:
    from hf_compress.checkpoint.quantizer import CompressionQuantizer

logger = logging.get_logger(__name__)

AHEAD = 4  # Tensors that are decoded before the file of a copy needs them.


def copied(quantizer: "CompressionQuantizer", model: PreTrainedModel, paths: Sequence[Path]) -> decoded.Copy | None:
    """Return the decoded copy of the packed files, after making it if there is none; None if it cannot be made.

    Args:
        model: with the layers of the checkpoint (`Skeleton`).

    Raises:
        ValueError: configuration, files and model do not fit together, or a file is damaged.
    """
    expected, config = quantizer.skeleton.expected, quantizer.quantization_config
    try:
        key = decoded.key_of(paths, config.to_dict(), config.run, expected)
        copy = decoded.find(key)
        if copy is not None:
            return copy
        packed = quantizer.checked(model, paths)
        layout = {
            name: (torch.int8 if quantizer.keeps_integers(tensor) else expected[name][0], expected[name][1])
            for name, tensor in packed.items()
            if not _is_range(name)
        }
        about = {
            "source": str(model.config.name_or_path),
            "run": config.run,
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        decoded.write(key, _tensors(quantizer, model, packed, layout), layout, _beside(model, packed), about)
        return decoded.find(key)
    except OSError as error:
        logger.warning(f"No decoded copy of {model.config.name_or_path} was made, it is decoded again: {error}.")
        return None


def _tensors(
    quantizer: "CompressionQuantizer", model: PreTrainedModel, packed: Mapping[str, Packed], layout: Layout
) -> Iterator[Tensor]:
    """Yield the tensors of the model in the order of a copy. A few are decoded ahead."""
    begun: deque[Callable[[], Tensor]] = deque()
    path = Path(model.config.name_or_path)
    for name in ordered(layout):
        start = partial(quantizer.start, packed[name], layout[name][0])
        begun.append(partial(located, path, name, located(path, name, start)))
        if len(begun) > AHEAD:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def _beside(model: PreTrainedModel, packed: Mapping[str, Packed]) -> dict[str, Tensor]:
    """Return the scales of all integers, by the name of the weight, and the ranges of inputs."""
    path = Path(model.config.name_or_path)
    scales = {name: located(path, name, tensor.scale) for name, tensor in packed.items() if tensor.group}
    ranges = {name: located(path, name, tensor.values) for name, tensor in packed.items() if _is_range(name)}
    return ranges | {name: scale for name, scale in scales.items() if scale is not None}


def _is_range(name: str) -> bool:
    return name.rpartition(".")[2] == RANGE
