"""Every exported format computes the checkpoint's logits from its own files, and is scored by itself."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
)

from hf_compress.export.descriptor import Format
from hf_compress.export.formats import FORMATS, check_formats, check_model, help_of_formats, write_formats, written
from hf_compress.export.parity import load, random_batches
from hf_compress.launch.arguments import CompressionArguments
from hf_compress.launch.flags import take_flags
from hf_compress.launch.run import compress, finish
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import quantize_layers
from hf_compress.quantize import QuantizationArguments
from hf_compress.recipe import Recipe
from tests.architectures.families import FAMILIES
from tests.invariants.test_heads import vit
from tests.made_up_formats import register
from tests.quantized import quantized


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="`--compress_formats` must be of packed, onnx, .* got 'gguf'"):
        check_formats(["packed", "gguf"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("dense --quant_scheme int8", "it rounds the inputs of its layers"),
        ("dense --quant_scheme int8-attention", "it rounds the inputs of its layers"),
        ("dense --compress_budget_mb 7", "it rounds the inputs of its layers"),
        ("dense --prune_pattern heads --prune_sparsity 0.5", "Train with `--prune_uniform`"),
        ("compressed-tensors --prune_sparsity 0.5", "train with `--quant_scheme`"),
        ("compressed-tensors --quant_scheme int8-attention", "ranges inside attention"),
        ("compressed-tensors --quant_scheme int8 --compress_speedup 1.5", "Train with `--prune_uniform`"),
        ("web", "this run writes dense ones"),
    ],
)
def test_a_format_that_cannot_hold_the_model_is_refused_at_once(words: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        take_flags(["script.py", "--compress_formats", "packed", *words.split()])


@pytest.mark.parametrize(
    "words",
    [
        "dense --quant_scheme int8-weight",
        "dense --prune_sparsity 0.5",
        "dense --prune_pattern heads --prune_sparsity 0.5 --prune_uniform",
        "dense",
        "compressed-tensors --quant_scheme int8",
        "web --prune_sparsity 0.5",
        "onnx openvino --quant_scheme int8 --prune_pattern heads --prune_sparsity 0.5",
    ],
)
def test_a_format_that_can_hold_the_model_is_not_refused(words: str) -> None:
    take_flags(["script.py", "--compress_formats", "packed", *words.split()])


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("onnx", "onnxscript", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("compressed-tensors", "compressed_tensors", "compressed-tensors"),
    ],
)
def test_a_missing_library_is_named_before_training(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "openvino":
        pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'hf-compress\[{extra}\]'"):
        CompressionArguments(compress_formats=[name])


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> Format:
    """A new format, known to the registry only."""
    return register(monkeypatch, "pickled")


def test_a_format_added_to_the_registry_flows_everywhere(
    pickled: Format, tiny_bert: BertForSequenceClassification, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """One descriptor is enough for the flag, its help, the written file, its parity, the report and the card."""
    argv = ["script.py", "--compress_formats", "pickled", "--quant_scheme", "int8-weight"]
    flags = take_flags(argv)
    assert flags.options.compress_formats == ["pickled"] and "`pickled`: a pickle" in help_of_formats()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(tiny_bert, arguments, train_dataset=tiny_dataset, eval_dataset=tiny_dataset)
    compress(trainer, flags.recipe).train()
    report = finish(trainer, formats=flags.options.compress_formats)
    folder = tmp_path / "compressed"
    assert report is not None and report.formats["pickled"].parity < 1e-5
    assert report.formats["pickled"].stored_bytes == (folder / pickled.path).stat().st_size
    assert written(folder) == ["pickled"]
    card = (folder / "README.md").read_text()
    assert "### With pickled" in card and pickled.card in card and pickled.loading in card


def test_an_export_that_fails_leaves_nothing_behind(
    pickled: Format, tiny_bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    folder = quantized(tiny_bert, tmp_path / "compressed", "int8-weight")
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(ValueError, match="`batches` is empty"):
        pickled.export(folder, [])
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_an_export_is_written_through_no_link(
    pickled: Format, tiny_bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    folder = quantized(tiny_bert, tmp_path / "compressed", "int8-weight")
    (tmp_path / "elsewhere").mkdir()
    (folder / "pickled").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        pickled.export(folder)
    assert not list((tmp_path / "elsewhere").iterdir())
    (folder / "pickled").unlink()
    (folder / "pickled").mkdir()
    (folder / pickled.path).symlink_to(tmp_path / "elsewhere" / "weights.pt")
    pickled.export(folder)
    assert not (folder / pickled.path).is_symlink() and not list((tmp_path / "elsewhere").iterdir())


def test_an_export_replaces_the_one_before_it(
    pickled: Format, tiny_bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    folder = quantized(tiny_bert, tmp_path / "compressed", "int8-weight")
    pickled.export(folder)
    (folder / pickled.path).write_bytes(b"old")
    (folder / "pickled" / "notes.txt").write_text("mine")
    pickled.export(folder)
    assert pickled.stored_bytes(folder) > 1000
    assert (folder / "pickled" / "notes.txt").read_text() == "mine"


def test_the_packed_file_is_exported_by_nobody(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`packed` is written by `save_compressed`"):
        FORMATS["packed"].export(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("int8-weight", []),
        ("int8-weight", [".=5", "query=2", "embeddings=3"]),
        ("int4-weight", []),
        ("int8", []),
        ("int8", [".=6"]),
        ("int8-dynamic", []),
    ],
)
def test_stock_transformers_loads_compressed_tensors(
    scheme: str, bits: list[str], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    pytest.importorskip("compressed_tensors")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    folder = quantized(BertForSequenceClassification(config), tmp_path / "compressed", scheme, *bits)
    tiny_tokenizer.save_pretrained(folder)
    write_formats(folder, ["compressed-tensors"])
    stock = AutoModelForSequenceClassification.from_pretrained(
        folder / "compressed-tensors", attn_implementation="eager"
    )
    assert stock.config.quantization_config.quant_method == "compressed-tensors"
    assert (folder / "compressed-tensors" / "tokenizer.json").exists()
    ours = load(folder)
    for batch in random_batches(ours):
        with torch.no_grad():
            expected, found = ours(**batch).logits, stock.eval()(**batch).logits
        if scheme.endswith("-weight"):
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_compressed_tensors_needs_quantized_layers(tmp_path: Path, tiny_bert: BertForSequenceClassification) -> None:
    pytest.importorskip("compressed_tensors")
    tiny_bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="train with `--quant_scheme`"):
        write_formats(tmp_path, ["compressed-tensors"])
    assert not (tmp_path / "compressed-tensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "body"])
def test_openvino_has_files_of_its_own(part: str, tmp_path: Path, tiny_bert: BertForSequenceClassification) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    model = tiny_bert if part == "model" else tiny_bert.bert
    folder = quantized(model, tmp_path / "compressed", "int8")
    parity = write_formats(folder, ["openvino"])["openvino"]
    assert parity.deviation < 0.05
    assert written(folder) == ["openvino"]
    reference = load(folder)
    alone = FORMATS["openvino"].read(folder / FORMATS["openvino"].path, reference)
    batch = next(random_batches(reference))
    with torch.no_grad():
        torch.testing.assert_close(alone(**batch)[0], reference(**batch)[0], atol=0.02, rtol=0.05)
    body = sum(parameter.numel() for parameter in reference.parameters())
    assert (folder / "openvino" / "openvino_model.bin").stat().st_size < 2 * body


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int8-weight"])
def test_openvino_stores_integers_by_output_and_changes_no_bit(
    scheme: str, tmp_path: Path, tiny_bert: BertForSequenceClassification
) -> None:
    """Its kernels for sparse weights take constants only, not what it has to transpose first."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    folder = quantized(tiny_bert, tmp_path / "compressed", scheme)
    write_formats(folder, ["onnx", "openvino"])
    path = folder / FORMATS["openvino"].path
    products = [
        node
        for node in openvino.Core().read_model(path).get_ops()
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Multiply"
    ]
    assert len(products) == 2 * 6 + 1  # The layers, and the pooler.
    for product in products:
        stored = product.input_value(1).get_node().input_value(0).get_node().input_value(0).get_node()
        assert stored.get_type_name() == "Constant" and stored.get_element_type().get_type_name() == "i8"
        assert product.get_attributes()["transpose_b"]
        assert stored.shape[0] == product.output(0).get_partial_shape()[-1].get_length()
    as_onnx = tmp_path / "as_onnx.xml"
    graph = openvino.convert_model(str(folder / FORMATS["onnx"].path))
    openvino.save_model(graph, as_onnx, compress_to_fp16=False)
    reference = load(folder)
    batch = next(random_batches(reference))
    both = [FORMATS["openvino"].read(file, reference)(**batch).logits for file in (path, as_onnx)]
    assert torch.equal(*both)


def test_formats_that_cannot_hold_a_model_are_refused_by_name(tiny_bert: PreTrainedModel) -> None:
    images = ViTForImageClassification(vit())
    check_model(list(FORMATS), tiny_bert)
    check_model(["onnx", "openvino", "dense"], images)
    with pytest.raises(ValueError, match=r"`--compress_formats web` is for .*reads `pixel_values`. Write `onnx`"):
        check_model(["web"], images)
    unknown = BertForNextSentencePrediction(tiny_bert.config)
    for name in ("onnx", "web", "openvino"):
        with pytest.raises(ValueError, match=f"`--compress_formats {name}` needs to know the outputs"):
            check_model(["packed", name], unknown)
    check_model(["packed", "dense"], unknown)


PACKED = [("modernbert", "Transformers cannot load a ModernBert.*with packed weights"), ("gpt2", "none that fit")]


@pytest.mark.parametrize(("name", "said"), PACKED, ids=[name for name, _ in PACKED])
def test_layers_that_stock_files_cannot_hold_are_refused(name: str, said: str) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    model = family.auto_class.from_config(family.config())
    check_model(["compressed-tensors"], model)
    quantize_layers(model, SCHEMES["int8-weight"])
    with pytest.raises(ValueError, match=f"`--compress_formats compressed-tensors.*{said}"):
        check_model(["compressed-tensors"], model)


@pytest.mark.parametrize(
    ("name", "said"), [("onnx", "needs to know the outputs"), ("dense", "cannot hold"), ("no", "of")]
)
def test_formats_that_finish_cannot_write_are_refused_early(
    name: str, said: str, tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    model = BertForNextSentencePrediction(tiny_bert.config)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    recipe = Recipe(quantization=QuantizationArguments("int8"))
    with pytest.raises(ValueError, match=f"`--compress_formats.*{said}"):
        compress(trainer, recipe, formats=["packed", name])
