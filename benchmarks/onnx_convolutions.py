"""Measure what convolutions cost in ONNX Runtime: as products of integers, on dequantized integers, and as floats.

    python benchmarks/onnx_convolutions.py --rounds 15

The model has the feature extractor of Wav2Vec2-base (seven convolutions of 512 channels), with random weights, and one
small layer behind it. Its three graphs take turns in one thread on one waveform; ratios are of processor time to ours,
with 95 % intervals, and `control` is our graph a second time.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import onnxruntime
import torch
from transformers import AutoModelForAudioClassification, Wav2Vec2Config

from hf_compress import QuantizationArguments, Recipe, save_compressed
from hf_compress.export import write_graph
from hf_compress.layers import SCHEMES, quantize_layers
from hf_compress.models import find_head
from hf_compress.report import measure_latency, paired_ratio

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}


def folders(work: Path) -> tuple[Path, Path]:
    """Return the folders of a dense and of an int8 model."""
    config = Wav2Vec2Config(**SIZES, feat_extract_norm="layer", apply_spec_augment=False)
    model = AutoModelForAudioClassification.from_config(config).eval()
    dense = save_compressed(model, work / "dense", Recipe())
    layers = quantize_layers(model, SCHEMES["int8"])
    batch = find_head(model).example_batch(model)
    with torch.no_grad():
        for layer in layers:
            layer.observing = True
        model.train()(**batch)
        for layer in layers:
            layer.quantizing, layer.observing = True, False
            if layer.has_range and layer.step_range is not None:
                layer.input_range.copy_(layer.step_range)
        model.eval()(**batch)
    options = QuantizationArguments(quant_scheme="int8")
    return dense, save_compressed(model, work / "int8", Recipe(quantization=options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each graph (%(default)s)")
    parser.add_argument("--samples", type=int, default=16000, help="of the waveform (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        dense, int8 = folders(work)
        write_graph(dense, work / "float.onnx")
        write_graph(int8, work / "ours.onnx")
        with mock.patch("hf_compress.export.onnx_nodes.becomes_product", return_value=False):
            write_graph(int8, work / "dequantized.onnx")
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = 1
        sessions = {
            name: onnxruntime.InferenceSession(work / f"{name}.onnx", threads)
            for name in ("ours", "dequantized", "float")
        }
        sessions["control"] = onnxruntime.InferenceSession(work / "ours.onnx", threads)
        wave = torch.randn(1, options.samples).numpy()
        feeds = {"input_values": wave}
        if "attention_mask" in [node.name for node in sessions["ours"].get_inputs()]:
            feeds["attention_mask"] = torch.ones(1, options.samples, dtype=torch.long).numpy()
        calls = {name: partial(session.run, None, feeds) for name, session in sessions.items()}
        seconds = measure_latency(calls, options.rounds, clock=time.process_time)
        for name in ("dequantized", "float", "control"):
            found = paired_ratio(seconds[name], seconds["ours"])
            print(f"{name:12} takes {found.ratio:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f}) x")


if __name__ == "__main__":
    main()
