"""Every format beside the packed one computes the checkpoint's logits from its own files, and is scored by itself."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from hf_compress.export import formats
from hf_compress.export.formats import FORMATS, check_formats, write_formats, written
from hf_compress.export.parity import Parity, load, random_batches
from hf_compress.launch.flags import CompressionArguments
from tests.quantized import quantized


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="`--compress_formats` must be of packed, onnx, .* got 'gguf'"):
        check_formats(["packed", "gguf"])


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("onnx", "onnxscript", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("compressed-tensors", "compressed_tensors", "compressed-tensors"),
    ],
)
def test_what_a_format_needs_is_asked_for_before_training(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "openvino":
        pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'hf-compress\[{extra}\]'"):
        CompressionArguments(compress_formats=[name])


def test_formats_are_found_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, batches: Any) -> Parity:
        (folder / "one").mkdir()
        (folder / "one" / "model.bin").write_bytes(bytes(7))
        return Parity(0.0, 0.0, 1.0, len(list(batches)))

    one = formats.Format(Path("one", "model.bin"), lambda: None, write, lambda path, model: model)
    monkeypatch.setitem(FORMATS, "one", one)
    assert written(tmp_path) == []
    assert write_formats(tmp_path, ["packed", "one"], batches=iter([{}, {}]))["one"].rows == 2
    assert written(tmp_path) == ["one"]
    assert one.stored_bytes(tmp_path) == 7


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


def test_a_checkpoint_without_quantized_layers_is_no_compressed_tensors(
    tmp_path: Path, tiny_bert: BertForSequenceClassification
) -> None:
    pytest.importorskip("compressed_tensors")
    tiny_bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="train with `--quant_scheme`"):
        write_formats(tmp_path, ["compressed-tensors"])
    assert not (tmp_path / "compressed-tensors").exists()


def test_openvino_has_files_of_its_own(tmp_path: Path, tiny_bert: BertForSequenceClassification) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    folder = quantized(tiny_bert, tmp_path / "compressed", "int8")
    parity = write_formats(folder, ["openvino"])["openvino"]
    assert parity.deviation < 0.05
    assert written(folder) == ["openvino"]
    reference = load(folder)
    alone = FORMATS["openvino"].read(folder / FORMATS["openvino"].path, reference)
    batch = next(random_batches(reference))
    with torch.no_grad():
        torch.testing.assert_close(alone(**batch).logits, reference(**batch).logits, atol=0.01, rtol=0.05)
    body = sum(parameter.numel() for parameter in reference.parameters())
    assert (folder / "openvino" / "openvino_model.bin").stat().st_size < 2 * body
