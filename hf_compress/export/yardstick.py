"""The yardstick of parity: how far rounding alone moves the logits of one model.

A runtime adds in another order, and its exponentials differ in the last digits. Where values are rounded to integers,
a value near the middle then falls to the neighbouring integer, and every later layer rounds that difference again. How
far this moves the logits depends on the model: on its depth, its ranges and how sure it is. So it is measured, on the
model itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_compress.layers.affine import affine_parameters
from hf_compress.layers.attention import Operand
from hf_compress.layers.rounded import CompressedLayer

# Relative error of every value between layers: 64 units in the last place of float32.
RELATIVE = 2.0**-17
# Distance, in steps of the grid, within which a value may fall to the neighbouring integer: one in 512 then does.
STRAYING = 1 / 256
STEPS = 127  # Of 8 bits, on either side of zero.


@contextmanager
def rounded_otherwise(model: nn.Module, seed: int) -> Iterator[None]:
    """Let `model` round as some other runtime might, within the context.

    Every layer receives slightly different values: by `RELATIVE`, and, if it rounds them by a range that the file
    holds, by `STRAYING` of a step. A layer with integer weights whose range the file does not hold may get its input
    rounded by the runtime as it likes: by up to half a step of the largest magnitude of the row.

    Args:
        model: in evaluation mode, in float32 on the CPU.
        seed: the same seed gives the same values.
    """
    draw = torch.Generator().manual_seed(seed)
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [leaf.register_forward_pre_hook(partial(_otherwise, draw), with_kwargs=True) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _otherwise(draw: torch.Generator, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the inputs of a layer as another runtime might compute them."""

    def moved(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        relative = RELATIVE * torch.randn(value.shape, generator=draw, dtype=value.dtype)
        even = 2 * torch.rand(value.shape, generator=draw, dtype=value.dtype) - 1
        return value * (1 + relative) + _freedom(layer, value) * even

    return tuple(moved(value) for value in args), {name: moved(value) for name, value in kwargs.items()}


def _freedom(layer: nn.Module, value: Tensor) -> Tensor | float:
    """Return how far the input of a layer may move before it is rounded."""
    if not isinstance(layer, CompressedLayer):
        return 0.0
    if isinstance(layer, Operand):
        return STRAYING * layer.affine(value.device)[0]
    if layer.has_range:
        assert layer.input_grid is not None
        return STRAYING * affine_parameters(layer.input_range[0], layer.input_range[1], layer.input_grid)[0]
    if layer.weight_grid is not None:
        return value.abs().amax(-1, keepdim=True) / STEPS / 2
    return 0.0
