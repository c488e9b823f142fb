"""Measure what a file size costs a model that is rounded once, without training, and what each ingredient is worth.

    python benchmarks/rate.py --model MODEL --dataset_name GLUE
    python benchmarks/rate.py --model FINE_TUNED --dataset_name GLUE --task_name sst2

Without `--task_name`, MODEL is a mean-pooled sentence embedder. `distortion` is then 1,000 x (1 - cosine) of the
embeddings to the dense ones, and `rho` the Spearman correlation x 100 with the labels of STS-B, both over 1,000 rows
of its development set. With it, `KL` is the divergence of the answers from the dense model's on the development set,
in millinats; `dev` and `further` are scores x 100, the latter on 2,000 rows that no training
saw. In brackets: 95 % intervals over rows. `MB` is the file; scores are those of the reloaded file, and inputs of
layers are not rounded.
"""

import argparse
import tempfile
from pathlib import Path

from budget import DEFAULTS
from judges import Answers, Embeddings, Judge
from shot import Way
from transformers import logging

from hf_compress.study.grid import TASKS

PLAIN = {"feedback": False, "tokens": False, "positions": False}
WAYS = {
    "row maximum": Way("row maximum", **PLAIN),
    "deviation": Way("deviation", **PLAIN),
    "sensitivity": Way(**PLAIN),
    "+ feedback": Way(tokens=False, positions=False),
    "+ tokens": Way(positions=False),
    "+ positions: all": Way(),
    "all, but deviation for sensitivity": Way("deviation"),
    "all but feedback": Way(feedback=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="sentence embedder or fine-tuned classifier")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    tasks = [name for name in DEFAULTS if not TASKS[name].regression]
    parser.add_argument("--task_name", choices=tasks, help="GLUE task of a classifier")
    parser.add_argument("--megabytes", nargs="+", type=float, default=[7.0, 5.0], help="file sizes (7 5)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="(all)")
    parser.add_argument("--cut_vocabulary", action="store_true", help="first remove what no training text contains")
    options = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    judge: Judge
    if options.cut_vocabulary and options.task_name is None:
        parser.error("`--cut_vocabulary` needs `--task_name`, whose training texts say which words stay.")
    if options.task_name is None:
        judge = Embeddings(options.model, options.dataset_name)
    else:
        judge = Answers(options.model, options.dataset_name, options.task_name, cut=options.cut_vocabulary)
    print(f"| budget | numbers chosen by | MB | {' | '.join(judge.heads)} |")
    print("| --- | --- |" + " ---: |" * (1 + len(judge.heads)))
    size = sum(parameter.nbytes for parameter in judge.shot.dense.parameters())
    print(f"| | dense | {size / 1e6:.2f} | {' | '.join(judge.scores(options.model))} |", flush=True)
    for megabytes in options.megabytes:
        for name in options.ways:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "file")
                size = judge.shot.write(judge.shot.fitted(WAYS[name], 1e6 * megabytes), file)
                scores = judge.scores(str(file))
            print(f"| {megabytes:g} MB | {name} | {size / 1e6:.2f} | {' | '.join(scores)} |", flush=True)


if __name__ == "__main__":
    main()
