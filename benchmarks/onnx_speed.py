"""Measure the speed of our int8 graph beside torch, the fp32 graph, and graphs quantized after training.

    python benchmarks/onnx_speed.py --threads 2 --rounds 20
    python benchmarks/onnx_speed.py --threads 2 --rounds 20 --beside_nncf

The model has the shape of BERT-base, with random weights and ranges trained on random tokens. It is exported for
`int8` and for `int8-attention`. Its dense twin is exported as fp32, and quantized by ONNX Runtime
(`quantize_dynamic`, `quantize_static`) and by NNCF for OpenVINO. All variants take turns in one process (`hf-compress
bench`). With `--beside_nncf` only ours and NNCF's run, in OpenVINO, and ratios are to NNCF's. Needs the extra
`benchmarks`.
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from after_training import NNCF, NNCF_LINEAR, quantize_after_training
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import QuantizationArguments, Recipe, export_onnx, save_compressed
from hf_compress.export import FORMATS, in_openvino
from hf_compress.report import measure_latency, paired_ratio

VOCABULARY, CALIBRATION = 30522, 8
SCHEMES = ("int8", "int8-attention")


def build_dense(folder: Path, layers: int) -> None:
    """Write a dense checkpoint of the shape of BERT-base."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # Trained models have no biases of zero or scales of one; runtimes would optimize those away.
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder / "dense")


def build_quantized(folder: Path, scheme: str) -> None:
    """Train the dense checkpoint for a few steps with `scheme`, and write the compressed checkpoint and its graph."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(folder / "dense")
    recipe = Recipe(quantization=QuantizationArguments(quant_scheme=scheme, quant_begin=0.3))
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
    save_compressed(model, folder / scheme, recipe)
    export_onnx(folder / scheme)


def beside_nncf(folder: Path, shapes: list[tuple[int, int]], rounds: int, threads: int) -> None:
    """Print the speed-up of our graphs over NNCF's in OpenVINO, with a 95 % interval."""
    config = AutoConfig.from_pretrained(folder / "dense")
    paths = {name: folder / "dense" / "openvino" / f"{name}.xml" for name in (NNCF, NNCF_LINEAR)}
    paths |= {scheme: folder / scheme / FORMATS["onnx"].path for scheme in SCHEMES}
    models = {name: in_openvino(path, config, threads) for name, path in paths.items()}
    for shape in shapes:
        ids = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
        calls = {name: partial(model, input_ids=ids) for name, model in models.items()}
        seconds = measure_latency(calls, rounds)
        for name in models:
            ratio = paired_ratio(seconds[NNCF], seconds[name])
            low, high = ratio.interval
            print(
                f"{shape[0]:3} x {shape[1]} {name:15} {1e3 * np.median(seconds[name]):8.1f} ms, fastest "
                f"{1e3 * min(seconds[name]):8.1f}; {ratio.ratio:.3f} ({low:.3f} to {high:.3f}) x the speed of NNCF's"
            )


def random_tokens() -> list[dict[str, np.ndarray]]:
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(CALIBRATION, 1, 128))
    return [
        {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)} for row in ids
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each runtime (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls per variant (%(default)s)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32], help="rows (1 32)")
    parser.add_argument("--length", type=int, default=128, help="tokens per row (%(default)s)")
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and reuse those already there")
    parser.add_argument("--variants", nargs="+", help="as in `hf-compress bench` (all)")
    parser.add_argument("--beside_nncf", action="store_true", help="only our graphs and NNCF's, in OpenVINO")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.models or Path(scratch)
        if not (folder / "dense" / "openvino").is_dir():
            build_dense(folder, options.layers)
            for scheme in SCHEMES:
                build_quantized(folder, scheme)
            quantize_after_training(folder / "dense", random_tokens())
        if options.beside_nncf:
            shapes = [(rows, options.length) for rows in options.batch_sizes]
            beside_nncf(folder, shapes, options.rounds, options.threads)
            return
        bench = [str(Path(sys.executable).with_name("hf-compress")), "bench"]
        bench += [str(folder / name) for name in ("dense", *SCHEMES)]
        bench += ["--batch-size", ",".join(map(str, options.batch_sizes)), "--length", str(options.length)]
        bench += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
        bench += ["--variants", ",".join(options.variants)] if options.variants else []
        subprocess.run(bench, check=True)


if __name__ == "__main__":
    main()
