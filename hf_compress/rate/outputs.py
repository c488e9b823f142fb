"""The outputs of a model that its weights are judged by, and their gradients, without a trace left on the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hf_compress.models.heads import LABELS, Head, find_head

MASK = "attention_mask"
Inputs = Mapping[str, Any]
Pooling = Literal["mean", "first"]


def embedding(
    hidden: Float[Tensor, "rows tokens width"], mask: Tensor | None, pooling: Pooling = "mean"
) -> Float[Tensor, "rows width"]:
    """Return the normalized mean of the hidden states of each row, as sentence-transformers pools by default.

    Args:
        hidden: the last hidden states.
        mask: 1 for tokens and 0 for padding, of shape (rows, tokens); None if there is no padding.
        pooling: "mean", or "first" for the hidden state of the first token alone.

    Example:
        >>> import torch
        >>> from hf_compress.rate import embedding
        >>> embedding(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]]))
        tensor([[0.6000, 0.8000]])
    """
    if pooling == "first":
        # Tokenizers that pad on the left put the first token behind the padding.
        first = torch.zeros(len(hidden), dtype=torch.long) if mask is None else mask.argmax(1)
        return nn.functional.normalize(hidden[torch.arange(len(hidden)), first.to(hidden.device)], dim=-1)
    weight = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.to(hidden.dtype)
    pooled = (hidden * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-9)
    return nn.functional.normalize(pooled, dim=-1)


def without_labels(model: PreTrainedModel, batch: Inputs) -> dict[str, Any]:
    """Return the inputs of a batch without labels; what a decoder would read of them is made here."""
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    head, ids = _head(model), "decoder_input_ids"
    if head is not None and head.descriptor.decodes and ids not in inputs and "labels" in batch:
        inputs[ids] = cast(Any, model).prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    return inputs


def outputs_of(model: PreTrainedModel, pooling: Pooling) -> Callable[[Inputs], Sequence[Tensor]]:
    """Return the function from the inputs of `model` to the outputs that its weights are judged by."""
    head = _head(model)
    if head is not None:
        return lambda inputs: [_counted(one, inputs.get(MASK)) for one in head.logits(model(**inputs))]
    return lambda inputs: [embedding(model(**inputs).last_hidden_state, inputs.get(MASK), pooling)]


def _head(model: PreTrainedModel) -> Head | None:
    try:
        return find_head(model)
    except ValueError:
        return None


def _counted(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logits with those of padding set to zero."""
    if mask is None or logits.shape[: mask.dim()] != mask.shape:
        return logits
    kept = mask.bool().reshape(*mask.shape, *[1] * (logits.dim() - mask.dim()))
    return torch.where(kept, logits, 0.0)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return random signs, of the shape and dtype of `like`."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def gradients_of(total: Tensor, weights: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """Return the gradients of `total`, without leaving them on the weights."""
    if not any(isinstance(weight, DTensor) for weight in weights):
        return torch.autograd.grad(total, weights, allow_unused=True)
    total.backward()  # FSDP2 shards gradients only in a backward pass that accumulates them.
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return gradients


@contextmanager
def evaluating(model: PreTrainedModel, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which `model` is in evaluation mode and only `weights` need gradients."""
    modes = {module: module.training for module in model.modules()}
    needs = {parameter: parameter.requires_grad for parameter in model.parameters()}
    sharded = any(isinstance(weight, DTensor) for weight in weights)
    try:
        model.eval()
        if not sharded:  # FSDP2 fixes what needs gradients when it first gathers a weight.
            model.requires_grad_(False)
            for weight in weights:
                weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, need in needs.items():
            if sharded:
                parameter.grad = None
            else:
                parameter.requires_grad_(need)
