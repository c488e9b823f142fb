"""Measure the table of latency of an architecture, and how far the speed-ups that it predicts are from measured ones.

    python benchmarks/speedup.py --hidden 384 --layers 6 --heads 12 --neurons 1536 --targets 1.5 2 2.5

A BERT with random weights and the int8 graph, in ONNX Runtime. For each target, neurons and heads are chosen with
random losses, so that blocks keep different numbers. The graph with these numbers and the whole one then take turns.
It prints the table, and for each target the predicted and the measured speed-up with its 95 % interval. With one
thread the time is that of the process, which other programs do not disturb. Needs the extra `onnx`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertForSequenceClassification

from hf_compress import QuantizationArguments
from hf_compress.prune import SpeedGoal
from hf_compress.speed import Graphs, compare_graphs, measure_table

KINDS = ("neurons", "heads")
INT8 = QuantizationArguments(quant_scheme="int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 384), ("layers", 6), ("heads", 12), ("neurons", 1536), ("batch", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--targets", type=float, nargs="+", default=[1.25, 1.5, 2.0, 2.5])
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    config = BertConfig(
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        intermediate_size=given.neurons,
    )
    began = time.process_time()
    table = measure_table(BertForSequenceClassification, config, INT8, KINDS, batch=given.batch, length=given.length)
    print(f"{table.runtime}, {table.machine}: measured in {time.process_time() - began:.0f} s of processor time")
    for course in table.courses:
        shares = ", ".join(f"{kept}: {share:.3f}" for kept, share in zip(course.kept, course.shares, strict=True))
        print(f"{course.kind} of {course.blocks} blocks: {shares}")
    print(f"at most {table.most:.2f} times as fast")
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        graphs = Graphs(BertForSequenceClassification, config, INT8, Path(scratch), KINDS)
        inputs = graphs.batch(given.batch, given.length)
        for target in given.targets:
            goal = SpeedGoal(target, table)
            if not goal.possible:
                print(f"target {target:.2f}: not possible")
                continue
            kept = goal.allot(graphs.blocks, [10 ** draw.normal(0, 1, block.count) for block in graphs.blocks])
            found = compare_graphs(graphs.whole, graphs.write(kept), graphs.config, inputs, given.rounds)
            low, high = found.interval
            predicted = table.speedup(graphs.blocks, kept)
            print(
                f"target {target:.2f}: predicted {predicted:.2f}, measured {found.ratio:.2f} ({low:.2f} to {high:.2f})"
            )


if __name__ == "__main__":
    main()
