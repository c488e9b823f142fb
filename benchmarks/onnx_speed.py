"""How fast the int8 graph is: beside torch and the fp32 graph, and beside what others quantize after training.

A BERT of the shape of BERT-base (random weights, its ranges trained on random tokens) is written as
`onnx/model_quantized.onnx`; its dense twin as fp32, as ONNX Runtime's `quantize_dynamic` and `quantize_static` make
it, and as NNCF makes it for OpenVINO. All run in turns in one process, in both runtimes (`hf-compress bench`).

    python benchmarks/onnx_speed.py --threads 2 --rounds 20
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import QuantizationArguments, Recipe, export_onnx, save_compressed
from hf_compress.bench import bench, latency_table
from hf_compress.onnx import PATH, write_graph

VOCABULARY, CALIBRATION = 30522, 8


class Reader(CalibrationDataReader):
    """Random tokens for ONNX Runtime's calibration."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Any:
        return next(self.batches, None)


def build(folder: Path, layers: int) -> tuple[Path, Path]:
    """A dense checkpoint of the shape of BERT-base, and the same after some steps of training for int8."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers))
    model.save_pretrained(folder / "dense")
    recipe = Recipe(quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.3))
    ids = torch.randint(VOCABULARY, (8, 128))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(0)} for row in ids]
    arguments = TrainingArguments(
        str(folder / "training"),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=recipe.callbacks()).train()
    return folder / "dense", save_compressed(model, folder / "int8", recipe)


def quantize_after_training(dense: Path) -> None:
    """Write what others make of the fp32 graph beside it."""
    draw = np.random.default_rng(0)
    ids = draw.integers(VOCABULARY, size=(CALIBRATION, 1, 128))
    batches = [
        {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)} for row in ids
    ]
    source, ready = dense / "onnx" / "model.onnx", dense / "ready.onnx"
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_dynamic(
        str(ready), str(dense / "onnx" / "ort_dynamic.onnx"), per_channel=True, weight_type=QuantType.QInt8
    )
    quantize_static(
        str(ready),
        str(dense / "onnx" / "ort_static.onnx"),
        Reader(batches),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
    )
    # As OpenVINO's own files: ONNX Runtime refuses the graph of the same that NNCF writes from ONNX.
    quantized = nncf.quantize(
        openvino.convert_model(str(source)),
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION,
    )
    openvino.save_model(quantized, dense / "openvino" / "nncf.xml", compress_to_fp16=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dense, int8 = build(Path(folder), options.layers)
        export_onnx(int8)
        (dense / PATH.parent).mkdir()
        write_graph(dense, dense / PATH.parent / "model.onnx")
        quantize_after_training(dense)
        latency = bench(
            [dense, int8],
            batch_sizes=options.batch_sizes,
            lengths=[options.length],
            rounds=options.rounds,
            threads=options.threads,
            progress=True,
        )
    Console(width=160).print(latency_table(latency))


if __name__ == "__main__":
    main()
