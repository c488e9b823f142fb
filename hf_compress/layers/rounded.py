"""The base of compressed layers, which compute with masked weights, or with numbers on grids."""

from collections.abc import Callable, Hashable
from typing import Any, Self, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hf_compress.layers.affine import (
    Bounds,
    bounds_of_ends,
    bounds_of_range,
    reads_numbers,
    round_affine,
)
from hf_compress.layers.grids import Grid, fake_quantize_symmetric, symmetric_scale, to_integers
from hf_compress.layers.shared_inputs import Siblings, wider
from hf_compress.layers.steps import fake_quantize_steps, to_steps
from hf_compress.models.layer_kinds import LAYER_KINDS, LayerKind, as_rows, from_rows

RANGE = "input_range"
# Buffers that stay float32 when the model is cast.
EXACT = (RANGE, "weight_scale", "weight_step")


class CompressedLayer(nn.Module):
    """The base of compressed layers: their grids and switches, the observed range of their input, and a mask.

    Existing layers are turned into this class in place (`quantize_layers`), so parameters, hooks and names stay. Only
    the buffer `input_range` (2,) is added to the state dict, for layers whose input has a static range: the moving
    average of the smallest and the largest value, infinite and crossed before the first observation. It stays float32
    under `model.to(dtype)`: in half precision it would give other integers.

    Beside a PEFT adapter the layer carries a mask, because every forward computes the merged weight again, which
    therefore cannot be set to zero. While the adapter is disabled the layer computes as the plain layer it was made
    from. Layers that are only masked have no grids.

    A layer loaded from a compressed file has its weight on the grid already. It rounds as soon as it was trained or
    its weight was changed, so saving stores exactly the weights that it computes with.
    """

    layer_kind: LayerKind  # Of all layers of the class.
    weight: Tensor
    weight_grid: Grid | None
    input_grid: Grid | None
    input_range: Tensor
    step_range: Tensor | None  # Extremes since the last optimizer step. Not a buffer: DDP would broadcast rank 0's.
    observing: bool
    quantizing: bool
    # The dtype in which the layer's own forward rounded the weight: the weight's, unless FSDP casts it for computing.
    # None if it never did, or if other code read the weight.
    rounded: torch.dtype | None
    mask: Tensor | None = None  # True where a weight is kept. Not a buffer: DDP would broadcast it in every step.
    adapter: tuple[LoraLayer, ...] = ()  # This layer's own or any other; a tuple, or it would become a submodule.
    siblings: Siblings  # The same for all layers of a model.
    on_grid: int | None = None  # The version of a loaded weight that is on its grid; None if it may not be.
    rounding_once: bool = False  # Whether the weight stays as it is for several forwards: gradients accumulate.
    known_weight: tuple[Tensor, int, Tensor] | None = None  # A weight, its version, and the weight rounded.
    known_bounds: tuple[Tensor, int, Bounds] | None = None  # A range, its version, and the bounds computed from it.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: buffer for name in EXACT if (buffer := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        self.known_weight = self.known_bounds = None
        for name, buffer in exact.items():
            moved = cast(Tensor, self._buffers[name])
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        if self.on_grid is not None:
            self.on_grid = version_of(self.weight)  # The same numbers, elsewhere or in another dtype.
        return self

    def __getstate__(self) -> dict[str, Any]:
        on_grid = self.on_grid if self.is_on_grid() else None
        return self.__dict__ | {"on_grid": on_grid, "known_weight": None, "known_bounds": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.on_grid is not None:
            self.on_grid = version_of(self.weight)  # Of a copy.

    def is_on_grid(self) -> bool:
        """Return whether the weight is the loaded one, which needs no rounding."""
        if self.on_grid is None or torch.compiler.is_compiling():
            return False
        if (self.training and torch.is_grad_enabled()) or version_of(self.weight) != self.on_grid:
            self.on_grid = None
        return self.on_grid is not None

    @property
    def plain(self) -> bool:
        """Whether mask and grids are off, because the adapter is disabled."""
        return any(adapter.disable_adapters for adapter in self.adapter)

    def masked(self, weight: Tensor) -> Tensor:
        """Return `weight`, this layer's or the merged one, with zeros where it is pruned."""
        if self.mask is None or self.plain:
            return weight
        # Unlike a product this leaves no negative zeros and no NaN.
        return torch.where(self.mask.to(weight.device), weight, 0.0)

    @property
    def has_range(self) -> bool:
        """Whether the input has a static range."""
        return self.input_grid is not None and self.input_grid.per == "tensor"

    @property
    def ready(self) -> bool:
        """Whether the layer was trained on its grids: rounding is on and the range, if any, was observed."""
        seen = not (self.has_range and bool(self.input_range.isinf().any()))
        return self.quantizing and seen and (self.step is None or bool(self.step.all()))

    @property
    def step(self) -> Tensor | None:
        """The fixed step of each row, of shape (rows, 1), in float32; None if scales follow the largest weights."""
        return self._buffers.get("weight_step")

    def keep_step(self, step: Tensor | None) -> None:
        """Round the weight to multiples of `step` from now on, or to the scales of its rows if that is None."""
        self._buffers.pop("weight_step", None)
        if step is not None:
            # A weight that is left on the disk has no device until it is used.
            device = step.device if self.weight.is_meta else self.weight.device
            self.register_buffer("weight_step", step.detach().float().to(device, copy=True))

    def on_its_grid(self, rows: Tensor, known: Tensor | None = None) -> Tensor:
        """Return `rows` of the weight rounded, with a straight-through gradient; `known` is the result, if known."""
        if self.step is not None:
            return fake_quantize_steps(rows, self.step.to(rows.device), known)
        return fake_quantize_symmetric(rows, cast(Grid, self.weight_grid), known)

    def round_once(self, once: bool) -> None:
        """Round the weight once from now on, until this is called again; or in every forward.

        Call it before the weight changes: not all optimizers count their changes. The rounded weight stays in memory
        until then.
        """
        self.rounding_once, self.known_weight = once, None

    def _rounded_rows(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return the `rows` of `weight` rounded, with a gradient of this call's own."""
        if torch.compiler.is_compiling() or not self.rounding_once:
            return self.on_its_grid(rows)
        # A weight merged with an adapter is a new tensor in each forward.
        if not isinstance(weight, nn.Parameter) or weight.is_inference():
            return self.on_its_grid(rows)
        if (
            self.known_weight is not None
            and self.known_weight[0] is weight
            and self.known_weight[1] == version_of(weight)
        ):
            return self.on_its_grid(rows, self.known_weight[2])
        rounded = self.on_its_grid(rows)
        self.known_weight = weight, version_of(weight), rounded.detach()
        return rounded

    def rounded_weight(self) -> Tensor:
        """Return the weight, on its grid once rounding has begun."""
        weight = self.masked(self.weight)
        if not self.quantizing or self.plain or self.weight_grid is None or self.is_on_grid():
            return weight
        self.rounded, layer = weight.dtype, self.layer_kind
        rows = self._rounded_rows(as_rows(weight, layer), weight)
        # Contiguous like the stored weight: another layout may change the last bit of the product.
        return from_rows(rows, layer, weight.shape).contiguous()

    def rounded_input(self, values: Tensor) -> Tensor:
        """Return the input, observed while ranges move, on its grid once rounding has begun."""
        if self.input_grid is None or self.plain:
            return values
        if self.has_range and self.training and self.observing:
            self._observe(values)
        if not self.quantizing:
            return values
        return self.siblings.rounded(values, self._grid_of_input, lambda known: self._round_input(values, known))

    def _grid_of_input(self) -> Hashable:
        """Return a key that differs for different grids of the input."""
        return self.input_grid, *(self.input_range.tolist() if self.has_range else ())

    def _round_input(self, values: Tensor, known: Tensor | None) -> Tensor:
        grid = cast(Grid, self.input_grid)
        if not self.has_range:
            return fake_quantize_symmetric(values, grid, known)
        if not reads_numbers(values):
            return round_affine(values, self._bounds(grid), known)
        low, high = self.input_range.tolist()
        bounds, outside = bounds_of_range(low, high, grid), None
        if torch.is_grad_enabled() and values.requires_grad:
            outside = self.siblings.extremes(values).outside(bounds.low, bounds.high)
        return round_affine(values, bounds, known, outside, alone=True)

    def _bounds(self, grid: Grid) -> Bounds:
        """Return the bounds of the input as tensors, computed once for every change of its range.

        They are two dozen tiny operations, which a GPU spends more time on than on the values.
        """
        seen = self.input_range
        if not _remembers(seen):
            return bounds_of_ends(seen, grid)
        if self.known_bounds is None or self.known_bounds[0] is not seen or self.known_bounds[1] != seen._version:
            self.known_bounds = seen, seen._version, bounds_of_ends(seen, grid)
        return self.known_bounds[2]

    @torch.no_grad()
    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Return the layer that PEFT puts here when it unloads its adapters, with the mask applied to the weight.

        Args:
            merge: False to get back the plain layer that the adapter was added to.
        """
        if merge and self.mask is not None:
            self.weight.copy_(self.masked(self.weight))
        if not merge or self.weight_grid is None:
            cast(nn.Module, self).__class__ = plain_class(type(self))
        self.mask, self.adapter = None, ()
        return self

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        seen = self.siblings.extremes(values).whole
        if self.step_range is not None:
            seen = wider(self.step_range, seen)
        self.step_range = seen


def integers_of(rows: Tensor, grid: Grid, step: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return int8 integers of the weight `rows` and their float32 scales: fixed steps, or those of `grid`."""
    if step is not None:
        return to_steps(rows, step), step
    scale = symmetric_scale(rows, grid)
    return to_integers(rows, scale, grid).to(torch.int8), scale


def step_of(module: nn.Module) -> Tensor | None:
    """Return the fixed steps of the weight of `module`; None if it has none."""
    return module.step if isinstance(module, CompressedLayer) else None


def version_of(weight: Tensor) -> int:
    """Return how often `weight` was changed in place; -1 for a tensor of inference mode, which does not count."""
    return -1 if weight.is_inference() else weight._version


def _remembers(seen: Tensor) -> bool:
    """Return whether what is computed from `seen` may be used in later forwards: a version tells when it changed.

    A recorded CUDA graph computes everything again from what it recorded, and does not run this code.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or seen.is_inference():
        return False
    return not (seen.is_cuda and torch.cuda.is_current_stream_capturing())


def plain_class(layer_class: type[CompressedLayer]) -> type[nn.Module]:
    """Return the class of the layer that was turned into `layer_class`."""
    first = cast(type[nn.Module], layer_class.__bases__[0])
    if not issubclass(first, CompressedLayer):
        return first  # A class of Transformers, whose own `forward` stays.
    return next(known for known, layer_kind in LAYER_KINDS.items() if layer_kind == layer_class.layer_kind)
