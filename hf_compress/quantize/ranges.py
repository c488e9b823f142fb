"""Ranges of activations: moving averages of the extremes that layers see, without outliers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.sentences import sentence_kind
from hf_compress.models.targets import whole

# Weight of the past in the moving average of activation ranges (Jacob et al., 2018, sec. 3.1: "close to 1").
RANGE_MOMENTUM = 0.95
# How many times the magnitude of a range one step may contribute to its average. A value further out is an outlier and
# is clipped to that bound (winsorizing; Tukey, 1962): a range grows by a factor of at most 1.95 in one step. A lasting
# change of scale is still followed, by that factor per step. Wu et al. (2020) compare ways to leave outliers out of
# ranges.
RANGE_REACH = 20.0
# In the first steps the bound holds in both directions: an outlier in the very first step has nothing to be compared
# with, and the moving average would take hundreds of steps to forget it.
RANGE_WARMUP = 20


def refuse_plain_loading(layers: Iterable[CompressedLayer], model: object, *, loads_best: bool) -> None:
    """Refuse a run whose best checkpoint would be loaded through a plain model, which has no ranges.

    sentence-transformers does that, logs the failure and keeps the last weights.

    Args:
        layers: of the model.
        model: that the trainer trains.
        loads_best: whether the best checkpoint is loaded at the end.

    Raises:
        ValueError: it is, into layers with ranges.
    """
    if loads_best and sentence_kind(whole(model)) is not None and any(layer.has_range for layer in layers):
        raise ValueError(
            "`load_best_model_at_end` loses the ranges of `--quant_scheme` here: sentence-transformers loads a "
            "checkpoint through a plain model. Make the trainer compress with `compress(trainer, recipe)` (for "
            "SetFit: `compress(trainer.st_trainer, recipe)`) in place of bare callbacks, choose a scheme without "
            "ranges such as `int8-dynamic`, or switch the option off."
        )


def moved(seen: Tensor, past: Tensor, *, warming_up: bool) -> Tensor:
    """Return ranges (layers, 2) after a step with the extremes `seen`; what was not seen leaves its range alone."""
    if warming_up:
        past = _within_reach(past, seen)
    average = torch.where(past.isinf(), seen, torch.lerp(_within_reach(seen, past), past, RANGE_MOMENTUM))
    return torch.where(seen.isinf(), past, average)


def unseen(layer: CompressedLayer) -> Tensor:
    """Return the range of a layer that has seen nothing.

    A compiled forward always finds a tensor here, a different one in each layer. None in the first micro-batch of a
    step, or one tensor for all layers, would double the graphs of the compiler.
    """
    # Not from a list: copying it to a GPU would wait until the GPU has computed all that is queued.
    nothing = torch.full_like(layer.input_range, math.inf)
    nothing[1].neg_()
    return nothing


def negated_low(ranges: Tensor) -> Tensor:
    """Return ranges (layers, 2) with the lower ends negated, so that the wider range has the greater numbers."""
    return torch.stack([-ranges[:, 0], ranges[:, 1]], dim=1)


@torch.no_grad()
def observe(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Set the input ranges of the layers of `model` to the mean of the extremes of `batches`, without training.

    Each batch counts the same, unlike in the moving average of a training, whose past loses its weight. Layers that
    have no range, or see nothing, are left alone.

    Args:
        model: in evaluation mode, with layers that are still switched off.
        batches: inputs of the model.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.layers import SCHEMES, quantize_layers
        >>> from hf_compress.quantize.ranges import observe
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes)).eval()
        >>> layers = [layer for layer in quantize_layers(model, SCHEMES["int8"]) if layer.has_range]
        >>> observe(model, [{"input_ids": torch.tensor([[1, 2, 3]])}])
        >>> bool(layers[0].input_range.isfinite().all())
        True
    """
    layers = [layer for layer in compressed_layers(model).values() if layer.has_range]
    if not layers:
        return
    seen, modes = [], [layer.training for layer in layers]
    for layer in layers:
        layer.observing = layer.training = True  # Layers observe in training only; dropout is in none of them.
    for batch in batches:
        for layer in layers:
            layer.step_range = unseen(layer)
        model(**batch)
        seen.append(_extremes(layers))
    for layer, bounds, mode in zip(layers, torch.stack(seen).mean(0), modes, strict=True):
        layer.observing, layer.training, layer.step_range = False, mode, None
        layer.input_range.copy_(bounds)


def _extremes(layers: Sequence[CompressedLayer]) -> Tensor:
    return torch.stack([unseen(layer) if layer.step_range is None else layer.step_range for layer in layers])


def _within_reach(ranges: Tensor, of: Tensor) -> Tensor:
    """Return `ranges`, clipped to `RANGE_REACH` times the largest magnitude in the ranges `of`, unless that is 0."""
    limit = RANGE_REACH * of.abs().amax(dim=1, keepdim=True)
    limit = torch.where(limit > 0, limit, math.inf)
    return torch.where(ranges.isinf(), ranges, ranges.clamp(-limit, limit))
