"""Layers of a model that are passed over: the residual stream goes through them unchanged."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.models.stacks import NoLayers, stack_of


class Skipped:
    """The class of a layer that is passed over, in front of its own class.

    Parameters, hooks and names stay, so that checkpoints and optimizers know the layer as before. While an adapter of
    the model is disabled the layer computes, because the base model has all its layers: it may be the teacher.
    """

    beside: int | None  # How many values the layer returns behind its hidden states, in a tuple; None for no tuple.
    adapter: tuple[BaseTunerLayer, ...]  # Any layer of the adapter; a tuple, or it would become a submodule.

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the hidden states that came in, in the form in which the layer returns its own."""
        if any(one.disable_adapters for one in self.adapter):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        return hidden if self.beside is None else (hidden, *[None] * self.beside)


def skip(layer: nn.Module, beside: int | None, adapter: tuple[BaseTunerLayer, ...] = ()) -> None:
    """Let `layer` be passed over, in place.

    Args:
        beside: how many values it returns behind its hidden states, in a tuple; None if it returns no tuple.
        adapter: any layer of the model's adapter. While that is disabled, `layer` computes.

    Example:
        >>> import torch
        >>> from hf_compress.models.skipping import skip, unskip
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> skip(layer, beside=None)
        >>> layer(torch.ones(2))
        tensor([1., 1.])
        >>> unskip(layer)
        >>> type(layer).__name__
        'Linear'
    """
    if not isinstance(layer, Skipped):
        layer.__class__ = _skipped(cast(Hashable, type(layer)))
    vars(layer).update(beside=beside, adapter=adapter)


def unskip(layer: nn.Module) -> None:
    """Let `layer` compute again, in place."""
    if isinstance(layer, Skipped):
        layer.__class__ = type(layer).__mro__[2]
        for name in ("beside", "adapter"):
            vars(layer).pop(name)


@contextmanager
def skipping(layer: nn.Module, beside: int | None) -> Iterator[None]:
    """A context in which `layer` is passed over."""
    skip(layer, beside)
    try:
        yield
    finally:
        unskip(layer)


def skipped_layers(model: PreTrainedModel) -> list[int]:
    """Return the numbers of the layers of `model` that are passed over, counted from 0."""
    try:
        _, layers = stack_of(model)
    except NoLayers:
        return []
    return [number for number, layer in enumerate(layers) if isinstance(layer, Skipped)]


@cache
def _skipped(layer_class: type[nn.Module]) -> type[nn.Module]:
    # Under its old name, by which Transformers and others know the layers of a model.
    return type(layer_class.__name__, (Skipped, layer_class), {"__module__": layer_class.__module__})
