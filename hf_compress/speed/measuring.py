"""Measure the latency of an architecture with fewer and fewer neurons and heads, as a table."""

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_compress.export import FORMATS, in_onnx_runtime, in_openvino
from hf_compress.failures import failures, reason
from hf_compress.models.examples import shape_in_words
from hf_compress.models.groups import GroupKind
from hf_compress.prune.latency import Course, LatencyTable, never_falling
from hf_compress.quantize import QuantizationArguments
from hf_compress.report import measure_latency, provenance
from hf_compress.report.latency import Ratio, paired_ratio
from hf_compress.speed.graphs import Graphs

logger = logging.get_logger(__name__)

# What loads a graph, and the package whose version counts, by the format that the graph is for.
RUNTIMES = {"onnx": (in_onnx_runtime, "onnxruntime"), "openvino": (in_openvino, "openvino")}
# Shares of the groups of a block that are measured; times between them are interpolated.
SHARES = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
ROUNDS = (5, 30)  # The fewest and the most.
SECONDS = 30.0  # That all rounds together may take, if that leaves enough of them.


def measure_table(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    quantization: QuantizationArguments,
    kinds: Collection[GroupKind],
    *,
    exclude: Sequence[str] = (),
    batch: int = 1,
    length: int = 128,
    runtime: str = "onnx",
) -> LatencyTable:
    """Return the latency of a model as a function of its neurons and heads, measured on this machine.

    The graph of the whole model is exported with random weights. All blocks of one kind and size then keep fewer and
    fewer groups, in graphs made from it. The graphs take turns; each time is divided by that of the whole graph in the
    same round, and the median of the rounds counts. It is made to never fall as more groups are kept. One thread is
    timed by the clock of the process, which other processes do not disturb; several threads by that on the wall.

    Args:
        model_class: of the model.
        config: of the model with all its groups.
        quantization: the number format of the graph.
        kinds: of the groups that may go.
        exclude: regular expressions; a block with a layer whose name contains a match keeps all its groups.
        batch: rows of a batch.
        length: tokens of a row, at most what the model can read, or frames of a sound.
        runtime: a key of `RUNTIMES`.

    Raises:
        MissingExtraError: the extra of the runtime is not installed.
        ValueError: graphs of this model with fewer groups cannot be made.

    Example:
        >>> from hf_compress import QuantizationArguments
        >>> from hf_compress.speed import measure_table
        >>> int8 = QuantizationArguments(quant_scheme="int8")
        >>> measure_table(type(model), model.config, int8, ["neurons", "heads"]).most  # doctest: +SKIP
        3.1
    """
    FORMATS[runtime].require()
    with tempfile.TemporaryDirectory() as scratch:
        graphs = Graphs(model_class, config, quantization, Path(scratch), kinds, exclude)
        sizes = list(dict.fromkeys((block.kind, block.count) for block in graphs.blocks))
        points = {size: points_of(size[1]) for size in sizes}
        plans: dict[Any, dict[str, int]] = {}
        for size in sizes:
            ours = [block.name for block in graphs.blocks if (block.kind, block.count) == size]
            plans |= {(size, kept): dict.fromkeys(ours, kept) for kept in points[size][:-1]}
        plans["least"] = {block.name: points[block.kind, block.count][0] for block in graphs.blocks}
        seconds = _timed(graphs, plans, batch, length, runtime)
    shares = {name: paired_ratio(times, seconds["whole"]).ratio for name, times in seconds.items()}
    courses = []
    for size in sizes:
        found = never_falling([shares[size, kept] for kept in points[size][:-1]] + [1.0])
        same = sum((block.kind, block.count) == size for block in graphs.blocks)
        courses.append(Course(*size, same, points[size], [min(share / found[-1], 1.0) for share in found]))
    return LatencyTable(
        shape=_shape(graphs, batch, length),
        seconds=float(np.median(seconds["whole"])),
        least=min(shares["least"], *(course.shares[0] for course in courses)),
        courses=tuple(courses),
        scheme=str(quantization.quant_scheme),
        runtime=runtime_words(runtime),
        machine=machine(),
    )


def points_of(count: int) -> list[int]:
    """Return which numbers of `count` groups are measured, rising.

    Example:
        >>> from hf_compress.speed.measuring import points_of
        >>> points_of(1536), points_of(12)
        ([48, 192, 384, 768, 1152, 1536], [1, 2, 3, 6, 9, 12])
    """
    return sorted({max(1, round(share * count)) for share in SHARES} | {count})


def compare_graphs(
    whole: Path,
    smaller: Path,
    config: PreTrainedConfig,
    batch: Mapping[str, torch.Tensor],
    rounds: int = 30,
    runtime: str = "onnx",
) -> Ratio:
    """Return how many times faster the graph `smaller` is than `whole` on a batch, in a runtime of `RUNTIMES`.

    Example:
        >>> from hf_compress.speed import compare_graphs
        >>> compare_graphs(whole, smaller, model.config, batch).ratio  # doctest: +SKIP
        1.98
    """
    calls = {name: _call(path, config, batch, runtime) for name, path in (("whole", whole), ("smaller", smaller))}
    seconds = measure_latency(calls, rounds, clock=_clock())
    return paired_ratio(seconds["whole"], seconds["smaller"])


def runtime_words(name: str) -> str:
    """Return a runtime of `RUNTIMES` with its version and number of threads, in words."""
    package, threads = RUNTIMES[name][1], torch.get_num_threads()
    version = provenance.versions([package])[package]
    return f"{FORMATS[name].runtime} {version}, {threads} thread{'' if threads == 1 else 's'}"


def machine() -> str:
    """Return the processor of this machine, in words."""
    return provenance.hardware(torch.device("cpu"))


def _shape(graphs: Graphs, rows: int, length: int) -> str:
    return shape_in_words(graphs.config, graphs.model.main_input_name, rows, length)


def _timed(
    graphs: Graphs, plans: Mapping[Any, dict[str, int]], rows: int, length: int, runtime: str = "onnx"
) -> dict[Any, list[float]]:
    """Return the times of the whole graph and of those in which blocks keep what `plans` say, round by round."""
    try:
        inputs = graphs.batch(rows, length)
        calls: dict[Any, Callable[[], Any]] = {"whole": _call(graphs.write({}), graphs.config, inputs, runtime)}
        calls["whole"]()
    except failures() as error:
        raise ValueError(
            f"the time of {type(graphs.model).__name__} cannot be measured: its graph does not run on "
            f"{_shape(graphs, rows, length)} ({reason(error)}). Lower `--compress_speedup_batch` or "
            "`--compress_speedup_length`, or give `--prune_sparsity` instead of `--compress_speedup`."
        ) from error
    for name, kept in plans.items():
        path = graphs.write(kept)
        try:
            calls[name] = _call(path, graphs.config, inputs, runtime)
            calls[name]()
        except failures() as error:
            raise ValueError(
                f"the time of {type(graphs.model).__name__} with fewer {_kinds(graphs, kept)} cannot be measured: "
                f"its graph does not run without some of them ({reason(error)}). Choose another `--prune_pattern`, "
                "with `--prune_sparsity` instead of `--compress_speedup`."
            ) from error
    clock = _clock()
    began = clock()
    calls["whole"]()
    rounds = round(SECONDS / (2 * len(calls) * max(clock() - began, 1e-6)))
    return measure_latency(calls, min(max(rounds, ROUNDS[0]), ROUNDS[1]), clock=clock)


def _kinds(graphs: Graphs, kept: Mapping[str, int]) -> str:
    return " and ".join(dict.fromkeys(block.kind for block in graphs.blocks if block.name in kept))


def _call(path: Path, config: PreTrainedConfig, inputs: Mapping[str, torch.Tensor], runtime: str) -> Callable[[], Any]:
    model = RUNTIMES[runtime][0](path, config)
    given = {name: value for name, value in inputs.items() if name in model.inputs}
    return partial(model, **given)


def _clock() -> Callable[[], float]:
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
