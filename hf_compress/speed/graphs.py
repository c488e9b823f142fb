"""The graph of a model's architecture, for measuring its latency: random weights, and the trained number format."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export import program_of
from hf_compress.layers.attention import round_attention, trained_attention
from hf_compress.layers.turning import compressed_layers, quantize_layers, rounded
from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import GroupKind
from hf_compress.models.heads import find_outputs
from hf_compress.models.targets import quantizable
from hf_compress.quantize import QuantizationArguments
from hf_compress.speed.narrowing import narrow

RANGE = (-4.0, 4.0)  # Of all inputs. It does not change the time.


class Graphs:
    """The ONNX graphs of one architecture with different numbers of neurons and heads.

    The model is exported once. Graphs with fewer groups are made from that graph.

    Args:
        model_class: of the model.
        config: of the model with all its groups.
        quantization: the number format of the graph. It must be enabled.
        folder: where graphs are written.
        kinds: of the groups that may go.
        exclude: regular expressions; a block with a layer whose name contains a match keeps all its groups.

    Raises:
        ValueError: the model has no such groups.

    Example:
        >>> from hf_compress import QuantizationArguments
        >>> from hf_compress.speed.graphs import Graphs
        >>> int8 = QuantizationArguments(quant_scheme="int8")
        >>> graphs = Graphs(type(model), model.config, int8, folder, ["neurons"])  # doctest: +SKIP
        >>> graphs.write({"bert.encoder.layer.0": 768})  # doctest: +SKIP
        PosixPath('/tmp/graph-1.onnx')
    """

    def __init__(
        self,
        model_class: type[PreTrainedModel],
        config: PreTrainedConfig,
        quantization: QuantizationArguments,
        folder: Path,
        kinds: Collection[GroupKind],
        exclude: Sequence[str] = (),
    ) -> None:
        model, packing = example_model(model_class, config, quantization)
        with torch.device("meta"):  # The layers of the other one become those of a graph, which have no weights.
            self.model = model_class(model.config)
        self.blocks, self.config = find_groups(self.model, kinds, exclude), model.config
        self.folder, self._written = folder, 0
        self.whole = folder / "graph.onnx"
        program_of(model, packing).save(self.whole)

    def batch(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return random inputs without padding."""
        batch = find_outputs(self.model).example_batch(self.model, rows, length)
        return {name: torch.ones_like(value) if name.endswith("mask") else value for name, value in batch.items()}

    def write(self, kept: Mapping[str, int]) -> Path:
        """Write the graph in which blocks keep only so many groups, by their names, and return its path."""
        import onnx_ir as ir

        graph = ir.load(self.whole)
        narrow(graph, self.blocks, kept)
        self._written += 1
        path = self.folder / f"graph-{self._written}.onnx"
        ir.save(graph, path)
        return path


def example_model(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, quantization: QuantizationArguments
) -> tuple[PreTrainedModel, CompressionConfig]:
    """Return a model with random weights that computes on the grids of `quantization`, and what describes its layers.

    Example:
        >>> from hf_compress import QuantizationArguments
        >>> from hf_compress.speed.graphs import example_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> int8 = QuantizationArguments(quant_scheme="int8")
        >>> model, packing = example_model(BertForSequenceClassification, BertConfig(vocab_size=9, **sizes), int8)
        >>> packing.quantized[-1]
        'bert.pooler.dense'
    """
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cast(
            PreTrainedModel, model_class._from_config(config, attn_implementation="eager", dtype=torch.float32)
        ).eval()
        for weight in model.parameters():
            if weight.ndim == 1:  # The exporter stores equal tensors once, but some of them will lose values.
                torch.nn.init.normal_(weight)
    scheme, exclude = quantization.scheme, quantization.quant_exclude
    quantize_layers(model, scheme, exclude, quantization.quant_bits)
    round_attention(model, scheme, exclude)
    for layer in compressed_layers(model).values():
        layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor(RANGE))
    with torch.no_grad():
        model(**find_outputs(model).example_batch(model))
    stored = rounded(model, quantizable(model, exclude))
    packing = CompressionConfig(
        scheme=asdict(scheme.grids),
        quantized=[target.name for target in stored],
        attention=trained_attention(model) if scheme.attention else [],
    )
    return model, packing
