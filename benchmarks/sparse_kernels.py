"""Measure whether OpenVINO's kernels for sparse weights make our pruned int8 models faster.

    python benchmarks/sparse_kernels.py --models FOLDER

Models of the shapes of MiniLM-L6 and BERT-base, with random weights, are pruned and rounded in a few steps and written
as OpenVINO models for several shares of zeros. OpenVINO compiles each of them twice as it is (the second is the
control) and once with `CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE` below that share; the same graph in ONNX Runtime is the
yardstick. All take turns in one process that is bound to as many cores as it has threads. With one thread, times are
those of the processor, without the time in which other programs had the core. The ratios are speeds relative to
OpenVINO without the property, with a 95 % interval. Needs a CPU with AMX, because OpenVINO ignores the property
elsewhere, and the extra `openvino`.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino.properties.intel_cpu import sparse_weights_decompression_rate
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.export import FORMATS, in_onnx_runtime, write_formats
from hf_compress.report import measure_latency, paired_ratio

VOCABULARY = 30522
SHAPES: dict[str, dict[str, int]] = {
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
    "bert-base": {},
}
FILES = ("onnx", "openvino")
MARGIN = 0.05  # OpenVINO uses sparse kernels for layers with at least this much more zeros than the property says.


def build(folder: Path, shape: str, sparsity: float) -> None:
    """Write a compressed checkpoint of random weights, and its graphs."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **SHAPES[shape]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # Trained models have no biases of zero or scales of one; runtimes would optimize those away.
                parameter.add_(0.02 * torch.randn_like(parameter))
    recipe = Recipe(
        pruning=PruningArguments(prune_sparsity=sparsity, prune_begin=0.0, prune_end=0.5, prune_every=1),
        quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.5),
    )
    ids = torch.randint(VOCABULARY, (8, 128))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(0)} for row in ids]
    arguments = TrainingArguments(
        str(folder.with_name("training")),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=recipe.callbacks()).train()
    save_compressed(model, folder, recipe)
    write_formats(folder, FILES)


def compiled(path: Path, threads: int, rate: float | None = None) -> openvino.CompiledModel:
    """Return the model in OpenVINO; `rate` is the least share of zeros of a layer that gets a sparse kernel."""
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if rate is not None:
        settings |= dict([sparse_weights_decompression_rate(rate)])
    return openvino.Core().compile_model(str(path), "CPU", settings)


def kernels(model: openvino.CompiledModel) -> str:
    """Return how many layers with weights use each kernel, by OpenVINO's names, after a call."""
    counts: Counter[str] = Counter()
    for node in model.get_runtime_model().get_ops():
        known = node.get_rt_info()
        if known["layerType"].astype(str) == "FullyConnected":
            counts[known["primitiveType"].astype(str).lower()] += 1
    return ", ".join(f"{count} {kernel}" for kernel, count in counts.most_common())


def measure(folder: Path, sizes: list[tuple[int, int]], rounds: int, threads: int, sparsity: float) -> None:
    """Print the kernels, and the speed relative to OpenVINO without sparse weights."""
    paths = {name: folder / FORMATS[name].path for name in FILES}
    rates = {"plain": None, "control": None, "sparse": sparsity - MARGIN}
    models = {name: compiled(paths["openvino"], threads, rate) for name, rate in rates.items()}
    session = in_onnx_runtime(paths["onnx"], AutoConfig.from_pretrained(folder), threads)
    for rows, length in sizes:
        ids = np.random.default_rng(0).integers(VOCABULARY, size=(rows, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feeds = {name: feeds[name] for name in session.inputs}
        difference = np.abs(models["plain"](feeds)[0] - models["sparse"](feeds)[0]).max()
        assert difference == 0, f"sparse weights changed the logits by {difference}"
        calls: dict[str, Any] = {name: partial(model, feeds) for name, model in models.items()}
        calls["onnxruntime"] = partial(session.run, feeds)
        seconds = measure_latency(calls, rounds, clock=time.process_time if threads == 1 else time.perf_counter)
        parts = [f"  {rows:2} x {length:3}: {1e3 * np.median(seconds['plain']):7.1f} ms"]
        for name in list(calls)[1:]:
            found = paired_ratio(seconds["plain"], seconds[name])
            parts.append(f"{name} {found.ratio:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f})")
        print("; ".join(parts), flush=True)
    print(f"  kernels: {kernels(models['plain'])}; with the property: {kernels(models['sparse'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="shapes (all)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.6, 0.8, 0.9], help="zeros (0.6 0.8 0.9)")
    parser.add_argument(
        "--sizes", nargs="+", default=["1x8", "1x128", "8x32", "32x128"], help="ROWSxTOKENS of a batch"
    )
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each variant (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime, one per core (%(default)s)")
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and reuse those already there")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    torch.set_num_threads(options.threads)
    sizes = [(int(rows), int(length)) for rows, length in (size.split("x") for size in options.sizes)]
    with tempfile.TemporaryDirectory() as scratch:
        for shape in options.shapes:
            for sparsity in options.sparsities:
                folder = (options.models or Path(scratch)) / f"{shape}-{round(100 * sparsity)}"
                if not (folder / FORMATS[FILES[-1]].path).is_file():
                    build(folder, shape, sparsity)
                print(f"{shape}, {sparsity:.0%} zeros, {options.threads} threads, {options.rounds} rounds", flush=True)
                measure(folder, sizes, options.rounds, options.threads, sparsity)


if __name__ == "__main__":
    main()
