"""How much of a model a method touches: in weights and in bytes, and what it leaves alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from peft import PeftModel
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from transformers import PreTrainedModel

from hf_compress.models.targets import PROJECTIONS, Target, part, unadapted

Method = Literal["pruned", "quantized"]
# The share of all weights from which on a matrix that a method leaves alone is named.
NOTABLE = 0.001
NAMED = 3
_ADAPTERS = (".lora_", ".modules_to_save.")
_REST = {
    "pruned": "embeddings, the head, biases and norms",
    "quantized": "the head, biases and norms",
}


@dataclass(frozen=True)
class Piece:
    """One tensor of a model: its name, its numbers, and whether a method touches it.

    Args:
        name: of the tensor.
        shape: of the tensor.
        bytes: that it takes.
        part: of the model: embeddings, encoder or head.
        touched: whether the method touches it.
    """

    name: str
    shape: Sequence[int]
    bytes: int
    part: str
    touched: bool

    @property
    def weights(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shares:
    """How much of a model a method touches.

    Args:
        weights: the number of weights in layers that it touches.
        bytes: that they take.
        all_weights: of the model.
        all_bytes: that they take.
        convolutions: how many of the layers are convolutions.
        others: matrices that it leaves alone although they are neither embeddings of a pruned model nor the head, by
            name, with their numbers of weights, the largest first. Only those with a notable share of the weights.

    Example:
        >>> from hf_compress.models.shares import Shares
        >>> Shares(weights=98, bytes=30, all_weights=100, all_bytes=40).of_weights
        0.98
    """

    weights: int
    bytes: int
    all_weights: int
    all_bytes: int
    convolutions: int = 0
    others: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, method: Method, pieces: Iterable[Piece]) -> "Shares":
        """Return the sums over the tensors of a model."""
        every = list(pieces)
        touched = [one for one in every if one.touched]
        total = sum(one.weights for one in every)
        parts = ("encoder",) if method == "pruned" else ("encoder", "embeddings")
        others = {
            one.name: one.weights
            for one in sorted(every, key=lambda one: -one.weights)
            if not one.touched and one.part in parts and len(one.shape) > 1 and one.weights >= NOTABLE * total
        }
        return cls(
            sum(one.weights for one in touched),
            sum(one.bytes for one in touched),
            total,
            sum(one.bytes for one in every),
            sum(len(one.shape) > 2 for one in touched),
            others,
        )

    @property
    def of_weights(self) -> float:
        """The share of the weights."""
        return self.weights / max(self.all_weights, 1)

    @property
    def of_bytes(self) -> float:
        """The share of the bytes."""
        return self.bytes / max(self.all_bytes, 1)

    def rest(self, method: Method) -> list[str]:
        """Return what the method leaves alone: in words, and the names of `others` with their sizes."""
        named = [f"{name} ({weights:,} weights)" for name, weights in list(self.others.items())[:NAMED]]
        more = len(self.others) - len(named)
        return [_REST[method], *named, *([f"{more} more"] if more else [])]


def shares_of(model: PreTrainedModel | PeftModel, method: Method, targets: Sequence[Target]) -> Shares:
    """Return how much of `model` a method touches that changes the weights of `targets`.

    Adapters and what only training needs do not count. Weights that several processes share count as a whole.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from hf_compress.models import quantizable
        >>> from hf_compress.models.shares import shares_of
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
        >>> shares = shares_of(model, "quantized", quantizable(model))
        >>> shares.convolutions, list(shares.others)
        (1, ['vit.embeddings.position_embeddings', 'vit.embeddings.cls_token'])
    """
    base = unadapted(model)
    touched = {id(target.weight) for target in targets}
    pieces = [
        Piece(
            name.replace(_CHECKPOINT_PREFIX, ""),
            tuple(parameter.shape),
            parameter.numel() * parameter.element_size(),
            part(base, name),
            id(parameter) in touched,
        )
        for name, parameter in base.named_parameters()
        if not name.startswith(f"{PROJECTIONS}.") and not any(mark in name for mark in _ADAPTERS)
    ]
    return Shares.of(method, pieces)
