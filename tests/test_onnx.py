"""The ONNX graph holds the trained integers and ranges, and computes what the checkpoint does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
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
)

from hf_compress.checkpoint import save_compressed
from hf_compress.layers import fake_quantize_modules
from hf_compress.onnx import export_onnx
from hf_compress.parity import random_batches
from hf_compress.quantization import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.schemes import SCHEMES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SPECIAL = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
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
BERT = BertConfig(**SPECIAL, **SIZES)
SEQUENCE = AutoModelForSequenceClassification


def quantized(model: PreTrainedModel, folder: Path, scheme: str | None) -> Path:
    """`model`, with ranges of a few random batches and on its grids, as a compressed checkpoint."""
    if scheme is not None:
        layers = fake_quantize_modules(model, SCHEMES[scheme])
        batches = list(random_batches(model))
        for layer in layers:
            layer.observing = True
        with torch.no_grad():
            for batch in batches:
                model.train()(**batch)
            for layer in layers:
                layer.quantizing, layer.observing = True, False
                if layer.has_range and layer.step_range is not None:
                    layer.input_range.copy_(layer.step_range)
            model.eval()(**batches[0])
    return save_compressed(model, folder, Recipe(quantization=QuantizationArguments(quant_scheme=scheme)))


def build(auto_class: Any, config: Any, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return auto_class.from_config(type(config).from_dict(config.to_dict() | changes)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """A function that gives the folder of a tiny BERT in a scheme, with its graph; one export a scheme."""
    folders: dict[str | None, Path] = {}

    def run(scheme: str | None) -> Path:
        if scheme not in folders:
            folders[scheme] = quantized(build(SEQUENCE, BERT), tmp_path_factory.mktemp("onnx") / "compressed", scheme)
            export_onnx(folders[scheme])
        return folders[scheme]

    return run


CASES = [
    ("distilbert", SEQUENCE, DistilBertConfig(**SPECIAL, dim=32, n_layers=1, n_heads=2, hidden_dim=48)),
    ("roberta", SEQUENCE, RobertaConfig(**SPECIAL, **SIZES, type_vocab_size=1)),
    ("gpt2", AutoModelForCausalLM, GPT2Config(**SPECIAL, n_embd=32, n_layer=1, n_head=2, n_positions=32)),
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
    ("question", AutoModelForQuestionAnswering, BERT),
    ("choice", AutoModelForMultipleChoice, BERT),
    ("masked", AutoModelForMaskedLM, BERT),
]


@pytest.mark.parametrize(("name", "auto_class", "config"), CASES, ids=[case[0] for case in CASES])
def test_models_and_heads_compute_the_same_in_onnx_runtime(
    name: str, auto_class: Any, config: Any, tmp_path: Path
) -> None:
    folder = quantized(build(auto_class, config), tmp_path / "compressed", "int8")
    parity = export_onnx(folder)
    print(parity)
