"""Quantize the dense model of `budget.py` without training, by other tools and by ours, into the same table and plot.

    python benchmarks/peers.py --model MODEL --dataset_name GLUE --task_name sst2 --output_dir OUT

Every way is a folder beside the trainings of `budget.py`, which prints and plots them all. `ort` is ONNX Runtime,
`nncf` is NNCF in OpenVINO; both calibrate on the first 128 training rows. `ort-int4-linear` leaves embeddings in
floating point, which is ONNX Runtime's default for 4-bit weights; blocks of 32 weights share a scale. Bytes are all
files that a runtime loads; `zstd` is what they take after `zstd -19`. `shot-5` is this package within 5 MB, rounded
once. Needs the extra `benchmarks`.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import zstandard
from after_training import DYNAMIC, NNCF, STATIC, compress_weights, load_graph, quantize_after_training
from budget import DEFAULTS, DENSE, Task
from judges import Answers
from shot import Way
from torch import nn
from transformers import AutoTokenizer, logging

CALIBRATION, LEVEL = 128, 19
LEFT_OUT = ("fp32", "nncf_linear")
MEGABYTES = (7.0, 5.0, 4.0)


def peers(task: Task, dense: Path) -> Iterator[tuple[str, list[Path], nn.Module]]:
    """Yield the way, the files and the model of each graph that another tool makes of the dense model."""
    few = task.train.select(range(CALIBRATION)).remove_columns("label")
    batches = [{name: np.array([value]) for name, value in row.items()} for row in few]
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch, DENSE)
        shutil.copytree(dense, copied, ignore=shutil.ignore_patterns("run", "*.npz"))
        paths = quantize_after_training(copied, batches)
        paths = {name: paths[name] for name in (DYNAMIC, STATIC, NNCF)} | compress_weights(copied, batches)
        for name, path in paths.items():
            files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
            yield name.replace("_", "-"), files, load_graph(path, copied)


def shots(dense: Path, options: argparse.Namespace) -> Iterator[tuple[str, list[Path], nn.Module]]:
    """Yield the same of the dense model rounded once by this package."""
    judge = Answers(str(dense), options.dataset_name, options.task_name)
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "file")
            judge.shot.write(judge.shot.fitted(Way(), 1e6 * megabytes), folder)
            yield f"shot-{megabytes:g}", list(folder.glob("*.safetensors")), judge.load(str(folder))


def keep(way: str, files: list[Path], model: nn.Module, task: Task, out: Path) -> None:
    """Write bytes, scores and logits of a way as `budget.py` does, without the rows that only choose its options."""
    logits = {name: task.logits(model, rows) for name, rows in task.sets.items() if name != "choice"}
    scores = {name: task.score(found, np.array(task.sets[name]["label"])) for name, found in logits.items()}
    data = [file.read_bytes() for file in files]
    facts = {
        "bytes": sum(map(len, data)),
        "zstd_bytes": sum(len(zstandard.ZstdCompressor(LEVEL).compress(one)) for one in data),
    }
    folder = out / f"{way}-0"
    folder.mkdir(exist_ok=True)
    (folder / "facts.json").write_text(json.dumps(facts | scores) + "\n", encoding="utf-8")
    np.savez(folder / "logits.npz", **logits)
    print(way, facts, scores, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as for budget.py: the model whose tokenizer is used")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    tasks = [name for name in DEFAULTS if name != "stsb"]
    parser.add_argument("--task_name", default="sst2", choices=tasks, help="(%(default)s)")
    parser.add_argument("--output_dir", required=True, type=Path, help="that of budget.py, with its dense model")
    parser.add_argument("--megabytes", nargs="*", type=float, default=MEGABYTES, help="sizes of ours (7 5 4)")
    parser.add_argument("--only_ours", action="store_true", help="skip the other tools")
    options = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    out = options.output_dir / options.task_name
    task = Task(
        argparse.Namespace(**vars(options), **DEFAULTS[options.task_name]),
        AutoTokenizer.from_pretrained(options.model),
    )
    torch.set_grad_enabled(False)
    for way, files, model in () if options.only_ours else peers(task, out / DENSE):
        keep(way, files, model, task, out)
    torch.set_grad_enabled(True)
    for way, files, model in shots(out / DENSE, options) if options.megabytes else ():
        keep(way, files, model, task, out)


if __name__ == "__main__":
    main()
