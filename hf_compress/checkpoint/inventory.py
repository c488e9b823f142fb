"""The facts of a checkpoint, tensor by tensor: bytes, bits per weight, zeros and entropy."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_compress.checkpoint.coding import CODECS, entropy_bytes
from hf_compress.checkpoint.config import METHOD, CompressionConfig
from hf_compress.checkpoint.packed import Packed
from hf_compress.checkpoint.quantizer import located, opened, packed_tensors
from hf_compress.layers.attention import restore_attention
from hf_compress.models.targets import kind, model_class, part


@dataclass(frozen=True)
class TensorFacts:
    """One stored tensor of a checkpoint, including its scales.

    Args:
        name: of the tensor.
        part: of the model: embeddings, encoder or head.
        shape: of the weight.
        codec: the codecs of its chunks, or "raw".
        stored_bytes: its bytes in the file.
        entropy_bytes: the bound of an order-0 coder. For integers their entropy plus the raw scales; for floats the
            entropy of the mask plus the raw non-zeros, or the raw bytes if those are fewer.
        zeros: how many values are zero.
        grid_bits: the bits of the grid of integers. None for floats.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    codec: str
    stored_bytes: int
    entropy_bytes: float
    zeros: int
    grid_bits: int | None = None

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
    """Return the facts of every tensor in the checkpoint `folder`, compressed or dense, in the order of the files.

    Raises:
        ValueError: there is no safetensors checkpoint of a known architecture, or it is damaged.
    """
    folder = Path(folder)
    architecture = model_class(folder)
    with torch.device("meta"):
        model = architecture(AutoConfig.from_pretrained(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors file. Give a folder that a model was saved to.")
    return [facts for path in files for facts in _facts(path, model)]


def bytes_by_codec(folder: str | Path) -> dict[str, dict[str, int | None]]:
    """Return the bytes that each tensor of the packed checkpoint `folder` would have in each codec.

    None stands for a codec that cannot hold the tensor.

    Raises:
        ValueError: a tensor is not packed, or it is damaged.
    """
    return {
        packed.key: {codec: packed.bytes_with(codec) for codec in CODECS}
        for path in sorted(Path(folder).glob("*.safetensors"))
        for packed in packed_tensors(path, {})
    }


def _facts(path: Path, model: PreTrainedModel) -> Iterator[TensorFacts]:
    described = getattr(model.config, "quantization_config", None) or {}
    if described.get("quant_method") != METHOD:
        yield from _dense_facts(path, model)
        return
    config = CompressionConfig(**described)
    if config.grids is not None and config.grids.attention is not None:
        restore_attention(model, config.attention, config.grids.attention)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for packed in packed_tensors(path, shapes):
        yield located(path, packed.key, partial(_packed_facts, packed, model, config))


def _dense_facts(path: Path, model: PreTrainedModel) -> Iterator[TensorFacts]:
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - the handle is no dict
            tensor = file.get_tensor(name)
            zeros, size = tensor.numel() - int(tensor.count_nonzero()), tensor.nbytes
            yield TensorFacts(name, part(model, name), tuple(tensor.shape), "raw", size, size, zeros)


def _packed_facts(packed: Packed, model: PreTrainedModel, config: CompressionConfig) -> TensorFacts:
    values, scale, bits = packed.values(), packed.scale(), None
    zeros = values.numel() - int(values.count_nonzero())
    owner = packed.key.removesuffix(".weight")
    if scale is not None and config.grids is not None and owner in config.quantized:
        bits = config.grid(owner, kind(model.get_submodule(owner)) or "linear").bits
    if scale is not None:
        bound = entropy_bytes(values) + 2 * scale.numel()
    else:
        bound = min(float(values.nbytes), entropy_bytes(values != 0) + values.itemsize * (values.numel() - zeros))
    codec = "/".join(sorted(packed.codecs()))
    where, shape = part(model, packed.key), packed.weight_shape
    return TensorFacts(packed.key, where, shape, codec, len(packed.data), bound, zeros, bits)
