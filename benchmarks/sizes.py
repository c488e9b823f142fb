"""Measure how large packed files are, for one-shot pruning at several sparsities and for finished checkpoints.

    python benchmarks/sizes.py [--model MODEL] [--scheme int8] [--folders COMPRESSED...] [--codecs COMPRESSED]
                               [--steps MODEL]

`file` is model.safetensors with its header. `entropy` is the order-0 entropy of the integers of each tensor, without
scales and without floating-point tensors. `analytic` is the formula of Movva et al. (2022), which counts no mask,
scale or header. With `--codecs`, other codecs and other orders are tried on the integers of a checkpoint. With
`--steps`, a dense model is rounded with one step per tensor. The bytes then include scales, and the speed is that of
writing float32 weights on one core.
"""

import argparse
import bz2
import lzma
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import zstandard
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel, logging

import hf_compress as hfc
from hf_compress.checkpoint import CompressionConfig, CompressionQuantizer, packed_tensors
from hf_compress.layers import SCHEMES
from hf_compress.models import prunable, quantizable
from hf_compress.packing import Packed, pack
from hf_compress.report import analytic_bytes

HEADINGS = ("", "file", "entropy", "file / entropy", "analytic", "file / analytic")


@torch.no_grad()
def prune(model: PreTrainedModel, sparsity: float) -> None:
    """Set the weights of smallest magnitude of each linear layer to zero, in place."""
    for target in prunable(model):
        magnitude, zeros = target.weight.abs(), round(sparsity * target.weight.numel())
        if zeros:
            target.weight[magnitude <= magnitude.flatten().kthvalue(zeros).values] = 0


def save_packed(model: PreTrainedModel, sparsity: float, scheme: str, folder: Path) -> hfc.Recipe:
    """Prune `model` in one shot, round it and save it into `folder`; return the recipe that says so."""
    prune(model, sparsity)
    config = CompressionConfig(
        scheme=asdict(SCHEMES[scheme].grids),
        quantized=[target.name for target in quantizable(model)],
        pruned=[target.name for target in prunable(model)] if sparsity else [],
    )
    model.hf_quantizer, model.config.quantization_config = CompressionQuantizer(config), config
    model.save_pretrained(folder)
    return hfc.Recipe(
        pruning=hfc.PruningArguments(prune_sparsity=sparsity),
        quantization=hfc.QuantizationArguments(quant_scheme=scheme),
    )


def row(name: str, folder: Path, recipe: hfc.Recipe) -> str:
    """Return the table row of the checkpoint in `folder`."""
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = None
    with torch.device("meta"):
        dense = AutoModelForSequenceClassification.from_config(config)
        if config.architectures == [AutoModel.from_config(config).__class__.__name__]:
            dense = AutoModel.from_config(config)
    analytic = analytic_bytes(dense, recipe)
    file = (folder / "model.safetensors").stat().st_size
    bound = sum(entropy(tensor.values().numpy()) for tensor in quantized(folder))
    return (
        f"| {name} | {file / 1e6:.3f} MB | {bound / 1e6:.3f} MB | {file / bound:.4f} "
        f"| {analytic / 1e6:.3f} MB | {file / analytic:.4f} |"
    )


def quantized(folder: Path) -> list[Packed]:
    """Return the integer tensors of the checkpoint in `folder`."""
    files = sorted(folder.glob("*.safetensors"))
    return [tensor for path in files for tensor in packed_tensors(path, {}) if tensor.scale() is not None]


def entropy(values: np.ndarray) -> float:
    """Return the order-0 entropy of 8-bit integers, in bytes of the whole array."""
    counts = np.bincount(values.reshape(-1).view(np.uint8), minlength=256)
    share = counts[counts > 0] / values.size
    return float(-(share * np.log2(share)).sum()) * values.size / 8


def codecs(folder: Path) -> Iterator[str]:
    """Yield table rows: bytes of all integers over their order-0 entropy, and decoding speed in M integers/s."""

    def zstd(level: int) -> Callable[[bytes], bytes]:
        return zstandard.ZstdCompressor(level=level).compress

    plain: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        f"zstd -{level}": (zstd(level), zstandard.ZstdDecompressor().decompress) for level in (1, 9, 19)
    }
    plain |= {"lzma -6": (lzma.compress, lzma.decompress), "bzip2 -9": (bz2.compress, bz2.decompress)}
    if find_spec("pcodec"):  # Asymmetric numeral systems; pip install pcodec
        from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

        config = ChunkConfig(
            compression_level=12, enable_8_bit=True, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op()
        )
        plain["pcodec -12"] = (
            lambda data: standalone.simple_compress(np.frombuffer(data, dtype=np.uint8), config),
            standalone.simple_decompress,
        )
    tensors = quantized(folder)
    integers = [tensor.values().numpy() for tensor in tensors]
    scales = [tensor.scale() for tensor in tensors]
    bound = sum(entropy(values) for values in integers)
    count = sum(values.size for values in integers)

    def both(compress: Callable[[bytes], bytes], values: np.ndarray) -> tuple[bytes, ...]:
        """Compress the values whole, or mask and non-zero values separately, whichever is shorter."""
        kept = values != 0
        apart = compress(np.packbits(kept).tobytes()), compress(values[kept].tobytes())
        whole = compress(values.tobytes())
        return (whole,) if len(whole) <= sum(map(len, apart)) else apart

    def line(name: str, size: float, begun: float | None = None) -> str:
        speed = "" if begun is None else f"{count / (time.process_time() - begun) / 1e6:,.0f}"
        return f"| {name} | {size / bound:.4f} | {speed} |"

    begun = time.process_time()
    for tensor in tensors:
        Packed.open(torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8), tensor.key).values()
    ours = sum(len(tensor.data) - len(pack(scale.bfloat16())) for tensor, scale in zip(tensors, scales, strict=True))
    yield line("this format, without its scales", ours, begun)
    for name, (compress, decompress) in plain.items():
        parts = [both(compress, values) for values in integers]
        begun = time.process_time()
        for part in parts:
            for piece in part:
                decompress(piece)
        yield line(f"{name}, mask separate where shorter", sum(len(piece) for part in parts for piece in part), begun)
    ordered = [v[np.argsort(s.numpy()[:, 0], kind="stable")] for v, s in zip(integers, scales, strict=True)]
    yield line("zstd -1, rows in the order of their scales", sum(len(p) for v in ordered for p in both(zstd(1), v)))
    yield line("arithmetic coding, order 0", bound)
    for context in ("row", "column"):
        size = 0.0
        for values in integers:
            spread = np.abs(values.astype(np.float32)).mean(axis=1 if context == "row" else 0)
            classes = np.searchsorted(np.quantile(spread, np.arange(1, 16) / 16), spread)
            for number in range(16):
                some = values[classes == number] if context == "row" else values[:, classes == number]
                size += entropy(np.ascontiguousarray(some)) if some.size else 0
        yield line(f"arithmetic coding, 16 contexts by {context}, contexts not counted", size)


def steps(model: PreTrainedModel) -> Iterator[str]:
    """Yield table rows: bytes and decoding speed with one step per tensor, from fine to coarse."""
    weights = list({id(target.weight): target.weight.detach() for target in quantizable(model)}.values())
    coders: dict[str, Coder] = {"this format": (packed, unpacked)}
    if find_spec("constriction"):  # Asymmetric numeral systems, one model or 16 per tensor; pip install constriction
        coders |= {f"ANS {number}": (partial(ans_encoded, classes=number), ans_decoded) for number in (1, 16)}
    for step in (0.06, 0.15, 0.3, 0.5, 0.9, 1.5, 2.5):
        scales = [(step * weight.square().mean().sqrt()).bfloat16().float() for weight in weights]
        integers = [
            (weight / scale).round().clamp(-127, 127).to(torch.int8)
            for weight, scale in zip(weights, scales, strict=True)
        ]
        bound, count = sum(entropy(values.numpy()) for values in integers), sum(map(torch.numel, integers))
        cells = []
        for encode, decode in coders.values():
            coded = [encode(values, scale) for values, scale in zip(integers, scales, strict=True)]
            begun = time.process_time()
            for data in coded:
                decode(data)
            speed = 4 * count / (time.process_time() - begun) / 1e6
            cells.append(f"{sum(size for _, size in coded) / bound:.4f} | {speed:,.0f} MB/s")
        yield f"| {step:g} | {8 * bound / count:.2f} | {' | '.join(cells)} |"


Coded = tuple[object, int]
Coder = tuple[Callable[[torch.Tensor, torch.Tensor], Coded], Callable[[Coded], object]]


def packed(values: torch.Tensor, scale: torch.Tensor) -> Coded:
    """Return the packed tensor and its bytes."""
    data = pack(values, scale=scale.expand(len(values), 1))
    return data, len(data)


def unpacked(coded: Coded) -> object:
    return Packed.open(coded[0]).weight(torch.float32)  # type: ignore[arg-type]


def ans_encoded(values: torch.Tensor, scale: torch.Tensor, *, classes: int) -> Coded:
    """Return what the library's decoder needs, and the bytes of words, classes of rows and tables of counts."""
    from constriction import stream

    symbols = values.numpy().astype(np.int32) + 127
    spread = np.square(symbols - 127).mean(axis=1)
    by_row = np.searchsorted(np.quantile(spread, np.arange(1, classes) / classes), spread)
    coder, models, size = stream.stack.AnsCoder(), [], entropy(by_row.astype(np.int8)) if classes > 1 else 0.0
    for number in range(classes):
        some = np.ascontiguousarray(symbols[by_row == number]).reshape(-1)
        counts = np.bincount(some, minlength=255)
        if not some.size:
            continue
        model = stream.model.Categorical(np.maximum(counts / some.size, 1e-9).astype(np.float32), perfect=False)
        coder.encode_reverse(some, model)
        models.append((model, some.size))
        size += 2 * np.count_nonzero(counts) + 2
    words = coder.get_compressed()
    return (words, models, by_row), round(4 * len(words) + size)


def ans_decoded(coded: Coded) -> object:
    from constriction import stream

    words, models, by_row = coded[0]  # type: ignore[misc]
    coder, rows = stream.stack.AnsCoder(words), [np.empty(0)] * len(models)
    for number in reversed(range(len(models))):
        rows[number] = coder.decode(*models[number])
    values = np.concatenate(rows).reshape(len(by_row), -1)
    result = np.empty(values.shape, dtype=np.float32)
    result[np.argsort(by_row, kind="stable")] = values
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="dense model to prune in one shot")
    parser.add_argument(
        "--scheme", default="int8", choices=SCHEMES, help="scheme to round it with (default: %(default)s)"
    )
    parser.add_argument("--folders", nargs="*", type=Path, default=[], help="finished checkpoints")
    parser.add_argument("--codecs", type=Path, help="finished checkpoint to try other codecs on")
    parser.add_argument("--steps", help="dense model to round with one step per tensor, from fine to coarse")
    arguments = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    if arguments.model or arguments.folders:
        print(f"| {' | '.join(HEADINGS)} |", "| --- | ---: | ---: | ---: | ---: | ---: |", sep="\n")
    for sparsity in (0.0, 0.4, 0.6, 0.8, 0.9) if arguments.model else ():
        with tempfile.TemporaryDirectory() as folder:
            model = AutoModel.from_pretrained(arguments.model)
            recipe = save_packed(model, sparsity, arguments.scheme, Path(folder))
            print(row(f"{sparsity:.0%} + {arguments.scheme}", Path(folder), recipe))
    for folder in arguments.folders:
        print(row(str(folder), folder, hfc.Recipe.load(folder / "recipe.json")))
    if arguments.steps:
        others = " ANS | decoded |" if find_spec("constriction") else ""
        print(
            f"| step / rms | bits | this format | decoded |{others}", "|" + " ---: |" * (6 if others else 4), sep="\n"
        )
        for line in steps(AutoModel.from_pretrained(arguments.steps)):
            print(line, flush=True)
    if arguments.codecs:
        print("| integers | bytes / order-0 entropy | decode, M integers/s |", "| --- | ---: | ---: |", sep="\n")
        print(*codecs(arguments.codecs), sep="\n")


if __name__ == "__main__":
    main()
