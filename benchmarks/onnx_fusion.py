"""Measure what the shapes of inner values cost in ONNX Runtime, which fuses more where a graph tells them.

    python benchmarks/onnx_fusion.py COMPRESSED --rounds 25

COMPRESSED is a folder with an ONNX graph of ours. Its twin has the shapes that ONNX infers for all inner values. Both
take turns in one thread; ratios are of processor time, with 95 % intervals, and `control` is the graph a second time.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from hf_compress.export import FORMATS
from hf_compress.report import measure_latency, paired_ratio


def session_of(path: Path, annotated: bool) -> onnxruntime.InferenceSession:
    """Return a session in one thread; with `annotated` shapes are known, as symbols where they vary."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not annotated:
        return onnxruntime.InferenceSession(path, options)
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "graph.onnx"
        onnx.save(_annotated(onnx.load(path)), twin)
        return onnxruntime.InferenceSession(twin, options)


def _annotated(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    return SymbolicShapeInference.infer_shapes(model, auto_merge=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="COMPRESSED")
    parser.add_argument("--rounds", type=int, default=25, help="timed calls of each graph (%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["1x16", "1x128", "16x128"], help="rows x tokens (%(default)s)")
    options = parser.parse_args()
    path = options.folder / FORMATS["onnx"].path
    sessions = {name: session_of(path, name == "annotated") for name in ("ours", "annotated", "control")}
    for size in options.sizes:
        rows, tokens = map(int, size.split("x"))
        feed = {node.name: np.ones((rows, tokens), np.int64) for node in sessions["ours"].get_inputs()}
        calls: dict[str, Any] = {name: partial(one.run, None, feed) for name, one in sessions.items()}
        seconds = measure_latency(calls, options.rounds, clock=time.process_time)
        for name in ("annotated", "control"):
            found = paired_ratio(seconds[name], seconds["ours"])
            print(f"{size:7} {name:9} takes {found.ratio:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f}) x")


if __name__ == "__main__":
    main()
