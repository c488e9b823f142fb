"""How fast a packed file is read: MB/s of dense bytes on one core, and `from_pretrained` to that of the dense file.

    python benchmarks/decode.py [--rounds 10]

A BERT-base, 80 % of its linear layers zero, int8. Both files are in the page cache, and take turns. Transformers maps
a dense file and reads nothing until a weight is used; so the second ratio has a first batch of 1 x 8 tokens, and the
third every weight used once. Below them, how long it takes to write as many zeros into fresh memory as the weights
have bytes: no program that decodes can be faster.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from sizes import packed
from transformers import BertConfig, BertForSequenceClassification, logging

from hf_compress.checkpoint.packed import Packed

WHAT = ("from_pretrained", "from_pretrained and a first batch", "from_pretrained and every weight used")


def decode_speed(folder: Path, rounds: int) -> list[float]:
    """MB of float32 weights a second, on one thread, by its processor time."""
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
    """Seconds of `from_pretrained`, of it and a first batch, and of it and every weight used once."""
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
    """Seconds that it takes to write so many zeros into memory that was not used before, on all threads."""
    begun = time.perf_counter()
    torch.empty(size // 4).zero_()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    logging.set_verbosity_error(), logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        folders = {"dense": Path(work) / "dense", "packed": Path(work) / "packed"}
        model = BertForSequenceClassification(BertConfig())
        model.save_pretrained(folders["dense"])
        packed(model, 0.8, "int8", folders["packed"])
        size = sum(parameter.nbytes for parameter in model.parameters())
        del model
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        speeds = decode_speed(folders["packed"], rounds)
        torch.set_num_threads(threads)
        print(f"decode, one thread: {statistics.median(speeds):,.0f} MB/s (least {min(speeds):,.0f})")
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in folders}
        written = []
        for number in range(rounds + 1):
            for name in list(folders)[:: 1 if number % 2 else -1]:
                seconds = load_times(folders[name])
                if number:  # The first is not warm.
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
