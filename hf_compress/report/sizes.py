"""The sizes of a model: as files, by the paper's formula, and by the entropy of its integers."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_compress.checkpoint.inventory import TensorFacts
from hf_compress.layers.bits import weight_grids
from hf_compress.models import targets
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.coverage import Coverage
from hf_compress.prune.patterns import PATTERNS
from hf_compress.recipe import Recipe


@dataclass(frozen=True)
class PartSize:
    """Bytes of the tensors of one part of the model, without file headers.

    Args:
        dense_bytes: in the dense fp32 file.
        packed_bytes: in the packed file.
    """

    dense_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class Size:
    """The sizes of one model, in bytes.

    Args:
        dense_bytes: the fp32 safetensors file of the dense model.
        packed_bytes: the `model.safetensors` that was written.
        parts: sizes of each part of the model.
        analytic_bytes: the formula of Movva et al. (2022). It leaves out masks, scales and headers; no file has this
            size.
        entropy_bytes: the order-0 entropy of the coded integers plus the raw bytes of the rest, which is what an ideal
            coder without context needs.
    """

    dense_bytes: int
    packed_bytes: int
    parts: dict[str, PartSize]
    analytic_bytes: int
    entropy_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the packed file is than the dense fp32 file."""
        return self.dense_bytes / self.packed_bytes


def dense_size(dense: PreTrainedModel) -> tuple[int, dict[str, int]]:
    """The bytes of `dense` as an fp32 safetensors file, and its number of weights per part.

    It writes a file of zeros to find the bytes. Tied weights count once, as in `save_pretrained`. Values do not
    matter, so the model may be on the meta device.
    """
    parameters = dict(dense.named_parameters())
    named = dict(dense.named_buffers())
    buffers = {name: tensor for name, tensor in dense.state_dict().items() if name in named}
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in parameters.items()}
    zeros |= {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in buffers.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(zeros, file, metadata={"format": "pt"})
        return file.stat().st_size, _weights(dense)


def _weights(model: PreTrainedModel) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = targets.part(model, name)
        numbers[part] = numbers.get(part, 0) + parameter.numel()
    return numbers


def analytic_bytes(model: PreTrainedModel, recipe: Recipe) -> int:
    """The size of Movva et al. (2022) in bytes: bytes per weight x (embeddings + (1 - sparsity) x all other weights).

    The sparsity is that of the recipe; of a pattern of groups, the share of all other weights that are zero. The
    formula leaves out masks, scales and indices; no file has this size. Weights with their own number of bits count
    with that number, and weights with fixed steps with the 8 bits of their scheme, although they take fewer in the
    file. The values of `model` do not matter.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress import QuantizationArguments, Recipe
        >>> from hf_compress.report import analytic_bytes
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> int8 = Recipe(quantization=QuantizationArguments(quant_scheme="int8"))
        >>> analytic_bytes(model, Recipe()) / analytic_bytes(model, int8)
        4.0
    """
    numbers, options = _weights(model), recipe.quantization
    embeddings = numbers.get("embeddings", 0)
    others = sum(numbers.values()) - embeddings
    kept = 1 - _sparsity(model, recipe.pruning, others)
    if not options.enabled:
        return round(4 * (embeddings + kept * others))
    total = options.scheme.embedding.bits * embeddings + options.scheme.weight.bits * kept * others
    rounded = weight_grids(targets.quantizable(model, options.quant_exclude), options.scheme, options.quant_bits)
    for weight, (target, grid) in {target.weight: (target, grid) for target, grid in rounded}.items():
        fewer = options.scheme.of(target.shares_embedding).bits - grid.bits
        total -= fewer * weight.numel() * (1 if target.shares_embedding else kept)
    return round(total / 8)


def _sparsity(model: PreTrainedModel, pruning: PruningArguments, others: int) -> float:
    if pruning.enabled and PATTERNS[pruning.prune_pattern].kinds:
        return Coverage.of(model, pruning).zeros(pruning.goal) / others
    return pruning.prune_sparsity if pruning.enabled else 0.0


def measured_size(
    folder: Path, dense: PreTrainedModel, student: PreTrainedModel, facts: Sequence[TensorFacts], recipe: Recipe
) -> Size:
    """The sizes of the checkpoint in `folder` against those of `dense`.

    Args:
        folder: a compressed checkpoint.
        dense: the dense model.
        student: the same model, or what was cut from it. The formula counts its weights.
        facts: the tensors in `folder`.
        recipe: what the model was compressed by.
    """
    dense_bytes, numbers = dense_size(dense)
    packed = {part: sum(fact.stored_bytes for fact in facts if fact.part == part) for part in numbers}
    return Size(
        dense_bytes=dense_bytes,
        packed_bytes=(folder / "model.safetensors").stat().st_size,
        parts={part: PartSize(4 * numbers[part], packed[part]) for part in sorted(numbers)},
        analytic_bytes=analytic_bytes(student, recipe),
        entropy_bytes=round(sum(fact.entropy_bytes for fact in facts)),
    )
