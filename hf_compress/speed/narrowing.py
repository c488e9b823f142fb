"""An ONNX graph with fewer neurons and heads, made from the whole graph: as fast as a pruned one, but not trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_compress.models.groups import Groups, Part

ROOT = "model."  # What the exporter puts in front of the names of a model's layers.


def narrow(graph: Any, blocks: Sequence[Groups], kept: Mapping[str, int]) -> None:
    """Keep only the first groups of `blocks` in an ONNX graph, in place.

    Weights, their scales and biases lose rows or columns. Shapes that count heads follow.

    Args:
        graph: an `onnx_ir` model, as `export.program_of` makes it, with quantized layers in all blocks.
        blocks: of the model that the graph was made of.
        kept: how many groups of a block stay, by its name; all where there is none.

    Raises:
        ValueError: the graph lacks the integers of a layer.

    Example:
        >>> from hf_compress.speed.narrowing import narrow
        >>> narrow(onnx_ir.load("graph.onnx"), blocks, {"bert.encoder.layer.0": 768})  # doctest: +SKIP
    """
    chosen: dict[tuple[str, int], Tensor] = {}
    for block in blocks:
        stay = torch.arange(block.count + 1) < kept.get(block.name, block.count)
        stay[-1] = True  # What belongs to no group.
        for part in block.parts:
            along = stay[part.owners()]
            for name, axis in _places(part):
                chosen[name, axis] = chosen.get((name, axis), torch.ones_like(along)) & along
    chosen = {place: along for place, along in chosen.items() if not bool(along.all())}
    for (name, axis), along in chosen.items():
        _slice(graph, name, axis, along.numpy())
    _count_heads(graph, blocks, kept)


def _places(part: Part) -> list[tuple[str, int]]:
    """Return the names of the tensors that belong to a side of a layer, with the axis along that side."""
    layer = f"{ROOT}{part.target.name}."
    if part.side == "inputs":
        return [(f"{layer}weight", 0)]  # Graphs store (inputs, outputs).
    return [(f"{layer}weight", 1), (f"{layer}weight_scale", 0), (f"{layer}bias", 0)]


def _slice(graph: Any, name: str, axis: int, along: np.ndarray) -> None:
    import onnx_ir as ir

    value = graph.graph.initializers.get(name)
    if value is None and name.endswith(".bias"):
        return
    if value is None or value.shape[axis] != len(along):
        raise ValueError(
            f"the graph stores no integers for {name.removeprefix(ROOT).rpartition('.')[0]}, or in another shape. "
            "Leave the layer out of `--quant_exclude`, or exclude it from pruning (`--prune_exclude`)."
        )
    tensor = ir.tensor(np.compress(along, value.const_value.numpy(), axis=axis), name=name)
    value.const_value, value.shape = tensor, tensor.shape


def _count_heads(graph: Any, blocks: Sequence[Groups], kept: Mapping[str, int]) -> None:
    """Let shapes that count heads, or the values of all heads, follow."""
    sizes: dict[int, int] = {}
    for block in blocks:
        number = kept.get(block.name, block.count)
        if block.kind == "heads" and number < block.count:
            for part in block.parts:
                sizes[block.count] = number
                sizes[block.count * part.size] = number * part.size
    for node in graph.graph if sizes else ():
        if node.op_type != "Reshape":
            continue
        producer = node.inputs[1].producer()
        for value in [node.inputs[1]] if producer is None else list(producer.inputs):
            _change(value, sizes)


def _change(value: Any, sizes: Mapping[int, int]) -> None:
    import onnx_ir as ir

    if value is None or value.const_value is None or value.dtype != ir.DataType.INT64:
        return
    numbers = value.const_value.numpy()
    changed = np.array([sizes.get(int(number), int(number)) for number in numbers.reshape(-1)], np.int64)
    if not np.array_equal(changed, numbers.reshape(-1)):
        value.const_value = ir.tensor(changed.reshape(numbers.shape), name=value.name)
