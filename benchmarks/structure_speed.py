"""Measure how much faster int8 graphs become without some neurons, heads or layers.

    python benchmarks/structure_speed.py --threads 2 --rounds 20
    python benchmarks/structure_speed.py --threads 2 --rounds 20 --shape minilm
    python benchmarks/structure_speed.py --threads 1 --rounds 20 --shape minilm --cpu_time

A model of the shape of BERT-base or MiniLM-L6 with random weights is quantized to int8, whole and without 25, 50 and
75 % of its neurons, its heads or both, or without a quarter, a half and three quarters of its layers. Each is exported
to ONNX. All variants take turns in one process (`hf-compress bench`); speed-ups are over torch in fp32. The weights do
not matter for speed, so nothing is trained but ranges of inputs. With `--cpu_time` speed-ups are over the whole int8
graph, in ONNX Runtime with one thread, by the time of the processor, which a busy machine changes less.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from onnx_speed import VOCABULARY
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, export_onnx, save_compressed, student_from
from hf_compress.export import FORMATS
from hf_compress.speed import compare_graphs

SHAPES = {
    "bert-base": {"num_hidden_layers": 12},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536},
}
PATTERNS = ("neurons", "heads", "neurons+heads")
LAYERS = "layers"


def build(folder: Path, shape: str, pattern: str | None, share: float) -> None:
    """Write a compressed checkpoint and its graph, without a share of its neurons, heads or layers."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **SHAPES[shape]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # Runtimes would optimize biases of zero and scales of one away.
                parameter.add_(0.02 * torch.randn_like(parameter))
    pruning = {}
    if pattern == LAYERS:
        model = student_from(model, round((1 - share) * model.config.num_hidden_layers))
    elif pattern is not None:
        pruning = {
            "prune_sparsity": share,
            "prune_initial_sparsity": share,
            "prune_begin": 0,
            "prune_pattern": pattern,
        }
    recipe = Recipe(
        pruning=PruningArguments(**pruning),
        quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.3),
    )
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(0)}
        for row in torch.randint(VOCABULARY, (4, 128))
    ]
    arguments = TrainingArguments(
        str(folder.parent / "training"),
        max_steps=3,
        per_device_train_batch_size=1,
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=recipe.callbacks()).train()
    export_onnx(save_compressed(model, folder, recipe))


def faster(models: Path, name: str, rows: int, options: argparse.Namespace) -> str:
    """Return how many times faster a graph is than the whole one, with a 95 % interval."""
    torch.set_num_threads(1)
    ids = torch.randint(VOCABULARY, (rows, options.length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    whole, smaller = (models / one / FORMATS["onnx"].path for one in ("whole", name))
    config = AutoConfig.from_pretrained(models / "whole")
    found = compare_graphs(whole, smaller, config, batch, options.rounds)
    return f"{found.ratio:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f}) x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="bert-base", choices=SHAPES, help="(%(default)s)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="(0.25 0.5 0.75)")
    parser.add_argument("--patterns", nargs="+", default=[*PATTERNS, LAYERS], help="(all four)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each runtime (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls per variant (%(default)s)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32], help="rows (1 32)")
    parser.add_argument("--length", type=int, default=128, help="tokens per row (%(default)s)")
    parser.add_argument("--cpu_time", action="store_true", help="time of the processor, beside the whole int8 graph")
    parser.add_argument("--models", type=Path, help="keep the models in this folder, and reuse those already there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = (options.models or Path(scratch)) / options.shape
        wanted = {"whole": (None, 0.0)} | {
            f"{pattern}-{round(100 * share)}": (pattern, share)
            for pattern in options.patterns
            for share in options.shares
        }
        for name, (pattern, share) in wanted.items():
            if not (models / name / "onnx").is_dir():
                build(models / name, options.shape, pattern, share)
        if options.cpu_time:
            for name in [*wanted][1:]:
                for rows in options.batch_sizes:
                    print(name, f"{rows} x {options.length}", faster(models, name, rows, options), flush=True)
            return
        bench = [str(Path(sys.executable).with_name("hf-compress")), "bench"]
        bench += [str(models / name) for name in wanted]
        bench += ["--batch-size", ",".join(map(str, options.batch_sizes)), "--length", str(options.length)]
        bench += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
        bench += ["--variants", "torch-fp32,onnxruntime,openvino"]
        subprocess.run(bench, check=True)


if __name__ == "__main__":
    main()
