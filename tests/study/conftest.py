"""Simulated results of a study, from a seed, with known effects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.grid.combinations import COMBINATIONS, methods_in

EFFECTS = {"kd": 1.0, "mp": -2.0, "int8": -0.5}
TOGETHER = {("kd", "mp"): 0.8}
# Weights of the embeddings and of the rest.
WEIGHTS = {6: (11_900_000, 10_800_000), 3: (11_900_000, 5_500_000), 1: (11_900_000, 2_000_000)}


def synthetic_results(
    *,
    tasks: tuple[str, ...] = ("cola", "mrpc", "sst2"),
    layers: tuple[int, ...] = (6, 3, 1),
    seeds: dict[int, int] | None = None,
    sparsities: tuple[float, ...] = (0.6,),
    noise: float = 0.4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return lines of results, as the engine writes them, of models cut from an imaginary one.

    `seeds` is the number of seeds by layers; one if not given. The score of a cell is that of its task and model, plus
    `EFFECTS` and `TOGETHER`, plus normal noise with this standard deviation.
    """
    generator, lines = np.random.default_rng(seed), []
    for number, task in enumerate(tasks):
        for kept in layers:
            for run in range((seeds or {}).get(kept, 1)):
                base = 80.0 - 3 * number + kept
                for methods in COMBINATIONS:
                    for sparsity in sparsities if "mp" in methods_in(methods) else (0.0,):
                        lines.append(_line(task, kept, run, methods, sparsity, base, generator.normal(0, noise)))
    return lines


def _line(task: str, kept: int, run: int, methods: str, sparsity: float, base: float, noise: float) -> dict[str, Any]:
    chosen = methods_in(methods)
    score = base + noise + sum(EFFECTS[method] for method in chosen)
    score += sum(extra for pair, extra in TOGETHER.items() if set(pair) <= set(chosen))
    embeddings, others = WEIGHTS[kept]
    byte = 1 if "int8" in chosen else 4
    analytic = round(byte * (embeddings + (1 - sparsity) * others))
    main = "matthews_correlation" if task == "cola" else "accuracy"
    scores = {"loss": 0.5, "accuracy": score / 100, "matthews_correlation": score / 200}
    return {
        "cell": {
            "key": f"{task}-{kept}-{run}-{methods}-{sparsity}",
            "model": "synthetic",
            "layers": kept,
            "task": task,
            "methods": methods,
            "sparsity": sparsity,
            "seed": run,
            "teacher": "synthetic" if "kd" in chosen else None,
        },
        "report": {
            "main_metric": main,
            "dense": {"loss": 0.5, "accuracy": base / 100 - 0.01, "matthews_correlation": base / 200},
            "teacher": {"loss": 0.4, "accuracy": 0.9, "matthews_correlation": 0.5} if "kd" in chosen else None,
            "compressed": scores,
            "dataset": {"eval_rows": 872},
            "size": {
                "dense_bytes": 4 * (embeddings + others) + 10_000,
                "packed_bytes": analytic + 10_000,
                "analytic_bytes": analytic,
                "entropy_bytes": analytic - 5_000,
                "parts": {},
            },
        },
        "seconds": 60.0,
    }


@pytest.fixture(scope="session")
def write_results() -> Callable[..., Path]:
    """A function that writes `synthetic_results` to a file, compressed if its name ends in `.zst`."""

    def write(file: Path, **changes: Any) -> Path:
        content = "".join(json.dumps(line) + "\n" for line in synthetic_results(**changes)).encode()
        file.write_bytes(zstandard.ZstdCompressor().compress(content) if file.suffix == ".zst" else content)
        return file

    return write


@pytest.fixture
def make_results(tmp_path: Path, write_results: Callable[..., Path]) -> Callable[..., Path]:
    """A function that writes `synthetic_results` to the folder of the test."""

    def make(name: str = "results.jsonl.zst", **changes: Any) -> Path:
        return write_results(tmp_path / name, **changes)

    return make


@pytest.fixture
def make_measurements(make_results: Callable[..., Path]) -> Callable[..., list[Measurement]]:
    """A function that reads measurements back from `synthetic_results`."""

    def make(**changes: Any) -> list[Measurement]:
        return read_measurements(make_results(**changes))

    return make
