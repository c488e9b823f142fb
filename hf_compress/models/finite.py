"""Whether the weights of a model are numbers."""

import torch
from torch import nn

from hf_compress.models.sharding import local


def _is_finite(weight: nn.Parameter) -> bool:
    """Return whether a weight is finite. Weights on no device, and integers of quantized models, count as finite."""
    part = local(weight.detach())
    if part.is_meta or part.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return True
    return bool(part.isfinite().all())


def refuse_broken(model: nn.Module, whose: str) -> None:
    """Refuse a model whose weights are not finite before it trains or teaches.

    Args:
        model: the model.
        whose: "The teacher's", for the error.

    Raises:
        ValueError: they are not.
    """
    broken = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    if broken:
        raise ValueError(
            f"{whose} weights are not finite, for example `{broken[0]}` ({len(broken)} tensors in all). Use another "
            "checkpoint of it, or load it in a wider dtype."
        )
