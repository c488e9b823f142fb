"""Forward hooks that keep what chosen layers of a model compute, and hand it over among the model's outputs."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils import ModelOutput

from hf_compress.models.heads import bare
from hf_compress.models.stacks import NoLayers, attention_of, layers_config, layers_of, query_key_value
from hf_compress.models.targets import transformer

# What is kept: the part (`layer_losses.PARTS`) and the number of the layer.
Tap = tuple[str, int]
CAPTURED = "captured"


class Capture:
    """Keeps what the layers of one model compute, while it is on, and adds it to the model's outputs as `captured`.

    Only what `taps` name is kept. Between `install` and `remove`, the model has a hook on each module concerned. What
    is kept leaves with the outputs, so nothing stale stays, and wrappers such as DDP see it as an output. Evaluation
    and the recomputation of gradient checkpointing keep nothing, because the capture is off then.

    Args:
        taps: what to keep.
        change: a function that turns the values, in the order of `taps`, into those for the outputs.
    """

    def __init__(self, taps: Sequence[Tap], change: Callable[[list[Any]], list[Any]] = list) -> None:
        self.taps, self.change = list(taps), change
        self.on = False
        self._found: dict[Tap, Any] = {}  # Queries, keys and values are under "relations.0" to "relations.2".
        self._calls: dict[int, int] = {}
        self._widths: dict[Tap, tuple[int, int, int]] = {}
        self._handles: list[RemovableHandle] = []
        self._class: type[ModelOutput] | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Keep what the model computes inside the context."""
        self.on = True
        try:
            yield
        finally:
            self.on = False
            self._found.clear()
            self._calls.clear()

    def install(self, model: nn.Module) -> None:
        """Put the hooks on `model`, which may have a PEFT adapter, or be a model of sentence-transformers.

        Raises:
            NoLayers: the model has no known layers, or queries, keys and values of unknown names.
        """
        inner = bare(transformer(bare(model)))
        layers = layers_of(inner)
        for number, layer in enumerate(layers):
            numbers = [index for index, other in enumerate(layers) if other is layer]
            wanted = {part for part, index in self.taps if index in numbers}
            if number > numbers[0] or not wanted:
                continue
            self._on_layer(layer, numbers)
            if "attention" in wanted:
                self._on_attention(layer, numbers)
            if "relations" in wanted:
                self._on_relations(layer, numbers, layers_config(inner))
        self._handles.append(model.register_forward_hook(self._hand_over))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def installed(self) -> bool:
        """Whether the hooks are on a model."""
        return bool(self._handles)

    def _on_layer(self, layer: nn.Module, numbers: list[int]) -> None:
        """Keep a layer's input and output. Layers that share weights are one module, called several times."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.on:
                self._calls[numbers[0]] = self._calls.get(numbers[0], -1) + 1
                if self._calls[numbers[0]] == 0 and ("embeddings", numbers[0]) in self.taps:
                    self._found["embeddings", numbers[0]] = args[0] if args else kwargs["hidden_states"]

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.on:
                self._keep("hidden", numbers, output[0] if isinstance(output, tuple) else output)

        self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(layer.register_forward_hook(after))

    def _on_attention(self, layer: nn.Module, numbers: list[int]) -> None:
        attention = attention_of(layer)
        if attention is None:
            raise NoLayers(f"the attention of {type(layer).__name__} has queries and keys of unknown names")
        names = list(inspect.signature(attention.forward).parameters)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Some families return their maps only if asked to. Asked here, no other layer keeps its own.
            if not self.on:
                return None
            place = names.index("output_attentions")
            if len(args) > place:
                return (*args[:place], True, *args[place + 1 :]), kwargs
            return args, {**kwargs, "output_attentions": True}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.on:
                self._keep("attention", numbers, output[1] if isinstance(output, tuple) and len(output) > 1 else None)

        if "output_attentions" in names:
            self._handles.append(attention.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(attention.register_forward_hook(after))

    def _on_relations(self, layer: nn.Module, numbers: list[int], config: Any) -> None:
        found = query_key_value(layer, config)
        if found is None:
            raise NoLayers(f"the attention of {type(layer).__name__} has queries and keys of unknown names")
        self._widths.update({("relations", number): found.widths for number in numbers})
        for place, module in enumerate(found.modules):

            def after(module: nn.Module, args: tuple[Any, ...], output: Tensor, place: int = place) -> None:
                if self.on:
                    self._keep(f"relations.{place}", numbers, output)

            self._handles.append(module.register_forward_hook(after))

    def _keep(self, part: str, numbers: list[int], value: Any) -> None:
        """Keep the first value that a part of a layer gives in the present call of the layer, if a tap names it.

        DeBERTa's queries and keys are later asked about positions.
        """
        number = numbers[self._calls[numbers[0]]]
        if (part.partition(".")[0], number) in self.taps:
            self._found.setdefault((part, number), value)

    def _value(self, tap: Tap) -> Any:
        """Return what was kept for a tap: a tensor, or queries, keys and values; None if it was not computed."""
        if tap[0] != "relations":
            return self._found.get(tap)
        found = [self._found.get((f"relations.{place}", tap[1])) for place in range(3)]
        if found[0] is not None and found[1] is None:
            return tuple(found[0].split(self._widths[tap], dim=-1))
        return None if any(part is None for part in found) else tuple(found)

    def _hand_over(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the model's outputs with what was kept."""
        if not self.on or not isinstance(output, Mapping) or not self._found:
            return None
        kept = tuple(self.change([self._value(tap) for tap in self.taps]))
        self._found.clear()
        self._calls.clear()
        if not isinstance(output, ModelOutput):
            return {**output, CAPTURED: kept}  # Of sentence-transformers, whose outputs are a plain dictionary.
        # Found in the first forward, before anything is compiled. The forward that TRL's trainers put on their models
        # returns outputs of one class in training and of another in evaluation.
        if self._class is None or self._class.__base__ is not type(output):
            self._class = _with_field(cast(Any, type(output)))
        return self._class(**output, **{CAPTURED: kept})


@functools.cache
def _with_field(outputs: type[ModelOutput]) -> type[ModelOutput]:
    """Return the class of a model's outputs with a field for what was captured.

    A class of its own, because torch takes outputs apart and builds them again by their fields.
    """
    fields = {"__annotations__": {CAPTURED: Any}, CAPTURED: None, "__module__": __name__}
    return dataclasses.dataclass(type(outputs.__name__, (outputs,), fields))
