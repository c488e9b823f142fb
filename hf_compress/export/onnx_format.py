"""A checkpoint as an ONNX graph with the integers and ranges that were trained."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.export.descriptor import Batches, Format
from hf_compress.export.onnx_layers import NARROW
from hf_compress.export.onnx_nodes import to_graph_layers
from hf_compress.export.parity import Parity, load, random_batches
from hf_compress.export.runtimes import ONNX_RUNTIME_EXACT, in_onnx_runtime
from hf_compress.extras import extra
from hf_compress.models.heads import Head, find_outputs

# Where optimum and transformers.js look for a quantized graph.
PATH = Path("onnx", "model_quantized.onnx")
# The first opset with 4-bit integers in groups. Newer ones are not needed, and older runtimes lack them.
OPSET = 21


def export_onnx(folder: str | Path, batches: Batches | None = None) -> Parity:
    """Write `folder`/onnx/model_quantized.onnx and return how close the graph is to the checkpoint in `folder`.

    The graph holds the integers of the file and the trained ranges. Weights of linear layers and embeddings are
    integers with one scale per row (or group), followed by `DequantizeLinear`. Static ranges of inputs are pairs of
    `QuantizeLinear` and `DequantizeLinear`, which runtimes fuse into integer kernels. Ranges per token are computed in
    the graph, with `MatMulInteger`. Batch and length are dynamic. Generating models are written without a cache,
    sequence-to-sequence models as one graph that takes `decoder_input_ids`.

    Args:
        folder: what `save_compressed` or `save_pretrained` wrote.
        batches: inputs of the model, as its collator makes them, to check parity on. By default random ones. Prefer
            real ones: a trained model is only sure of its answer on data like its training data.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        ValueError: the folder holds no known model with a known head, or the graph computes something else than the
            model. Nothing is left behind.

    Example:
        >>> import hf_compress
        >>> hf_compress.export_onnx("compressed", evaluation_batches).deviation  # doctest: +SKIP
        0.0021
    """
    return ONNX.export(folder, batches)


def write_graph(folder: Path, path: Path) -> None:
    """Write the graph of the checkpoint in `folder` to the file `path`, without comparing it.

    Example:
        >>> from pathlib import Path
        >>> from hf_compress.export import write_graph
        >>> write_graph(Path("compressed"), Path("graph.onnx"))  # doctest: +SKIP
    """
    graph_of(folder).save(path)


def graph_of(folder: Path) -> Any:
    """Return the ONNX program of the checkpoint in `folder`, as torch's exporter returns one."""
    model = load(folder)
    config = getattr(model.config, "quantization_config", None)
    return program_of(model, config if isinstance(config, CompressionConfig) else None)


def program_of(model: PreTrainedModel, config: CompressionConfig | None) -> Any:
    """Return the ONNX program of `model`, whose layers become those of a graph, in place.

    Args:
        model: in float32 and evaluation mode, with eager attention, and with quantized layers that have their ranges.
        config: names the quantized layers; None if there are none.

    Example:
        >>> from hf_compress.export import program_of
        >>> program_of(model, model.config.quantization_config).save("graph.onnx")  # doctest: +SKIP
    """
    if config is not None and config.quantized:
        to_graph_layers(model, config)
    program = _traced(model, find_outputs(model))
    _narrow(program.model)
    _round_before_reshaping(program.model)
    _forget_shapes(program.model)
    return program


def require_onnx() -> None:
    """Check that the libraries that write and run ONNX graphs are installed.

    Raises:
        MissingExtraError: one is missing.

    Example:
        >>> from hf_compress.export import require_onnx
        >>> require_onnx()  # doctest: +SKIP
    """
    with extra("onnx", "The format `onnx`"):
        import ml_dtypes  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def headless(model: PreTrainedModel, name: str) -> str:
    """Return why the graph `name` cannot hold a model whose outputs are unknown, or "" if they are known.

    Example:
        >>> from transformers import BertConfig, BertForNextSentencePrediction
        >>> from hf_compress.export.onnx_format import headless
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> headless(BertForNextSentencePrediction(BertConfig(vocab_size=9, **sizes)), "onnx").partition(".")[0]
        '`--compress_formats onnx` needs to know the outputs of the model'
    """
    try:
        find_outputs(model)
    except ValueError as error:
        return f"`--compress_formats {name}` needs to know the outputs of the model. {error} Or leave the format out."
    return ""


ONNX = Format(
    name="onnx",
    path=PATH,
    require=require_onnx,
    write=write_graph,
    read=lambda path, reference: in_onnx_runtime(path, reference.config, exact=True),
    help="an int8 graph for ONNX Runtime, OpenVINO and transformers.js",
    card="`onnx`: ONNX Runtime and transformers.js run it, without hf_compress and without PyTorch.",
    loading="""\
import onnxruntime

session = onnxruntime.InferenceSession(folder + "/onnx/model_quantized.onnx")""",
    native=lambda path, reference: in_onnx_runtime(path, reference.config),
    runtime="ONNX Runtime",
    install="onnxruntime transformers",
    running="""\
feeds = {node.name: inputs.get(node.name{missing}) for node in session.get_inputs()}
logits = session.run(None, feeds)[0]""",
    unfit=lambda model: headless(model, "onnx"),
    exact="the session option `{}` set to {}".format(*ONNX_RUNTIME_EXACT),
    errors=("onnxruntime.capi.onnxruntime_pybind11_state",),
)


class _Logits(nn.Module):
    """A model with positional inputs that returns its logits only, as the exporter wants it."""

    def __init__(self, model: PreTrainedModel, head: Head, names: list[str]) -> None:
        super().__init__()
        self.model, self.head, self.names = model, head, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with _AddedNumbers():
            return self.head.logits(self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True))


class _AddedNumbers(TorchFunctionMode):
    """Computes `number - tensor` as `number + (-tensor)`, which is the same to the bit.

    The exporter of torch 2.13 fails on the former if the tensor holds integers and the number is none, as in XLNet's
    `1.0 - attention_mask`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__rsub__, torch.rsub) and not kwargs:
            return args[1] + args[0].neg()
        return func(*args, **(kwargs or {}))


def _traced(model: PreTrainedModel, head: Head) -> Any:
    """Return the ONNX program of the model."""
    names = head.inputs(model)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    example = next(random_batches(model))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Logits(model, head, names),
            tuple(example[name] for name in names),
            input_names=names,
            output_names=list(head.names),
            dynamic_shapes=(tuple(_axes(head, name, example[head.main_input].ndim) for name in names),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _axes(head: Head, name: str, dimensions: int) -> dict[int, str]:
    """Return the names of the dynamic axes of the input `name`.

    Args:
        dimensions: of the main input. Pixels and spectrograms have more than two, and only their batch is dynamic.
    """
    if not head.takes_text and dimensions > 2:
        return {0: "batch"}
    sequence = "decoder_sequence" if name.startswith("decoder") else "sequence"
    return {0: "batch", 1: "choices", 2: sequence} if head.descriptor.has_choices else {0: "batch", 1: sequence}


def _narrow(model: Any) -> None:
    """Store 4-bit integers, which torch holds in 8 bits, in tensors of 4 bits."""
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
    """Move each rounding of a reshaped tensor, such as the result of attention, in front of its `Reshape`.

    OpenVINO then rounds where the tensor is computed, and moves a quarter of the bytes.
    """
    for node in list(model.graph):
        reshape = node.inputs[0].producer() if node.op_type == "QuantizeLinear" else None
        if reshape is None or reshape.op_type != "Reshape" or len(reshape.outputs[0].uses()) > 1:
            continue
        (use,) = node.outputs[0].uses()
        if use.node.op_type != "DequantizeLinear":  # The places of a convolution are gathered in between.
            continue
        before, reshaped, rounded = reshape.inputs[0], reshape.outputs[0], use.node.outputs[0]
        rounded.replace_all_uses_with(reshaped)
        node.replace_input_with(0, before)
        reshape.replace_input_with(0, rounded)
        node.outputs[0].shape = rounded.shape = before.shape
        model.graph.remove(reshape)
        model.graph.insert_after(use.node, reshape)


def _forget_shapes(model: Any) -> None:
    """Leave out the shapes of values inside the graph, which runtimes infer.

    With them ONNX Runtime 1.32 fuses each residual sum with its LayerNorm, and its kernel for both is slower than the
    two alone: of MiniLM's int8 graph it makes a graph that takes 1.4 times as long (benchmarks/onnx_fusion.py).
    """
    results = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in results:
                value.shape = value.type = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute the exporter's messages about missing libraries and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
