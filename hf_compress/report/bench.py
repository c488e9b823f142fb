"""The speed of every way to run what a folder holds, measured in one run and put into its report."""

import importlib.util
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from hf_compress.export.runtimes import in_onnx_runtime, in_openvino
from hf_compress.layers.rounded import compressed_layers
from hf_compress.models.targets import model_class
from hf_compress.report import provenance
from hf_compress.report.card import human_bytes, save_card
from hf_compress.report.latency import Latency, Timing, Variant, measure_latency
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.report.sizes import dense_size

RUNTIMES = {"onnxruntime": in_onnx_runtime, "openvino": in_openvino}
# The first is what the others are compared with.
VARIANTS = ("torch-fp32", "torch-dense", "torch-int8", *RUNTIMES)

Loader = Callable[[], nn.Module]


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
    """The latency of every variant found in `folders`, measured in turns on random tokens without padding.

    "torch-fp32" is a dense folder as it is, or, where there is none, the model of the first folder with nothing
    rounded; "torch-dense" and "torch-int8" are a compressed one with either `run` of `CompressionConfig`;
    "onnxruntime" and "openvino" run every `onnx/*.onnx`, where they are installed, the latter also `openvino/*.xml`.
    Speed-ups are to the first "torch-fp32", or to the first variant if that is left out.

    Args:
        folders: models that `save_pretrained` or `save_compressed` wrote.
        batch_sizes: rows of a batch.
        lengths: tokens of a row; every batch size is measured with every length.
        rounds: timed calls of each variant for each shape of a batch.
        threads: that every runtime may use; by default those of torch.
        variants: which of `VARIANTS` to measure.
        device: of PyTorch. The other runtimes run on a CPU only.
        progress: whether to show a bar.

    Raises:
        ValueError: a number that is not positive, a folder without a model, a length that the model cannot take, or no
            variant is left.
    """
    numbers = {
        "batch-size": batch_sizes,
        "length": lengths,
        "rounds": [rounds],
        "threads": [1 if threads is None else threads],
    }
    for name, values in numbers.items():
        if not values or min(values) < 1:
            raise ValueError(f"`--{name}` must be positive; got {', '.join(map(str, values)) or 'none'}.")
    if unknown := set(variants) - set(VARIANTS):
        raise ValueError(f"`--variants` must be among {', '.join(VARIANTS)}; got {', '.join(sorted(unknown))}.")
    configs = [AutoConfig.from_pretrained(folder) for folder in folders]
    longest = min(getattr(config, "max_position_embeddings", None) or math.inf for config in configs)
    if max(lengths) > longest:
        raise ValueError(f"`--length` may be at most {longest} for this model; got {max(lengths)}.")
    place = torch.device(device)
    with _threads(threads or torch.get_num_threads()), torch.inference_mode():
        found = list(_found([Path(folder) for folder in folders], variants, place))
        if not found:
            raise ValueError(f"`--variants` leaves nothing to measure in {', '.join(map(str, folders))}.")
        models, facts = {}, []
        for name, size, load in found:
            began = time.perf_counter()
            models[name] = load()
            facts.append(Variant(name, time.perf_counter() - began, size))
        baseline = next((name for name in models if name.endswith("torch-fp32")), next(iter(models)))
        shapes = [(rows, tokens) for tokens in lengths for rows in batch_sizes]
        timings = []
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("measuring", total=len(shapes) * rounds * len(models))
            for shape in shapes:
                bar.update(task, description=f"{shape[0]} x {shape[1]} tokens")
                calls = {name: _call(model, configs[0], shape, place) for name, model in models.items()}
                seconds = measure_latency(calls, rounds, after_call=partial(bar.advance, task))
                timings += [Timing.of(name, shape, seconds[name], seconds[baseline]) for name in models]
        return Latency(
            baseline=baseline,
            hardware=provenance.hardware(place),
            threads=torch.get_num_threads(),
            rounds=rounds,
            versions=provenance.versions((*provenance.PACKAGES, *provenance.RUNTIMES)),
            variants=facts,
            timings=timings,
        )


def save_latency(folder: str | Path, latency: Latency) -> Path | None:
    """The card of `folder` with `latency` on it and in its report, or None if the folder has no report.

    Of what was measured on several folders it takes those variants that are its own, and the baseline.
    """
    folder = Path(folder)
    if not (folder / REPORT_NAME).is_file():
        return None
    others = [v.name for v in latency.variants if ": " in v.name and not v.name.startswith(f"{_label(folder)}: ")]
    others = [name for name in others if name != latency.baseline]
    own = replace(
        latency,
        variants=[variant for variant in latency.variants if variant.name not in others],
        timings=[timing for timing in latency.timings if timing.variant not in others],
    )
    replace(Report.load(folder), latency=own).save(folder)
    return save_card(folder)


def latency_table(latency: Latency) -> Table:
    """`latency` for a terminal."""
    table = Table(
        box=box.SIMPLE,
        caption=f"Median of {latency.rounds} rounds in turns and their middle half; speed-up over {latency.baseline} "
        f"with its 95 % interval. {latency.hardware}, {latency.threads} threads.",
        caption_justify="left",
    )
    table.add_column("variant", overflow="fold")
    for heading in ("file", "load s", "batch", "ms", "middle half", "sequences/s", "speed-up", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    facts = {variant.name: variant for variant in latency.variants}
    shape = None
    for timing in latency.timings:
        if shape not in (None, (timing.batch_size, timing.length)):
            table.add_section()
        shape = timing.batch_size, timing.length
        variant = facts[timing.variant]
        low, high = (1e3 * value for value in timing.quartiles)
        interval = timing.speedup.interval
        table.add_row(
            timing.variant,
            human_bytes(variant.file_bytes),
            f"{variant.load_seconds:.2f}",
            f"{timing.batch_size} x {timing.length}",
            f"{1e3 * timing.seconds:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{timing.throughput:.1f}",
            f"{timing.speedup.ratio:.2f}",
            f"{interval[0]:.2f} to {interval[1]:.2f}",
        )
    return table


def _label(folder: Path) -> str:
    """The folder's name, with that of the run around it if that says more."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "compressed" else folder.name


def _found(
    folders: Sequence[Path], variants: Sequence[str], device: torch.device
) -> Iterator[tuple[str, int, Loader]]:
    """Every variant's name, bytes of its file, and the function that loads it."""
    for folder in folders:
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder} holds no *.safetensors file. Give a folder that a model was saved to.")
    packed = {folder: getattr(AutoConfig.from_pretrained(folder), "quantization_config", {}) for folder in folders}
    dense = [folder for folder in folders if not packed[folder]]
    for folder in [*dense, *(folder for folder in folders if folder not in dense)]:
        prefix = f"{_label(folder)}: " if len(folders) > 1 else ""
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        torch_variants: dict[str, tuple[int, Loader]] = {}
        if folder in dense:
            torch_variants["torch-fp32"] = size, partial(_torch, folder, device)
        else:
            if not dense and folder == folders[0]:
                torch_variants["torch-fp32"] = _plain_size(folder), partial(_plain, folder, device)
            torch_variants["torch-dense"] = size, partial(_torch, folder, device)
            if packed[folder].get("quantized"):
                torch_variants["torch-int8"] = size, partial(_torch, folder, device, run="int8")
        for name, (bytes_of_file, load) in torch_variants.items():
            if name in variants:
                yield prefix + name, bytes_of_file, load
        for name, runtime in RUNTIMES.items():
            if name not in variants or device.type != "cpu" or importlib.util.find_spec(name) is None:
                continue
            patterns = ("onnx/*.onnx", "openvino/*.xml") if name == "openvino" else ("onnx/*.onnx",)
            files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
            for file in files:
                own = f" {file.stem}" if len(files) > 1 else ""
                config = AutoConfig.from_pretrained(folder)
                weights = file.with_suffix(".bin") if file.suffix == ".xml" else file
                yield f"{prefix}{name}{own}", weights.stat().st_size, partial(runtime, file, config)


def _torch(folder: Path, device: torch.device, **run: Any) -> PreTrainedModel:
    model = model_class(folder)
    config = AutoConfig.from_pretrained(folder)
    if run:
        config.quantization_config |= run
    return model.from_pretrained(folder, config=config).to(device).eval()


def _plain(folder: Path, device: torch.device) -> PreTrainedModel:
    """The model of a compressed folder as the dense one computes: nothing is rounded."""
    model = _torch(folder, device)
    for layer in compressed_layers(model).values():
        layer.input_grid = None
    return model


def _plain_size(folder: Path) -> int:
    with torch.device("meta"):
        model = model_class(folder)(AutoConfig.from_pretrained(folder))
    return dense_size(model)[0]


def _call(
    model: nn.Module, config: PreTrainedConfig, shape: tuple[int, int], device: torch.device
) -> Callable[[], ModelOutput]:
    """A function that runs `model` on one random batch, the same for every model, until it is done."""
    ids = torch.randint(config.get_text_config().vocab_size, shape, generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    accepted = inspect.signature(model.forward).parameters
    if "token_type_ids" in accepted:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    inputs = {name: value.to(device) for name, value in inputs.items()}

    def call() -> ModelOutput:
        output: ModelOutput = model(**inputs)
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
