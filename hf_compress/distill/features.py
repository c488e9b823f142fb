"""The inputs of a loss with `needs`: each model's hidden states or attentions, and which tokens are padding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_compress.distill.losses import Features, Loss


def flags(loss: Loss) -> dict[str, bool]:
    """Return the arguments of a forward that make a model return what `loss` needs."""
    return {f"output_{name}": True for name in loss.needs}


def features(outputs: Mapping[str, Any], inputs: Mapping[str, Any], loss: Loss, who: str) -> Features:
    """Return what `loss` needs of a model's outputs for a batch.

    Args:
        who: "student" or "teacher", for the error.

    Raises:
        ValueError: the model does not return it, or its attention mask covers other positions than its hidden states.
    """
    found: dict[str, tuple[Tensor, ...] | None] = {"hidden_states": None, "attentions": None}
    for name in loss.needs:
        tensors = outputs.get(name)
        if not tensors or any(tensor is None for tensor in tensors):
            remedy = " Load it with `attn_implementation='eager'`." if name == "attentions" else ""
            raise ValueError(
                f"`--distill_loss {loss.name}` needs `{name}`, which the {who} does not return.{remedy} Otherwise "
                "choose a loss on the logits."
            )
        found[name] = tuple(tensors)
    first = next(tensors[0] for tensors in found.values() if tensors)
    places = first.shape[-1] if found["hidden_states"] is None else first.shape[1]
    return Features(found["hidden_states"], found["attentions"], _mask(inputs, len(first), places, first, loss, who))


def _mask(inputs: Mapping[str, Any], rows: int, places: int, like: Tensor, loss: Loss, who: str) -> Tensor:
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor):
        return torch.ones(rows, places, dtype=torch.bool, device=like.device)
    if mask.shape[-1] != places:
        raise ValueError(
            f"`--distill_loss {loss.name}` needs a mask of {places} places for the {who}'s features, but the "
            f"`attention_mask` of the batch has {mask.shape[-1]}. Choose a loss on the logits."
        )
    return mask.reshape(rows, places).to(like.device).bool()  # Inside the model, each choice is a separate row.
