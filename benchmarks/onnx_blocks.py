"""Measure how many weights of files with fixed steps fit in four bits, and what 4-bit blocks give an ONNX graph.

    python benchmarks/onnx_blocks.py --compressed SMALL SMALLER --rounds 40

For each packed folder: the share of tensors, weights and rows whose integers lie within -8 to 7; and the bytes of the
int8 graph in the folder (written if it is missing), as it is and zipped, beside those of its packed file. Then one
graph of linear layers of the first model's widths, as the int8 graph has them and with `MatMulNBits` (blocks of 32
weights that repeat the step of their row, `accuracy_level` 4): both take turns in one process. Ratios are of paired
calls, with a 95 % interval. Needs the extra `benchmarks`.
"""

import argparse
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

from hf_compress import export_onnx
from hf_compress.checkpoint import packed_tensors
from hf_compress.export import FORMATS
from hf_compress.report import measure_latency, paired_ratio

BLOCK, NIBBLE = 32, 8
LAYERS = ((384, 384), (384, 384), (384, 384), (384, 1536), (1536, 384))  # Inputs and outputs, as MiniLM has them.
BOTH = "int8", "blocks"


def print_shares(folder: Path) -> None:
    """Print which shares of the quantized weights in `folder` fit in four bits."""
    for kind in ("embeddings", "linear layers"):
        whole = tensors = weights = fitting = in_rows = 0
        for packed in packed_tensors(folder / "model.safetensors", {}):
            if packed.scale() is None or ("embeddings" in packed.key) != (kind == "embeddings"):
                continue
            values = packed.values().short()
            fits = ((values >= -NIBBLE) & (values < NIBBLE)).all(1)
            tensors, weights = tensors + 1, weights + values.numel()
            whole, in_rows = whole + bool(fits.all()), in_rows + int(fits.sum()) * values.shape[1]
            fitting += values.numel() * bool(fits.all())
        print(
            f"{folder.name} {kind:13} {whole:3} of {tensors} tensors whole, {fitting / weights:6.1%} of the weights, "
            f"in whole rows {in_rows / weights:6.1%}"
        )


def print_sizes(folder: Path) -> None:
    """Print the bytes of the graph of `folder`, also zipped, and of its packed file."""
    graph = folder / FORMATS["onnx"].path
    if not graph.is_file():
        export_onnx(folder)
    with tempfile.TemporaryDirectory() as scratch:
        zipped = Path(scratch, "graph.zip")
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(graph, graph.name)
        sizes = [path.stat().st_size / 1e6 for path in (folder / "model.safetensors", graph, zipped)]
    print(f"{folder.name:10} packed {sizes[0]:.2f} MB, int8 graph {sizes[1]:.2f} MB, zipped {sizes[2]:.2f} MB")


def build(path: Path, blocks: bool) -> None:
    """Write a graph of parallel linear layers with random small integers, as int8 with ranges or as 4-bit blocks."""
    draw = np.random.default_rng(0)
    nodes, stored, inputs, outputs = [], [], {}, []
    for place, (width, out) in enumerate(LAYERS):
        given = f"x{width}"
        inputs[given] = helper.make_tensor_value_info(given, TensorProto.FLOAT, ["tokens", width])
        integers = draw.integers(-NIBBLE + 1, NIBBLE, (width, out), dtype=np.int8)
        step = draw.uniform(0.01, 0.02, out).astype(np.float32)
        result = f"y{place}"
        outputs.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, ["tokens", out]))

        def add(name: str, array: np.ndarray, place: int = place) -> str:
            stored.append(numpy_helper.from_array(array, f"{name}{place}"))
            return f"{name}{place}"

        if blocks:
            unsigned = (integers.T + NIBBLE).astype(np.uint8).reshape(out, width // BLOCK, BLOCK)
            pairs = add("weight", unsigned[..., ::2] | (unsigned[..., 1::2] << 4))
            scales = add("step", np.repeat(step, width // BLOCK))
            known = {"K": width, "N": out, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            nodes.append(
                helper.make_node("MatMulNBits", [given, pairs, scales], [result], domain="com.microsoft", **known)
            )
        else:
            scale, zero = add("scale", np.float32(0.02)), add("zero", np.uint8(128))
            nodes += [
                helper.make_node("QuantizeLinear", [given, scale, zero], [f"q{place}"]),
                helper.make_node("DequantizeLinear", [f"q{place}", scale, zero], [f"d{place}"]),
                helper.make_node(
                    "DequantizeLinear", [add("weight", integers), add("step", step)], [f"w{place}"], axis=1
                ),
                helper.make_node("MatMul", [f"d{place}", f"w{place}"], [result]),
            ]
    graph = helper.make_graph(nodes, "layers", list(inputs.values()), outputs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def in_onnx_runtime(path: Path, threads: int) -> Callable[[dict[str, np.ndarray]], object]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return partial(session.run, None)


def in_openvino(path: Path, threads: int) -> Callable[[dict[str, np.ndarray]], object]:
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(str(path), "CPU", settings)


def print_speed(rounds: int, threads: int, tokens: list[int]) -> None:
    """Print how fast the layers run as blocks, relative to int8."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch, f"{name}.onnx") for name in BOTH}
        for name, path in paths.items():
            build(path, blocks=name == "blocks")
            print(f"{name:6} graph of {len(LAYERS)} layers: {path.stat().st_size / 1e6:.3f} MB")
        for runtime, load in (("ONNX Runtime", in_onnx_runtime), ("OpenVINO", in_openvino)):
            try:
                models = {name: load(path, threads) for name, path in paths.items()}
            except RuntimeError as error:
                print(f"{runtime} refuses a graph: {str(error).strip().splitlines()[0]}")
                continue
            for count in tokens:
                draw = np.random.default_rng(1)
                feeds = {f"x{width}": draw.normal(size=(count, width)).astype(np.float32) for width, _ in set(LAYERS)}
                calls = {name: partial(model, feeds) for name, model in models.items()}
                seconds = measure_latency(calls, rounds)
                ratio = paired_ratio(seconds["int8"], seconds["blocks"])
                low, high = ratio.interval
                print(
                    f"{runtime:12} {count:5} tokens: int8 {1e3 * np.median(seconds['int8']):7.3f} ms, blocks "
                    f"{1e3 * np.median(seconds['blocks']):7.3f} ms; {ratio.ratio:.2f} ({low:.2f} to {high:.2f}) x the "
                    "speed"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressed", type=Path, nargs="+", default=[], help="packed folders with fixed steps")
    parser.add_argument("--rounds", type=int, default=40, help="timed calls per variant (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime (%(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32, 512], help="rows of the inputs (1 32 512)")
    options = parser.parse_args()
    for folder in options.compressed:
        print_shares(folder)
    for folder in options.compressed:
        print_sizes(folder)
    print_speed(options.rounds, options.threads, options.tokens)


if __name__ == "__main__":
    main()
