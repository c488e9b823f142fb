"""How fast the int8 graph is: beside torch and the fp32 graph, and beside what others quantize after training.

A BERT of the shape of BERT-base (random weights, its ranges trained on random tokens) is written as
`onnx/model_quantized.onnx`; its dense twin as fp32, as ONNX Runtime's `quantize_dynamic` and `quantize_static` make
it, and as NNCF makes it for OpenVINO. All run in turns in one process, in both runtimes (`hf-compress bench`).

    python benchmarks/onnx_speed.py --threads 2 --rounds 20
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from after_training import quantize_after_training
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import QuantizationArguments, Recipe, export_onnx, save_compressed
from hf_compress.bench import VARIANTS, bench, latency_table

VOCABULARY, CALIBRATION = 30522, 8


def build(folder: Path, layers: int) -> None:
    """Write a dense checkpoint of the shape of BERT-base, and the same after some steps of training for int8."""
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
    save_compressed(model, folder / "int8", recipe)


def random_tokens() -> list[dict[str, np.ndarray]]:
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(CALIBRATION, 1, 128))
    return [
        {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)} for row in ids
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--models", type=Path, help="folder to keep the models in, and to find them in the next time")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        if not (folder / "dense" / "openvino").is_dir():
            build(folder, options.layers)
            export_onnx(folder / "int8")
            quantize_after_training(folder / "dense", random_tokens())
        latency = bench(
            [folder / "dense", folder / "int8"],
            batch_sizes=options.batch_sizes,
            lengths=[options.length],
            rounds=options.rounds,
            threads=options.threads,
            variants=options.variants,
            progress=True,
        )
    Console(width=160).print(latency_table(latency))


if __name__ == "__main__":
    main()
