"""Compare zeros with 8-bit rows against steps by sensitivity at the same file size, rounded once, without training.

    python benchmarks/zeros.py --model FINE_TUNED --dataset_name GLUE --task_name sst2
    python benchmarks/zeros.py --model MODEL --dataset_name GLUE

`zeros + int8` sets the smallest weights of each linear layer to zero and rounds the rest, and the embeddings, to 8
bits with one scale per row. `+ feedback` makes up for both errors in the weights that stay (SparseGPT). Its bytes are
then given to `steps` without zeros, and to `zeros + steps`. With `--megabytes`, more zeros come first and steps spend
the rest of these sizes. Columns are those of `rate.py`, on development sets.
"""

import argparse
import tempfile
from pathlib import Path

from budget import DEFAULTS
from judges import Answers, Embeddings, Judge
from shot import INT8_ROWS, Way
from transformers import logging

from hf_compress.rate import Rounded
from hf_compress.study.grid import TASKS


def row(judge: Judge, name: str, zeros: float, weights: dict[str, Rounded]) -> int:
    """Print the row of a way, and return the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        size = judge.shot.write(weights, Path(folder, "file"))
        scores = judge.scores(str(Path(folder, "file")))
    print(f"| {size / 1e6:.2f} | {name} | {zeros:.0%} | {' | '.join(scores)} |", flush=True)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="sentence embedder or fine-tuned classifier")
    parser.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE: Hub id or folder (%(default)s)")
    tasks = [name for name in DEFAULTS if not TASKS[name].regression]
    parser.add_argument("--task_name", choices=tasks, help="GLUE task of a classifier")
    parser.add_argument("--sparsity", nargs="*", type=float, default=[0.6], help="(0.6)")
    parser.add_argument("--megabytes", nargs="*", type=float, default=[5.0], help="(5)")
    parser.add_argument("--first", nargs="*", type=float, default=[0.0, 0.3, 0.6], help="zeros of these (0 0.3 0.6)")
    options = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    judge: Judge
    if options.task_name is None:
        judge = Embeddings(options.model, options.dataset_name)
    else:
        judge = Answers(options.model, options.dataset_name, options.task_name, further=False)
    print(f"| MB | numbers chosen by | zeros | {' | '.join(judge.heads)} |")
    print("| ---: | --- |" + " ---: |" * (1 + len(judge.heads)))
    rows = {"step": "row maximum", "tokens": False, "positions": False}
    for zeros in options.sparsity:
        plain = judge.shot.at(Way(feedback=False, zeros=zeros, **rows), INT8_ROWS)
        size = row(judge, "zeros + int8", zeros, plain)
        row(judge, "zeros + int8 + feedback", zeros, judge.shot.at(Way(zeros=zeros, **rows), INT8_ROWS))
        row(judge, "zeros + steps", zeros, judge.shot.fitted(Way(zeros=zeros), size))
        row(judge, "steps", 0, judge.shot.fitted(Way(), size))
    for megabytes in options.megabytes:
        for zeros in options.first:
            row(
                judge,
                "zeros + steps" if zeros else "steps",
                zeros,
                judge.shot.fitted(Way(zeros=zeros), 1e6 * megabytes),
            )


if __name__ == "__main__":
    main()
