"""Measure how fast a packed file is read: decoding on one core, and `from_pretrained` beside the dense file.

    python benchmarks/decode.py [--rounds 10] [--layers 12]

The model has the shape of BERT-base; 80 % of its linear weights are zero and its scheme is int8. Both files are in
the page cache and take turns. Transformers maps a dense file into memory and reads nothing until a weight is used, so
three ratios are printed: loading alone, loading and a first batch of 1 x 8 tokens, and loading and every weight used
once. The last line is the time to write as many zeros into fresh memory as the weights have bytes: a lower bound for
any decoder.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from sizes import save_packed
from transformers import BertConfig, BertForSequenceClassification, logging

from hf_compress.packing import Packed

WHAT = ("from_pretrained", "from_pretrained and a first batch", "from_pretrained and every weight used")


def decode_speed(folder: Path, rounds: int) -> list[float]:
    """Return decoded MB of float32 weights per second of CPU time, one value per round."""
    speeds = []
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    for _ in range(rounds):
        begun, done = time.process_time(), 0
        for key, tensor in tensors.items():
            done += Packed.open(tensor, key).weight(torch.float32).nbytes
        speeds.append(done / 1e6 / (time.process_time() - begun))
    return speeds


def load_times(folder: Path) -> tuple[float, float, float]:
    """Return the seconds of `from_pretrained`: alone, with a first batch, and with every weight used once."""
    begun = time.perf_counter()
    model = BertForSequenceClassification.from_pretrained(folder)
    loaded = time.perf_counter() - begun
    with torch.no_grad():
        begun = time.perf_counter()
        for parameter in model.parameters():
            parameter.sum()
        used = time.perf_counter() - begun
    del model
    begun = time.perf_counter()
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model(input_ids=torch.arange(1000, 1008).view(1, 8))
    return loaded, time.perf_counter() - begun, loaded + used


def writing_time(size: int) -> float:
    """Return the seconds to write `size` bytes of zeros into fresh memory, on all threads."""
    begun = time.perf_counter()
    torch.empty(size // 4).zero_()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (%(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (%(default)s)")
    options = parser.parse_args()
    rounds = options.rounds
    logging.set_verbosity_error(), logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        folders = {"dense": Path(work) / "dense", "packed": Path(work) / "packed"}
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers))
        model.save_pretrained(folders["dense"])
        save_packed(model, 0.8, "int8", folders["packed"])
        size = sum(parameter.nbytes for parameter in model.parameters())
        del model
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        speeds = decode_speed(folders["packed"], rounds)
        torch.set_num_threads(threads)
        print(f"decode, one thread: {statistics.median(speeds):,.0f} MB/s (slowest round {min(speeds):,.0f})")
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in folders}
        written = []
        for number in range(rounds + 1):
            for name in list(folders)[:: 1 if number % 2 else -1]:
                seconds = load_times(folders[name])
                if number:  # The first round is a warm-up.
                    times[name].append(seconds)
            written.append(writing_time(size))
    for index, what in enumerate(WHAT):
        ratios = sorted(p[index] / d[index] for d, p in zip(times["dense"], times["packed"], strict=True))
        medians = [statistics.median(row[index] for row in rows) for rows in times.values()]
        print(
            f"{what}, {threads} threads: dense {medians[0]:.3f} s, packed {medians[1]:.3f} s, ratio "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    print(f"writing {size / 1e6:.0f} MB of zeros, {threads} threads: {statistics.median(written):.3f} s")


if __name__ == "__main__":
    main()
