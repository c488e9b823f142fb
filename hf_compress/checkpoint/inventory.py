"""The facts of a checkpoint, tensor by tensor: bytes, bits per weight, zeros and entropy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_compress.checkpoint.config import METHOD, CompressionConfig
from hf_compress.checkpoint.files import located, printable, safetensors_file
from hf_compress.checkpoint.quantizer import CompressionQuantizer
from hf_compress.models.layer_kinds import kind
from hf_compress.models.shares import Method, Piece, Shares
from hf_compress.models.targets import model_class, part
from hf_compress.packing.coding import CODECS, entropy_bytes
from hf_compress.packing.packed import Packed


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
        pruned: whether it belongs to a layer that was pruned.
        sensitivity: how much the outputs depend on the tensor, in a unit that all tensors of the file share: the sum
            of 1 / step^2 over its weights. None where rows have no fixed steps.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    codec: str
    stored_bytes: int
    entropy_bytes: float
    zeros: int
    grid_bits: int | None = None
    sensitivity: float | None = None
    pruned: bool = False

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

    A file from an untrusted source must pass the checks of loading before anything is decoded.

    Raises:
        ValueError: there is no safetensors checkpoint of a known architecture, or it is damaged.
    """
    folder = Path(folder)
    files = _files(folder)
    model = _declared(folder, files)
    config = _compression(model.config)
    if config is None:
        return [facts for path in files for facts in _dense_facts(path, model)]
    packed = CompressionQuantizer(config).opened(model, files)
    return [located(folder, name, partial(_packed_facts, tensor, model, config)) for name, tensor in packed.items()]


def bits_per_weight(facts: Sequence[TensorFacts]) -> float | None:
    """Return the average bits on disk of a weight that is stored as an integer, scales included; None without any.

    Example:
        >>> from hf_compress.checkpoint.inventory import TensorFacts, bits_per_weight
        >>> stored = TensorFacts("dense.weight", "encoder", (8, 8), "pairs", 24, 20.0, zeros=9, grid_bits=8)
        >>> bits_per_weight([stored])
        3.0
    """
    integers = [fact for fact in facts if fact.grid_bits is not None]
    numel = sum(fact.numel for fact in integers)
    return 8 * sum(fact.stored_bytes for fact in integers) / numel if numel else None


def shares(facts: Sequence[TensorFacts]) -> dict[Method, Shares]:
    """Return how much of a checkpoint each method touched, in weights and in bytes of the file, if it touched any.

    Example:
        >>> from hf_compress.checkpoint.inventory import TensorFacts, shares
        >>> weight = TensorFacts("dense.weight", "encoder", (8, 8), "pairs", 24, 20.0, zeros=9, grid_bits=8)
        >>> bias = TensorFacts("dense.bias", "encoder", (8,), "planes", 36, 32.0, zeros=0)
        >>> {method: share.of_bytes for method, share in shares([weight, bias]).items()}
        {'quantized': 0.4}
    """
    touched: dict[Method, Callable[[TensorFacts], bool]] = {
        "pruned": lambda fact: fact.pruned,
        "quantized": lambda fact: fact.grid_bits is not None,
    }
    return {
        method: Shares.of(
            method,
            [Piece(fact.name, fact.shape, fact.stored_bytes, fact.part, is_touched(fact)) for fact in facts],
        )
        for method, is_touched in touched.items()
        if any(is_touched(fact) for fact in facts)
    }


def bytes_by_codec(folder: str | Path) -> dict[str, dict[str, int | None]]:
    """Return the bytes that each tensor of the packed checkpoint `folder` would have in each codec.

    None stands for a codec that cannot hold the tensor.

    Raises:
        ValueError: the checkpoint is not packed, or it is damaged.
    """
    folder = Path(folder)
    files = _files(folder)
    model = _declared(folder, files)
    config = _compression(model.config)
    if config is None:
        raise ValueError(f"{folder} is not a packed checkpoint, so it has no codecs.")
    packed = CompressionQuantizer(config).opened(model, files)
    return {name: located(folder, name, partial(_codec_bytes, tensor)) for name, tensor in packed.items()}


def _codec_bytes(packed: Packed) -> dict[str, int | None]:
    return {codec: packed.bytes_with(codec) for codec in CODECS}


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors file. Give a folder that a model was saved to.")
    return files


def _declared(folder: Path, files: list[Path]) -> PreTrainedModel:
    """Return the model that config.json declares, without memory for its weights.

    Raises:
        ValueError: config.json declares no model, or one with more layers than the files have tensors.
    """
    try:
        architecture, config = model_class(folder), AutoConfig.from_pretrained(folder, trust_remote_code=False)
        stored = sum(len(safetensors_file(path).keys()) for path in files)
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > stored:
            raise ValueError(
                f"{folder}/config.json declares {layers} layers, but the files hold {stored} tensors. Download or "
                "save the folder again."
            )
        with torch.device("meta"):
            return architecture(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{folder}/config.json does not describe a model: {error}") from error


def _compression(config: PreTrainedConfig) -> CompressionConfig | None:
    """Return the `quantization_config` of a packed checkpoint, None of any other."""
    described = getattr(config, "quantization_config", None)
    if not isinstance(described, dict) or described.get("quant_method") != METHOD:
        return None
    return CompressionConfig(**described)


def _dense_facts(path: Path, model: PreTrainedModel) -> list[TensorFacts]:
    facts = []
    with safetensors_file(path) as file:
        for name in file.keys():  # noqa: SIM118 - the handle is no dict
            tensor = file.get_tensor(name)
            zeros, size = tensor.numel() - int(tensor.count_nonzero()), tensor.nbytes
            shape = tuple(tensor.shape)
            facts.append(TensorFacts(printable(name), part(model, name), shape, "raw", size, size, zeros))
    return facts


def _packed_facts(packed: Packed, model: PreTrainedModel, config: CompressionConfig) -> TensorFacts:
    values, scale, bits, sensitivity = packed.values(), packed.scale(), None, None
    zeros = values.numel() - int(values.count_nonzero())
    owner = packed.key.removesuffix(".weight")
    if scale is not None and config.grids is not None and owner in config.quantized:
        bits = config.grid(owner, kind(model.get_submodule(owner)) or "linear").bits
        if config.steps:
            sensitivity = _sensitivity(scale, packed.width)
    if scale is not None:
        bound = entropy_bytes(values) + 2 * scale.numel()
    else:
        bound = min(float(values.nbytes), entropy_bytes(values != 0) + values.itemsize * (values.numel() - zeros))
    codec = "/".join(sorted(packed.codecs()))
    where, shape = part(model, packed.key), packed.weight_shape
    pruned = owner in config.pruned and packed.key.endswith(".weight")
    return TensorFacts(packed.key, where, shape, codec, len(packed.data), bound, zeros, bits, sensitivity, pruned)


def _sensitivity(steps: Tensor, width: int) -> float:
    """Return the sum over the weights of a tensor of 1 / step^2: a step is a constant over the root of sensitivity."""
    known = steps.double()[(steps > 0) & steps.isfinite()]  # A file from anywhere may hold other numbers.
    return float(width * known.square().reciprocal().sum())
