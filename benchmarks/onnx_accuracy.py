"""Compare the accuracy of our int8 graph with that of graphs quantized after training from the same dense model.

    python benchmarks/onnx_accuracy.py --dense DENSE --compressed COMPRESSED... --dataset_name nyu-mll/glue

All graphs answer the same rows: the task's validation split, and with `--held_out A B` also rows A to B of the
training split, which neither model may have been trained on. The other tools calibrate on the first 128 training
rows. `difference` is to our first graph on the same rows, with a 95 % interval from McNemar's standard error. Needs
the extra `benchmarks`.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from after_training import load_graph, quantize_after_training
from datasets import Dataset, load_dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_compress import export_onnx
from hf_compress.export import FORMATS, in_onnx_runtime, in_openvino
from hf_compress.study.grid import TASKS

CALIBRATION, BATCH = 128, 32


def right(model: nn.Module, rows: Dataset, tokenizer: object, columns: tuple[str, ...]) -> np.ndarray:
    """Return for each of `rows` whether `model` predicts its label."""
    answers = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        inputs = tokenizer(*(batch[name] for name in columns), truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            answers.append(model(**inputs)["logits"].argmax(-1).numpy() == np.array(batch["label"]))
    return np.concatenate(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="folder of the dense model")
    parser.add_argument("--compressed", type=Path, required=True, nargs="+", help="folders of compressed models")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder")
    tasks = [name for name in TASKS if not TASKS[name].regression]
    parser.add_argument("--task_name", default="sst2", choices=tasks, help="GLUE task (%(default)s)")
    parser.add_argument(
        "--held_out", type=int, nargs=2, metavar=("A", "B"), help="also use these rows of the training split"
    )
    parser.add_argument("--rows", type=int, help="use this many rows of each split only")
    options = parser.parse_args()
    task, tokenizer = TASKS[options.task_name], AutoTokenizer.from_pretrained(options.dense)
    data = load_dataset(options.dataset_name, options.task_name)
    rows = {"validation": data[task.validation]}
    if options.held_out:
        rows["held out"] = data["train"].select(range(*options.held_out))
    if options.rows:
        rows = {split: some.select(range(min(options.rows, len(some)))) for split, some in rows.items()}
    with tempfile.TemporaryDirectory() as scratch:
        dense = Path(scratch, "dense")
        shutil.copytree(options.dense, dense, ignore=shutil.ignore_patterns("checkpoint-*", "onnx", "openvino"))
        few = data["train"].select(range(CALIBRATION))
        batches = [
            dict(tokenizer(*(row[name] for name in task.sentences), truncation=True, return_tensors="np"))
            for row in few
        ]
        models: dict[str, tuple[nn.Module, int]] = {}
        for folder in options.compressed:
            graph = folder / FORMATS["onnx"].path
            if not graph.is_file():
                export_onnx(folder, [{name: torch.from_numpy(v) for name, v in row.items()} for row in batches])
            for name, runtime in (("ONNX Runtime", in_onnx_runtime), ("OpenVINO", in_openvino)):
                label = f"ours {folder.parent.name} in {name}"
                models[label] = load_graph(graph, folder, runtime), graph.stat().st_size
        torch_model = AutoModelForSequenceClassification.from_pretrained(dense).eval()
        models["dense in torch"] = torch_model, (dense / "model.safetensors").stat().st_size
        for name, path in quantize_after_training(dense, batches).items():
            weights = path.with_suffix(".bin") if path.suffix == ".xml" else path
            models[f"dense, {name}"] = load_graph(path, dense), weights.stat().st_size
        for split, some in rows.items():
            print(f"\n{options.task_name} {split}, {len(some):,} rows")
            print(f"{'graph':44} {'MB':>7} {'accuracy':>9} {'difference':>11} {'95 %':>16}")
            ours = None
            for name, (model, size) in models.items():
                found = right(model, some, tokenizer, task.sentences)
                ours = found if ours is None else ours
                apart = found.astype(float) - ours
                error = 1.96 * 100 * apart.std() / np.sqrt(len(apart))
                mean = 100 * apart.mean()
                interval = f"{mean - error:+.2f} to {mean + error:+.2f}"
                print(f"{name:44} {size / 1e6:7.2f} {100 * found.mean():9.2f} {mean:+11.2f} {interval:>16}")


if __name__ == "__main__":
    main()
