"""An ONNX graph with fewer neurons and heads, made from the whole graph: as fast as a pruned one, but not trained."""

from collections.abc import Callable, Mapping, Sequence
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
    """Let shapes that count heads, or the values of all heads, follow, between queries, keys, values and their reader.

    Elsewhere the same numbers mean something else: images and the residual stream are as wide as all heads together.
    """
    for block in blocks:
        number = kept.get(block.name, block.count)
        if block.kind != "heads" or number == block.count:
            continue
        values = {block.count * part.size: number * part.size for part in block.parts}
        for node in _inside(graph, block):
            if node.op_type == "Reshape":
                _reshape(graph, node, values | {block.count: number}, values)


def _inside(graph: Any, block: Groups) -> list[Any]:
    """Return the nodes on the ways from the layers that compute the groups of a block to the one that reads them."""
    computing = [_weight(graph, part) for part in block.parts if part.side == "outputs"]
    behind = _reached(computing, lambda node: [use.node for value in node.outputs for use in value.uses()])
    before = _reached(
        [_weight(graph, block.consumer)],
        lambda node: [producer for value in node.inputs if value and (producer := value.producer()) is not None],
    )
    return [node for node in graph.graph if node in behind and node in before]


def _weight(graph: Any, part: Part) -> Any:
    """Return the node in which a layer takes part: where its weight is multiplied."""
    value = graph.graph.initializers[f"{ROOT}{part.target.name}.weight"]
    while True:
        (node,) = {use.node for use in value.uses()}
        if node.op_type not in ("DequantizeLinear", "Cast", "Transpose", "Mul"):
            return node
        (value,) = node.outputs


def _reached(nodes: Sequence[Any], following: Callable[[Any], Sequence[Any]]) -> set[Any]:
    found, waiting = set(nodes), list(nodes)
    while waiting:
        more = [node for node in following(waiting.pop()) if node not in found]
        found.update(more)
        waiting += more
    return found


def _reshape(graph: Any, node: Any, sizes: Mapping[int, int], last: Mapping[int, int]) -> None:
    """Give a `Reshape` a shape of its own with other numbers.

    Args:
        sizes: the new numbers, by the old ones.
        last: those that the last number may be: one head may be as wide as there are heads.
    """
    import onnx_ir as ir

    shape = node.inputs[1]
    joined = shape.producer()
    pieces = [shape] if joined is None else list(joined.inputs)
    changed = list(pieces)
    for place, value in enumerate(pieces):
        if value is None or value.const_value is None or value.dtype != ir.DataType.INT64:
            continue
        numbers = value.const_value.numpy()
        flat = [sizes.get(int(number), int(number)) for number in numbers.reshape(-1)]
        if place == len(pieces) - 1 and flat:
            flat[-1] = last.get(int(numbers.reshape(-1)[-1]), int(numbers.reshape(-1)[-1]))
        if flat != numbers.reshape(-1).tolist():
            name = f"{node.name}.shape.{place}"
            tensor = ir.tensor(np.array(flat).reshape(numbers.shape), name=name)
            changed[place] = ir.Value(name=name, const_value=tensor)
            changed[place].dtype, changed[place].shape = ir.DataType.INT64, ir.Shape(numbers.shape)
            graph.graph.register_initializer(changed[place])
    if changed == pieces:
        return
    if joined is None:
        node.replace_input_with(1, changed[0])
        return
    own = ir.Node(joined.domain, joined.op_type, changed, list(joined.attributes.values()), name=f"{node.name}.shape")
    own.outputs[0].name = f"{node.name}.shape.joined"
    graph.graph.insert_before(node, own)
    node.replace_input_with(1, own.outputs[0])
