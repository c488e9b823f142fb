"""Measure how fast a packed file is read: decoding on one core, and `from_pretrained` beside the dense file.

    python benchmarks/decode.py [--rounds 10] [--layers 12] [--cpu_time]

The model has the shape of BERT-base; 80 % of its linear weights are zero and its scheme is int8. All ways to load take
turns, and all files are in the page cache: the dense file; the packed one as floats and as integers (`run="int8"`);
and both again from a decoded copy that an earlier load has written (`HF_COMPRESS_CACHE`). `made` is the load that
writes the copy. Transformers maps a dense file into memory and reads nothing until a weight is used, so three ratios
to it are printed: loading alone, with a first batch of 1 x 8 tokens, and with every weight used once. GB/s are bytes
of dense float32 weights per second of `from_pretrained`. Garbage is collected before each load, so none pays for the
model before it. The last line is the time to write as many zeros into fresh memory as the weights have bytes: a lower
bound for any decoder to floats.

With `--cpu_time`, times are processor time of all threads of this process: give that on a machine where others work.
"""

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from sizes import prune
from transformers import BertConfig, BertForSequenceClassification, logging

import hf_compress as hfc
from hf_compress.checkpoint import save_compressed
from hf_compress.layers import SCHEMES, quantize_layers
from hf_compress.packing import Packed

WHAT = ("from_pretrained", "and a first batch", "and every weight used")
WAYS = {  # How to load: the run (None for the dense file), and whether to keep a copy.
    "dense": (None, False),
    "packed": ("dense", False),
    "packed, int8": ("int8", False),
    "copy, made": ("dense", True),
    "copy": ("dense", True),
    "copy, int8": ("int8", True),
}


def save_packed(model: BertForSequenceClassification, folder: Path) -> None:
    """Prune and round `model` in one shot, and save it with all that training would have left, ranges included."""
    prune(model, 0.8)
    for layer in quantize_layers(model, SCHEMES["int8"]):
        layer.quantizing, layer.rounded = True, torch.float32
        if layer.has_range:
            layer.input_range = torch.tensor([-1.0, 1.0])
    recipe = hfc.Recipe(
        pruning=hfc.PruningArguments(prune_sparsity=0.8),
        quantization=hfc.QuantizationArguments(quant_scheme="int8"),
    )
    save_compressed(model, folder, recipe)


def decode_speed(folder: Path, rounds: int, dtype: torch.dtype | None) -> list[float]:
    """Return decoded MB of float32 weights per second of CPU time, one value per round; None decodes to integers."""
    speeds = []
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    for _ in range(rounds):
        begun, done = time.process_time(), 0
        for key, tensor in tensors.items():
            done += 4 * Packed.open(tensor, key).begin(dtype)().numel()
        speeds.append(done / 1e6 / (time.process_time() - begun))
    return speeds


def load(folder: Path, run: str | None, cache: bool) -> BertForSequenceClassification:
    if run is None:
        return BertForSequenceClassification.from_pretrained(folder)
    config = hfc.CompressionConfig(run=run, cache=cache)  # type: ignore[arg-type]
    return BertForSequenceClassification.from_pretrained(folder, quantization_config=config)


def load_times(folder: Path, run: str | None, cache: bool, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Return the seconds of `from_pretrained`: alone, with a first batch, and with every weight used once."""
    gc.collect()
    begun = clock()
    model = load(folder, run, cache)
    loaded = clock() - begun
    with torch.no_grad():
        begun = clock()
        for parameter in model.parameters():
            parameter.sum()
        used = clock() - begun
        begun = clock()
        model(input_ids=torch.arange(1000, 1008).view(1, 8))
    return loaded, loaded + clock() - begun, loaded + used


def writing_time(size: int, clock: Callable[[], float]) -> float:
    """Return the seconds to write `size` bytes of zeros into fresh memory, on all threads."""
    begun = clock()
    torch.empty(size // 4).zero_()
    return clock() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (%(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (%(default)s)")
    parser.add_argument("--cpu_time", action="store_true", help="measure processor time, not elapsed time")
    options = parser.parse_args()
    rounds, clock = options.rounds, time.process_time if options.cpu_time else time.perf_counter
    warnings.filterwarnings("ignore", "You passed `quantization_config`")
    logging.set_verbosity_error(), logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_COMPRESS_CACHE_DIR"] = str(Path(work) / "copies")
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers))
        model.save_pretrained(Path(work) / "dense")
        save_packed(model, Path(work) / "packed")
        size = sum(parameter.nbytes for parameter in model.parameters())
        del model
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for name, dtype in (("float32", torch.float32), ("int8", None)):
            speeds = decode_speed(Path(work) / "packed", rounds, dtype)
            print(f"decode to {name}, one thread: {statistics.median(speeds):,.0f} MB/s (slowest {min(speeds):,.0f})")
        torch.set_num_threads(threads)
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in WAYS}
        written = []
        for number in range(rounds + 1):
            for name in list(WAYS)[:: 1 if number % 2 else -1]:
                if name == "copy, made":
                    shutil.rmtree(Path(work) / "copies", ignore_errors=True)
                    load(Path(work) / "packed", "int8", cache=True)  # Only the copy of floats is made in this turn.
                run, cache = WAYS[name]
                seconds = load_times(Path(work) / ("dense" if run is None else "packed"), run, cache, clock)
                if number:  # The first round is a warm-up.
                    times[name].append(seconds)
            written.append(writing_time(size, clock))
    for name, rows in times.items():
        alone = statistics.median(row[0] for row in rows)
        cells = []
        for index, what in enumerate(WHAT):
            ratios = sorted(one[index] / dense[index] for one, dense in zip(rows, times["dense"], strict=True))
            cells.append(f"{what} x {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"{name}, {threads} threads: {alone:.3f} s, {size / 1e9 / alone:.2f} GB/s, {', '.join(cells)}")
    print(f"writing {size / 1e6:.0f} MB of zeros, {threads} threads: {statistics.median(written):.3f} s")


if __name__ == "__main__":
    main()
