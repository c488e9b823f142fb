"""What a checkpoint holds, tensor by tensor: bytes, bits per weight, zeros and entropy."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_compress.coding import declared, entropy_bytes, unpack
from hf_compress.quantizer import PACKED, SCALE, located, opened
from hf_compress.targets import model_class, part


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of a checkpoint as it is stored; a packed weight counts together with its scales.

    `bits_per_weight` is of the stored bytes. `entropy_bytes` bounds an order-0 coder: for integers their entropy plus
    the raw scales, for packed floats the entropy of the mask plus the raw non-zeros, for the rest the raw bytes.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    codec: str
    stored_bytes: int
    entropy_bytes: float
    zeros: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the tensor in fp32."""
        return 4 * self.numel

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / max(self.numel, 1)

    @property
    def sparsity(self) -> float:
        return self.zeros / max(self.numel, 1)


def tensors(folder: str | Path) -> list[TensorFacts]:
    """The facts of every tensor stored in the checkpoint `folder`, compressed or dense, in the order of the files.

    Raises:
        ValueError: there is no safetensors checkpoint of a known architecture, or it is damaged.
    """
    folder = Path(folder)
    architecture = model_class(folder)
    with torch.device("meta"):
        model = architecture(AutoConfig.from_pretrained(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors file. Give a folder that a model was saved to.")
    return [facts for path in files for facts in _facts(path, model)]


def _facts(path: Path, model: PreTrainedModel) -> Iterator[TensorFacts]:
    with opened(path) as file:
        keys = file.keys()  # The handle is no dict and cannot be iterated.
        names = set(keys)
        for key in keys:
            if key.endswith(SCALE) and key.removesuffix(SCALE) + PACKED in names:
                continue
            name, tensor = key.removesuffix(PACKED), file.get_tensor(key)
            if key == name:
                zeros, size = tensor.numel() - int(tensor.count_nonzero()), tensor.nbytes
                yield TensorFacts(name, part(model, name), tuple(tensor.shape), "raw", size, size, zeros)
                continue
            head, values = declared(tensor), located(path, key, partial(unpack, tensor))
            zeros = values.numel() - int(values.count_nonzero())
            stored = tensor.numel()
            if name + SCALE in names:
                scale = file.get_tensor(name + SCALE)
                stored, bound = stored + scale.nbytes, entropy_bytes(values) + scale.nbytes
            else:
                bound = entropy_bytes(values != 0) + values.itemsize * (values.numel() - zeros)
            shape = tuple(model.get_parameter(name).shape)
            yield TensorFacts(name, part(model, name), shape, head.codec, stored, bound, zeros)
