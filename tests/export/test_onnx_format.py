"""The ONNX graph holds the trained integers and ranges, and computes what the checkpoint does."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ASTConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
)

from hf_compress.export import onnx_format
from hf_compress.export.formats import write_formats
from hf_compress.export.onnx_format import PATH, _AddedNumbers, export_onnx
from hf_compress.export.onnx_layers import _rounded_up
from hf_compress.export.parity import check_parity, load, random_batches
from hf_compress.export.runtimes import in_onnx_runtime, in_openvino
from hf_compress.layers.grids import SCHEMES, SMALLEST_SCALE, symmetric_scale
from hf_compress.layers.turning import compressed_layers
from hf_compress.packing.packed import Packed
from tests.quantized import quantized

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SPECIAL = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SIZES = SMALL | {"max_position_embeddings": 32}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 1}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 3,
    "scale_embedding": True,
}
SPECTROGRAM = {"max_length": 32, "num_mel_bins": 16, "patch_size": 4, "frequency_stride": 4, "time_stride": 4}
WAVEFORM = {
    "vocab_size": 20,
    "conv_dim": (16, 16),
    "conv_kernel": (4, 3),
    "conv_stride": (2, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "apply_spec_augment": False,
}
BERT = BertConfig(**SPECIAL, **SIZES)
EMBEDDING4 = ("int8", "embeddings=4")
# Of weights so large that all layers count. With FINE steps integers need more than four bits, with COARSE ones fewer.
WIDE, FINE, COARSE = {"initializer_range": 0.3}, 0.02, 0.1
MIXED = ("int8", ".=5", "word_embeddings=3", "position=2", "query=2", "key=4", "attention.output=3")
SEQUENCE = AutoModelForSequenceClassification


def build(auto_class: Any, config: Any, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return auto_class.from_config(type(config).from_dict(config.to_dict() | changes)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that gives the folder of a tiny BERT in a scheme, with its graph; one export a scheme and bits.

    A number after the scheme is the constant of fixed steps.
    """
    folders: dict[tuple[str | float | None, ...], Path] = {}

    def run(*options: str | float | None) -> Path:
        if options not in folders:
            folder = tmp_path_factory.mktemp("onnx") / "compressed"
            step = next((option for option in options if isinstance(option, float)), None)
            model = build(SEQUENCE, BERT, **({} if step is None else WIDE))
            given = [option for option in options if not isinstance(option, float)]
            folders[options] = quantized(model, folder, *given, step=step)
            export_onnx(folders[options])
        return folders[options]

    return run


ATTENTION_CASES = [
    ("llama", AutoModelForCausalLM, LlamaConfig(**SPECIAL, **SIZES, num_key_value_heads=1)),
    ("distilbert", SEQUENCE, DistilBertConfig(**SPECIAL, dim=32, n_layers=1, n_heads=2, hidden_dim=48)),
]
# An export takes seconds: all but a BERT for sequences is left to `make test-slow`.
CASES = [
    ("question", AutoModelForQuestionAnswering, BERT),
    ("gpt2", AutoModelForCausalLM, GPT2Config(**SPECIAL, n_embd=32, n_layer=1, n_head=2, n_positions=32)),
    ("image", AutoModelForImageClassification, ViTConfig(**SMALL, image_size=8, patch_size=4)),
    ("distilbert", SEQUENCE, DistilBertConfig(**SPECIAL, dim=32, n_layers=1, n_heads=2, hidden_dim=48)),
    ("roberta", SEQUENCE, RobertaConfig(**SPECIAL, **SIZES, type_vocab_size=1)),
    ("t5", AutoModelForSeq2SeqLM, T5Config(**SPECIAL, **T5)),
    ("bart", AutoModelForSeq2SeqLM, BartConfig(**SPECIAL, **BART)),
    ("llama", AutoModelForCausalLM, LlamaConfig(**SPECIAL, **SIZES, num_key_value_heads=1)),
    (
        "modernbert",
        SEQUENCE,
        ModernBertConfig(
            **SPECIAL, **{**SIZES, "num_hidden_layers": 2}, cls_token_id=2, sep_token_id=3, local_attention=4
        ),
    ),
    (
        "deberta-v2",
        SEQUENCE,
        DebertaV2Config(
            **SPECIAL,
            **SIZES,
            relative_attention=True,
            position_buckets=4,
            pos_att_type=["c2p", "p2c"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
            pooler_hidden_size=32,
        ),
    ),
    ("token", AutoModelForTokenClassification, BERT),
    ("choice", AutoModelForMultipleChoice, BERT),
    ("masked", AutoModelForMaskedLM, BERT),
    ("spectrogram", AutoModelForAudioClassification, ASTConfig(**SMALL, **SPECTROGRAM)),
    ("waveform", AutoModelForAudioClassification, Wav2Vec2Config(**SMALL, **WAVEFORM)),
]


class Recorded(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def initializers(folder: Path) -> dict[str, Any]:
    graph = onnx.load(folder / PATH).graph
    return {tensor.name: tensor for tensor in graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "auto_class", "config"), CASES, ids=[case[0] for case in CASES])
def test_models_and_heads_compute_the_same_in_onnx_runtime(
    name: str, auto_class: Any, config: Any, tmp_path: Path
) -> None:
    folder = quantized(build(auto_class, config), tmp_path / "compressed", "int8")
    parity = export_onnx(folder)
    assert parity.rows > 0 and parity.agreement > 0.9
    names = ["start_logits", "end_logits"] if name == "question" else ["logits"]
    assert [output.name for output in onnx.load(folder / PATH).graph.output] == names


@pytest.mark.slow
@pytest.mark.parametrize(("name", "auto_class", "config"), ATTENTION_CASES)
def test_rounded_attention_computes_the_same_in_onnx_runtime(
    name: str, auto_class: Any, config: Any, tmp_path: Path
) -> None:
    folder = quantized(build(auto_class, config), tmp_path / "compressed", "int8-attention")
    assert export_onnx(folder).agreement > 0.9


def test_a_number_less_integers_is_traced_as_a_sum() -> None:
    mask = torch.tensor([[0, 1], [1, 1]])
    seen: list[str] = []
    with _AddedNumbers(), Recorded(seen):
        found = 1.0 - mask, 3 - mask, torch.rsub(mask, 2)
    assert [value.tolist() for value in found] == [(1.0 - mask).tolist(), (3 - mask).tolist(), (2 - mask).tolist()]
    assert not any("sub" in name for name in seen) and [value.dtype for value in found][:2] == [
        torch.float32,
        mask.dtype,
    ]


def test_names_are_those_that_optimum_expects(exported: Callable[..., Path]) -> None:
    graph = onnx.load(exported("int8") / "onnx" / "model_quantized.onnx").graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [value.name for value in graph.output] == ["logits"]
    shapes = [[axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in graph.input]
    assert shapes == [["batch", "sequence"]] * 3


def test_weights_are_the_integers_of_the_checkpoint(exported: Callable[..., Path]) -> None:
    folder = exported("int8")
    model = load(folder)
    stored = initializers(folder)
    integers = [onnx.numpy_helper.to_array(t) for t in stored.values() if t.data_type == onnx.TensorProto.INT8]
    floats = sum(onnx.numpy_helper.to_array(t).size for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT)
    linear, words = model.bert.encoder.layer[0].attention.self.query.weight, model.bert.embeddings.word_embeddings
    for weight, transposed in ((linear, True), (words.weight, False)):
        scale = symmetric_scale(weight, SCHEMES["int8"].weight)
        expected = (weight / scale).round().to(torch.int8)
        expected = (expected.t() if transposed else expected).detach().numpy()
        assert any(array.shape == expected.shape and (array == expected).all() for array in integers)
    everything = sum(parameter.numel() for parameter in model.parameters())
    kept = sum(array.size for array in integers if array.ndim == 2)
    assert kept + floats < 1.1 * everything and floats < 0.2 * everything


def integers_in(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """The integers of the packed file, one row per output or token, each tensor with its scales."""
    packed = [Packed.open(data, name) for name, data in load_file(folder / "model.safetensors").items()]
    return [(tensor.values(), tensor.scale().flatten()) for tensor in packed if tensor.scale() is not None]


def widened(tensor: Any) -> Tensor:
    """The integers of an initializer, each in a byte of its own."""
    values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype("int16"))
    if tensor.data_type == onnx.TensorProto.UINT8:
        values = torch.cat([values % 16, values // 16], dim=1) - 8
    return values


STEPS_CASES = [
    pytest.param("int8", FINE, SEQUENCE, BERT, id="bytes", marks=pytest.mark.slow),
    pytest.param("int8", COARSE, SEQUENCE, BERT, id="nibbles"),
    pytest.param("int8-dynamic", FINE, SEQUENCE, BERT, id="dynamic", marks=pytest.mark.slow),
    pytest.param("int8-weight", COARSE, SEQUENCE, BERT, id="weight", marks=pytest.mark.slow),
    pytest.param("int8-attention", FINE, SEQUENCE, BERT, id="attention", marks=pytest.mark.slow),
    pytest.param("int8", 1.0, AutoModelForMaskedLM, BERT, id="tied nibbles", marks=pytest.mark.slow),
    pytest.param("int8", 0.2, AutoModelForMaskedLM, BERT, id="tied bytes", marks=pytest.mark.slow),
    pytest.param("int8", 0.5, CASES[1][1], CASES[1][2], id="gpt2", marks=pytest.mark.slow),
    pytest.param("int8", 0.1, AutoModelForSeq2SeqLM, T5Config(**SPECIAL, **T5), id="t5", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("scheme", "step", "auto_class", "config"), STEPS_CASES)
def test_the_graph_has_the_integers_and_steps_of_the_file(
    scheme: str, step: float, auto_class: Any, config: Any, exported: Callable[..., Path], tmp_path: Path
) -> None:
    if config is BERT and auto_class is SEQUENCE:
        folder = exported(scheme, step)
    else:
        folder = quantized(build(auto_class, config, **WIDE), tmp_path / "compressed", scheme, step=step)
        assert export_onnx(folder).agreement > 0.9
    assert load(folder).config.quantization_config.steps
    stored = list(initializers(folder).values())
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4)
    integers = [widened(tensor) for tensor in stored if tensor.data_type in kinds and len(tensor.dims) == 2]
    floats = [torch.tensor(onnx.numpy_helper.to_array(one)).flatten() for one in stored if one.data_type == 1]
    for rows, scale in integers_in(folder):
        assert any(torch.equal(one, rows.short()) or torch.equal(one, rows.t().short()) for one in integers)
        assert any(torch.equal(one, scale) for one in floats)


def test_embeddings_with_small_integers_take_half_a_byte_each(exported: Callable[..., Path]) -> None:
    halves: dict[tuple[str | float, ...], bool] = {("int8",): False, ("int8", COARSE): True}
    for options, halved in halves.items():
        stored = initializers(exported(*options)).values()
        pairs = [tensor for tensor in stored if tensor.data_type == onnx.TensorProto.UINT8 and tensor.dims]
        assert bool(pairs) == halved


def test_ranges_are_the_trained_ones_in_unsigned_integers(exported: Callable[..., Path]) -> None:
    folder = exported("int8")
    stored = initializers(folder)
    graph = onnx.load(folder / PATH).graph
    scales = set()
    for node in (node for node in graph.node if node.op_type == "QuantizeLinear"):
        assert stored[node.input[2]].data_type == onnx.TensorProto.UINT8
        scales.add(float(onnx.numpy_helper.to_array(stored[node.input[1]])))
    layers = [layer for layer in compressed_layers(load(folder)).values() if layer.has_range]
    expected = {
        float((layer.input_range[1].clamp(min=0) - layer.input_range[0].clamp(max=0)) / 255) for layer in layers
    }
    assert scales == expected


def kernels_of(folder: Path, work: Path) -> list[str]:
    """The operators that ONNX Runtime makes of the graph in `folder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(work / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(folder / PATH), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(work / "optimized.onnx").graph.node]


def test_onnx_runtime_computes_with_integers(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = exported("int8")
    kernels = kernels_of(folder, tmp_path)
    layers = compressed_layers(load(folder)).values()
    assert kernels.count("MatMulIntegerToFloat") == sum(layer.has_range for layer in layers)
    assert "DequantizeLinear" not in kernels


def test_onnx_runtime_keeps_sums_and_norms_apart(exported: Callable[..., Path], tmp_path: Path) -> None:
    """Its kernel for both is slower: `benchmarks/onnx_fusion.py`."""
    kernels = kernels_of(exported("int8"), tmp_path)
    assert "SkipLayerNormalization" not in kernels
    assert "LayerNormalization" in kernels


def test_onnx_runtime_multiplies_integers_in_attention(exported: Callable[..., Path], tmp_path: Path) -> None:
    kernels = kernels_of(exported("int8-attention"), tmp_path)
    assert "MatMul" not in kernels and "FusedMatMul" not in kernels and "DequantizeLinear" not in kernels


def test_openvino_multiplies_integers_inside_attention(exported: Callable[..., Path]) -> None:
    openvino = pytest.importorskip("openvino")
    precisions = {}
    for scheme in ("int8", "int8-attention"):
        graph = openvino.Core().compile_model(str(exported(scheme) / PATH), "CPU").get_runtime_model()
        facts = [node.get_rt_info() for node in graph.get_ops()]
        precisions[scheme] = {
            fact["runtimePrecision"].astype(str)
            for fact in facts
            if fact["layerType"].astype(str) in ("MatMul", "Subgraph")
        }
    assert precisions["int8-attention"] == {"i8"} and "i8" not in precisions["int8"]


def test_attention_is_rounded_before_it_is_reshaped(exported: Callable[..., Path]) -> None:
    nodes = onnx.load(exported("int8") / PATH).graph.node
    reshaped = {node.output[0] for node in nodes if node.op_type == "Reshape"}
    assert not [node for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] in reshaped]


@pytest.mark.parametrize(
    "options",
    [
        ("int8",),
        pytest.param((None,), marks=pytest.mark.slow),
        pytest.param(("int8-dynamic",), marks=pytest.mark.slow),
        pytest.param(("int8-weight",), marks=pytest.mark.slow),
        pytest.param(("int4-weight",), marks=pytest.mark.slow),
        ("int8-attention",),
        pytest.param(EMBEDDING4, marks=pytest.mark.slow),
        ("int8", COARSE),
        MIXED,
        pytest.param(("int8-dynamic", *MIXED[1:]), marks=pytest.mark.slow),
    ],
)
def test_every_scheme_runs_at_any_batch_and_length(
    exported: Callable[..., Path], options: tuple[str | float | None, ...]
) -> None:
    folder = exported(*options)
    model = load(folder)
    runtime = in_onnx_runtime(folder / PATH, model.config, threads=1)
    draw = torch.Generator().manual_seed(1)
    for rows, tokens in ((1, 1), (1, 9), (3, 5)):
        batch = {"input_ids": torch.randint(40, (rows, tokens), generator=draw)}
        with torch.no_grad():
            torch.testing.assert_close(runtime(**batch).logits, model(**batch).logits, atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_four_bits_are_stored_as_four_bits(exported: Callable[..., Path]) -> None:
    stored = initializers(exported("int4-weight")).values()
    narrow = [tensor for tensor in stored if tensor.data_type == onnx.TensorProto.INT4]
    assert len(narrow) == 7
    assert all(2 * len(tensor.raw_data) == tensor.dims[0] * tensor.dims[1] for tensor in narrow)


# The embeddings of words, positions and kinds of sentences.
@pytest.mark.parametrize(
    ("options", "halved"),
    [
        (MIXED, [(32, 16), (40, 16)]),
        pytest.param(EMBEDDING4, [(2, 16), (32, 16), (40, 16)], marks=pytest.mark.slow),
    ],
)
def test_embeddings_of_four_bits_take_half_a_byte_each(
    exported: Callable[..., Path], options: tuple[str, ...], halved: list[tuple[int, int]]
) -> None:
    stored = initializers(exported(*options)).values()
    pairs = [tuple(tensor.dims) for tensor in stored if tensor.data_type == onnx.TensorProto.UINT8 and tensor.dims]
    assert sorted(pairs) == halved


@pytest.mark.slow
def test_rows_of_four_bits_may_be_uneven(tmp_path: Path) -> None:
    config = BertConfig(**SPECIAL, **{**SIZES, "hidden_size": 33, "num_attention_heads": 1})
    export_onnx(quantized(build(SEQUENCE, config), tmp_path / "compressed", *EMBEDDING4))


@pytest.mark.slow
def test_a_head_tied_to_embeddings_of_four_bits_shares_them(tmp_path: Path) -> None:
    folder = quantized(build(AutoModelForMaskedLM, BERT), tmp_path / "compressed", *EMBEDDING4)
    export_onnx(folder)
    words = [tensor for tensor in initializers(folder).values() if tuple(tensor.dims) == (40, 32)]
    assert [tensor.data_type for tensor in words] == [onnx.TensorProto.INT4]


@pytest.mark.parametrize(
    "options",
    [
        ("int8",),
        pytest.param(("int8", FINE), marks=pytest.mark.slow),
        ("int8", COARSE),
        ("int8-attention",),
        pytest.param(EMBEDDING4, marks=pytest.mark.slow),
        MIXED,
    ],
)
def test_openvino_reads_the_same_file(exported: Callable[..., Path], options: tuple[str, ...]) -> None:
    pytest.importorskip("openvino")
    folder = exported(*options)
    model = load(folder)
    batch = next(random_batches(model))
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(
        in_openvino(folder / PATH, model.config)(**batch).logits, expected, atol=1e-3, rtol=1e-2
    )


def test_a_graph_that_computes_something_else_is_refused(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported("int8"), tmp_path / "copy", ignore=shutil.ignore_patterns("onnx"))
    program = onnx.load(exported("int8") / PATH)
    for tensor in program.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    monkeypatch.setattr(onnx_format, "graph_of", lambda folder: SimpleNamespace(save=partial(onnx.save, program)))
    with pytest.raises(ValueError, match=r"`onnx` computes something else than the checkpoint, so it is not written"):
        export_onnx(folder)
    assert not (folder / "onnx").exists()


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-compress\[onnx\]'"):
        export_onnx(tmp_path)


def test_no_batches_are_an_error(exported: Callable[..., Path]) -> None:
    model = load(exported("int8"))
    with pytest.raises(ValueError, match="`batches` is empty"):
        check_parity(model, model, [], "itself")


def test_scales_of_tokens_are_rounded_up_as_in_training() -> None:
    values = torch.cat([torch.rand(4096, 1), torch.tensor([[1.0], [2.0], [1 + 2**-15], [1e-20], [127.0]])])
    expected = symmetric_scale(values, SCHEMES["int8-dynamic"].activation)
    assert torch.equal(_rounded_up((values / 127).clamp(min=SMALLEST_SCALE)), expected)


@pytest.mark.slow
def test_openvino_computes_the_same_for_images(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    config = ViTConfig(**SMALL, image_size=8, patch_size=4)
    folder = quantized(build(AutoModelForImageClassification, config), tmp_path / "compressed", "int8")
    assert write_formats(folder, ["openvino"])["openvino"].agreement > 0.9


def test_a_graph_names_the_input_that_a_batch_lacks(exported: Callable[..., Path]) -> None:
    folder = exported("int8")
    runtime = in_onnx_runtime(folder / PATH, load(folder).config)
    runtime.inputs.append("decoder_input_ids")
    with pytest.raises(ValueError, match="The graph needs `decoder_input_ids`"):
        runtime(input_ids=torch.arange(8).view(1, 8))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param("t5", T5Config(**SPECIAL, **T5), marks=pytest.mark.slow),
        pytest.param("bart", BartConfig(**SPECIAL, **BART), marks=pytest.mark.slow),
    ],
)
def test_a_seq2seq_graph_is_right_at_every_length(name: str, config: Any, tmp_path: Path) -> None:
    """Traced with equal lengths, the graph would compute wrong logits, or fail, wherever they differ."""
    folder = quantized(build(AutoModelForSeq2SeqLM, config), tmp_path / "compressed", "int8")
    export_onnx(folder)
    model = load(folder)
    runtime, draw = in_onnx_runtime(folder / PATH, model.config), torch.Generator().manual_seed(0)
    for rows, length, decoder_length in ((1, 6, 6), (1, 5, 3), (3, 9, 2), (2, 4, 11), (1, 1, 1), (2, 7, 1)):
        ids = torch.randint(4, 40, (rows, length), generator=draw)
        mask = torch.ones_like(ids)
        mask[1:, length // 2 + 1 :] = 0
        labels = torch.randint(4, 40, (rows, decoder_length), generator=draw)
        labels[:, decoder_length // 2 + 1 :] = -100
        with torch.no_grad():
            ours = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        theirs = runtime(input_ids=ids, attention_mask=mask, labels=labels).logits
        torch.testing.assert_close(theirs, ours, atol=0.05, rtol=0.05)


def test_seq2seq_batches_with_labels_only_are_compared(tmp_path: Path) -> None:
    model = build(AutoModelForSeq2SeqLM, T5Config(**SPECIAL, **T5))
    ids = torch.randint(4, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    parity = check_parity(model, model, [{"input_ids": ids, "labels": ids[:, :3]}], "itself")
    assert parity.deviation == 0 and parity.rows == 3
