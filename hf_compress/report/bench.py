"""The speed of every way to run what a folder holds, measured in one run and kept in its report."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from transformers import AutoConfig

from hf_compress.export.runtimes import RuntimeModel
from hf_compress.folders import MODEL_FILES, local_folder
from hf_compress.models.heads import find_outputs
from hf_compress.report import provenance
from hf_compress.report.card import save_card
from hf_compress.report.latency import Latency, Timing, Variant, measure_latency
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.report.variants import VARIANTS, Runnable, empty_model, find_variants, label

Shape = tuple[int, int | None]


@dataclass(frozen=True)
class Loaded:
    """A variant in memory, and the facts that a report keeps about it."""

    model: nn.Module
    folder: Path
    facts: Variant


def bench(
    folders: Sequence[str | Path],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    lengths: Sequence[int] = (128,),
    rounds: int = 20,
    threads: int | None = None,
    variants: Sequence[str] = VARIANTS,
    device: str = "cpu",
    progress: bool = False,
) -> Latency:
    """Measure the latency of every variant in `folders`, in turns, on random inputs without padding.

    "torch-fp32" is a dense folder; without one, it is the model of the first folder without rounding. "torch-dense"
    and "torch-int8" are a compressed folder with either `run` of `CompressionConfig`. "onnxruntime" and "openvino" run
    every `onnx/*.onnx`, and "openvino" also `openvino/*.xml`, if they are installed. Speed-ups refer to the first
    "torch-fp32", or to the first variant if that is left out.

    Args:
        folders: models that `save_pretrained` or `save_compressed` wrote, or their ids on the Hub.
        batch_sizes: rows of a batch.
        lengths: tokens of a row. Every batch size is measured with every length. Models of images and sounds have
            inputs of a fixed size, and ignore it.
        rounds: timed calls of each variant for each shape of a batch.
        threads: number that every runtime may use. The default is that of torch.
        variants: which of `VARIANTS` to measure.
        device: of PyTorch. The other runtimes use the CPU only.
        progress: whether to show a bar.

    Raises:
        ValueError: a number that is not positive, a folder without a model, a length that the model cannot take, or no
            variant is left.

    Example:
        >>> from hf_compress.report import bench
        >>> latency = bench(["run/compressed"], batch_sizes=[1], rounds=5)  # doctest: +SKIP
    """
    _check_positive(batch_sizes, lengths, rounds, threads)
    paths, place = [local_folder(folder, only=MODEL_FILES) for folder in folders], torch.device(device)
    with _threads(threads or torch.get_num_threads()), torch.inference_mode():
        found = find_variants(paths, variants, place)
        shapes = _shapes(paths, batch_sizes, lengths)
        loaded = {variant.name: _load(variant) for variant in found}
        baseline = next((name for name in loaded if name.endswith("torch-fp32")), next(iter(loaded)))
        return Latency(
            baseline=baseline,
            hardware=provenance.hardware(place),
            threads=torch.get_num_threads(),
            rounds=rounds,
            versions=provenance.versions((*provenance.PACKAGES, *provenance.RUNTIMES)),
            variants=[variant.facts for variant in loaded.values()],
            timings=_timings(loaded, baseline, shapes, rounds, place, progress),
        )


def save_latency(folder: str | Path, latency: Latency) -> Path | None:
    """Put `latency` into the report and on the card of `folder`, and return the card's path; None without a report.

    From a run over several folders it takes the variants of this folder and the baseline.
    """
    folder = Path(folder)
    if not (folder / REPORT_NAME).is_file():
        return None
    others = [v.name for v in latency.variants if ": " in v.name and not v.name.startswith(f"{label(folder)}: ")]
    others = [name for name in others if name != latency.baseline]
    own = replace(
        latency,
        variants=[variant for variant in latency.variants if variant.name not in others],
        timings=[timing for timing in latency.timings if timing.variant not in others],
    )
    replace(Report.load(folder), latency=own).save(folder)
    return save_card(folder)


def _check_positive(batch_sizes: Sequence[int], lengths: Sequence[int], rounds: int, threads: int | None) -> None:
    numbers = {
        "batch-size": batch_sizes,
        "length": lengths,
        "rounds": [rounds],
        "threads": [1 if threads is None else threads],
    }
    for name, values in numbers.items():
        if not values or min(values) < 1:
            raise ValueError(f"`--{name}` must be positive; got {', '.join(map(str, values)) or 'none'}.")


def _shapes(folders: Sequence[Path], batch_sizes: Sequence[int], lengths: Sequence[int]) -> list[Shape]:
    """The shapes of the batches: rows and tokens, or rows alone if no model takes text."""
    if not any(find_outputs(empty_model(folder)).takes_text for folder in folders):
        return [(rows, None) for rows in batch_sizes]
    configs = [AutoConfig.from_pretrained(folder) for folder in folders]
    longest = min(getattr(config, "max_position_embeddings", None) or math.inf for config in configs)
    if max(lengths) > longest:
        raise ValueError(f"`--length` may be at most {longest} for this model; got {max(lengths)}.")
    return [(rows, tokens) for tokens in lengths for rows in batch_sizes]


def _load(variant: Runnable) -> Loaded:
    began = time.perf_counter()
    model = variant.load()
    facts = Variant(variant.name, time.perf_counter() - began, variant.file_bytes)
    return Loaded(model, variant.folder, facts)


def _timings(
    loaded: Mapping[str, Loaded],
    baseline: str,
    shapes: Sequence[Shape],
    rounds: int,
    device: torch.device,
    progress: bool,
) -> list[Timing]:
    timings = []
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("measuring", total=len(shapes) * rounds * len(loaded))
        for shape in shapes:
            rows, tokens = shape
            bar.update(task, description=f"{rows} rows" if tokens is None else f"{rows} x {tokens} tokens")
            # Each folder gets its own batch: a cut vocabulary does not have all tokens.
            batches = {variant.folder: _batch(variant.folder, shape, device) for variant in loaded.values()}
            calls = {name: _call(variant.model, batches[variant.folder], device) for name, variant in loaded.items()}
            seconds = measure_latency(calls, rounds, after_call=partial(bar.advance, task))
            timings += [Timing.of(name, shape, seconds[name], seconds[baseline]) for name in loaded]
    return timings


def _batch(folder: Path, shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """A random batch without padding for the model of `folder`."""
    model, (rows, tokens) = empty_model(folder), shape
    batch = find_outputs(model).example_batch(model, rows=rows, length=tokens or 1)
    whole = {name: torch.ones_like(value) if name.endswith("mask") else value for name, value in batch.items()}
    return {name: value.to(device) for name, value in whole.items()}


def _call(model: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> Callable[[], Any]:
    """A function that runs `model` on `batch` and returns when the work is done."""
    accepted = inspect.signature(model.forward).parameters
    inputs = {n: value for n, value in batch.items() if n in accepted or isinstance(model, RuntimeModel)}

    def call() -> Any:
        output = model(**inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return output

    return call


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
