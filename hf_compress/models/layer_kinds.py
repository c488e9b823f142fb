"""The kinds of layers that methods touch, and the weight of each as a matrix with one row per output or token."""

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

# "conv1d" is GPT-2's linear layer, which Transformers calls `Conv1D`. The convolutions of PyTorch are the last two.
LayerKind = Literal["linear", "conv1d", "embedding", "convolution1d", "convolution2d"]
LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: "linear",
    Conv1D: "conv1d",
    nn.Embedding: "embedding",
    nn.Conv1d: "convolution1d",
    nn.Conv2d: "convolution2d",
}
CONVOLUTIONS: tuple[LayerKind, ...] = ("convolution1d", "convolution2d")
PRUNED: tuple[LayerKind, ...] = ("linear", "conv1d", *CONVOLUTIONS)
QUANTIZED: tuple[LayerKind, ...] = ("linear", "conv1d", "embedding", *CONVOLUTIONS)


def kind(module: nn.Module) -> LayerKind | None:
    """Return the kind of layer that `module` is, or None if no method touches such layers.

    A layer whose weight is computed from other parameters, as weight normalization does, is of no kind.

    Example:
        >>> from torch import nn
        >>> from hf_compress.models.layer_kinds import kind
        >>> kind(nn.Conv2d(3, 4, kernel_size=2)), kind(nn.ConvTranspose2d(3, 4, kernel_size=2))
        ('convolution2d', None)
        >>> kind(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, kernel_size=2))) is None
        True
    """
    found = next((layer for layer_class, layer in LAYER_KINDS.items() if isinstance(module, layer_class)), None)
    return None if _is_computed(module) else found


def _is_computed(module: nn.Module) -> bool:
    """Whether other parameters give the weight of a layer.

    FSDP1 takes weights away without that. Such a layer keeps its kind, so that it is found and refused by name.
    """
    named = any(name.startswith("weight_") for name in module._parameters)
    return module._parameters.get("weight") is None and (named or is_parametrized(module, "weight"))


def as_rows(weight: Tensor, layer: LayerKind) -> Tensor:
    """Return a tensor in the shape of a layer's weight as a matrix with one row per output or token.

    A row of a convolution is all that computes one output channel. It is a view where the layout allows one.

    Example:
        >>> import torch
        >>> from hf_compress.models.layer_kinds import as_rows
        >>> as_rows(torch.zeros(8, 3, 2, 2), "convolution2d").shape
        torch.Size([8, 12])
    """
    if layer == "conv1d":
        return weight.t()
    return weight.flatten(1) if layer in CONVOLUTIONS else weight


def from_rows(rows: Tensor, layer: LayerKind, shape: Sequence[int]) -> Tensor:
    """Return the inverse of `as_rows`: a tensor in the `shape` of the weight.

    Example:
        >>> import torch
        >>> from hf_compress.models.layer_kinds import from_rows
        >>> from_rows(torch.zeros(8, 12), "convolution2d", (8, 3, 2, 2)).shape
        torch.Size([8, 3, 2, 2])
    """
    if layer == "conv1d":
        return rows.t()
    return rows.reshape(cast(tuple[int, ...], tuple(shape))) if layer in CONVOLUTIONS else rows
