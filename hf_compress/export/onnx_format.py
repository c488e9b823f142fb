"""A checkpoint as an ONNX graph with the integers and ranges that were trained, checked against the model."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export.onnx_nodes import NARROW, to_integer_layers
from hf_compress.export.parity import Parity, check_parity, input_names, load, random_batches
from hf_compress.export.runtimes import in_onnx_runtime
from hf_compress.extras import extra
from hf_compress.models.heads import Head, find_head

# Where optimum and transformers.js look for a quantized graph.
PATH = Path("onnx", "model_quantized.onnx")
# The first with integers of four bits in groups; what came later these graphs do not need, and older runtimes lack.
OPSET = 21


def export_onnx(folder: str | Path, batches: Iterable[Mapping[str, Any]] | None = None) -> Parity:
    """How far the graph written to `folder`/onnx/model_quantized.onnx is from the checkpoint in `folder`.

    The graph computes with the integers of the file and the ranges that were trained: weights of linear layers and
    embeddings are integers in it, one scale a row (or group), with `DequantizeLinear` behind; static ranges of inputs
    are pairs of `QuantizeLinear` and `DequantizeLinear`, which runtimes turn into integer kernels. Ranges by token are
    computed in the graph, with `MatMulInteger`. Batch and length are dynamic. Generating models are written without a
    cache, sequence-to-sequence ones as one graph that takes `decoder_input_ids`.

    Args:
        folder: what `save_compressed` or `save_pretrained` wrote.
        batches: inputs of the model, as its collator makes them, to check parity on; by default random tokens. Give
            real ones: a trained model is only sure of itself on what it was trained for.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        ValueError: the folder holds no known model with a known head, or the graph computes something else than the
            model. Nothing is left of the file then.
    """
    require_onnx()
    folder = Path(folder)
    path = folder / PATH
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(exist_ok=True)
    try:
        write_graph(folder, partial)
        reference = load(folder)
        runtime = in_onnx_runtime(partial, reference.config)
        parity = check_parity(reference, runtime, batches or random_batches(reference), what="the ONNX graph")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return parity


def write_graph(folder: Path, path: Path) -> None:
    """Write the graph of the checkpoint in `folder` to the file `path`, without comparing it."""
    model = load(folder)
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, CompressionConfig) and config.quantized:
        to_integer_layers(model, config)
    _write(model, find_head(model), path)


def require_onnx() -> None:
    """Check that the packages that write and run ONNX graphs are installed.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    with extra("onnx", "An ONNX graph"):
        import ml_dtypes  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


class _Traced(nn.Module):
    """A model with positional inputs and nothing but logits, as the exporter wants it."""

    def __init__(self, model: PreTrainedModel, head: Head, names: list[str]) -> None:
        super().__init__()
        self.model, self.head, self.names = model, head, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.head.logits(self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True))


def _write(model: PreTrainedModel, head: Head, path: Path) -> None:
    names = input_names(model)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    example = next(random_batches(model))
    axes = ("batch", "choices", "sequence") if head.kind == "choice" else ("batch", "sequence")
    shapes = tuple(
        {
            axis: f"decoder_{called}" if name.startswith("decoder") and called == "sequence" else called
            for axis, called in enumerate(axes)
        }
        for name in names
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Traced(model, head, names),
            tuple(example[name] for name in names),
            input_names=names,
            output_names=["start_logits", "end_logits"] if head.kind == "question" else ["logits"],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _narrow(program.model)
    _round_before_reshaping(program.model)
    program.save(path)


def _narrow(model: Any) -> None:
    """Put the integers of four bits, which torch holds in eight, into tensors of four."""
    import ml_dtypes
    import onnx_ir as ir
    from onnx_ir.passes import common

    for node in model.graph:
        if node.metadata_props.items() >= NARROW.items():
            value = node.inputs[0]
            narrow = ir.tensor(value.const_value.numpy().astype(ml_dtypes.int4), name=value.name)
            value.const_value, value.type = narrow, ir.TensorType(narrow.dtype)
    for tidy in (common.DeduplicateInitializersPass(), common.ClearMetadataAndDocStringPass()):
        tidy(model)


def _round_before_reshaping(model: Any) -> None:
    """Put each rounding of what was only reshaped, as the results of attention are, in front of that `Reshape`.

    OpenVINO then rounds them where they are computed, and moves a quarter of the bytes.
    """
    for node in list(model.graph):
        reshape = node.inputs[0].producer() if node.op_type == "QuantizeLinear" else None
        if reshape is None or reshape.op_type != "Reshape" or len(reshape.outputs[0].uses()) > 1:
            continue
        (use,) = node.outputs[0].uses()
        before, reshaped, rounded = reshape.inputs[0], reshape.outputs[0], use.node.outputs[0]
        rounded.replace_all_uses_with(reshaped)
        node.replace_input_with(0, before)
        reshape.replace_input_with(0, rounded)
        node.outputs[0].shape = rounded.shape = before.shape
        model.graph.remove(reshape)
        model.graph.insert_after(use.node, reshape)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without what the exporter says of libraries that are not there and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
