"""How large files are: of a model pruned in one shot at several sparsities, and of finished checkpoints.

    python benchmarks/sizes.py [--model MODEL] [--scheme int8] [--folders COMPRESSED...] [--codecs COMPRESSED]

`file` is model.safetensors with its header. `entropy` is the order-0 entropy of the integers of each tensor alone,
without scales and without what is no integer, and `analytic` the formula of Movva et al. (2022), which counts no mask,
scale or header. With
`--codecs`, how other codecs and other orders would do on the integers of a checkpoint.
"""

import argparse
import bz2
import lzma
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import zstandard
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel, logging

import hf_compress as hfc
from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.packed import Packed, pack
from hf_compress.checkpoint.quantizer import CompressionQuantizer, packed_tensors
from hf_compress.layers.grids import SCHEMES
from hf_compress.models.targets import prunable, quantizable
from hf_compress.report import sizes

HEADINGS = ("", "file", "entropy", "file / entropy", "analytic", "file / analytic")


def packed(model: PreTrainedModel, sparsity: float, scheme: str, folder: Path) -> hfc.Recipe:
    """The recipe by which `model` is pruned at once, rounded and saved into `folder`."""
    with torch.no_grad():
        for target in prunable(model) if sparsity else ():
            magnitude = target.weight.abs()
            target.weight[magnitude <= magnitude.flatten().kthvalue(round(sparsity * magnitude.numel())).values] = 0
    config = CompressionConfig(
        scheme=asdict(SCHEMES[scheme]),
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
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config = None
    with torch.device("meta"):
        dense = AutoModelForSequenceClassification.from_config(config)
        if config.architectures == [AutoModel.from_config(config).__class__.__name__]:
            dense = AutoModel.from_config(config)
    size = sizes.measured_size(folder, dense, dense, inventory.tensors(folder), recipe)
    file, bound = size.packed_bytes, sum(entropy(tensor.values().numpy()) for tensor in quantized(folder))
    return (
        f"| {name} | {file / 1e6:.3f} MB | {bound / 1e6:.3f} MB | {file / bound:.4f} "
        f"| {size.analytic_bytes / 1e6:.3f} MB | {file / size.analytic_bytes:.4f} |"
    )


def quantized(folder: Path) -> list[Packed]:
    """The tensors of integers in `folder`."""
    files = sorted(folder.glob("*.safetensors"))
    return [tensor for path in files for tensor in packed_tensors(path, {}) if tensor.scale() is not None]


def entropy(values: np.ndarray) -> float:
    counts = np.bincount(values.reshape(-1).view(np.uint8), minlength=256)
    share = counts[counts > 0] / values.size
    return float(-(share * np.log2(share)).sum()) * values.size / 8


def codecs(folder: Path) -> Iterator[str]:
    """Rows of a table: bytes of all integers to their order-0 entropy, in our file and otherwise; MB/s of integers."""

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
        """As it is, or mask and values apart, whichever is shorter."""
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
    yield line("this format, its scales taken off", ours, begun)
    for name, (compress, decompress) in plain.items():
        parts = [both(compress, values) for values in integers]
        begun = time.process_time()
        for part in parts:
            for piece in part:
                decompress(piece)
        yield line(f"{name}, mask apart where shorter", sum(len(piece) for part in parts for piece in part), begun)
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
        yield line(f"arithmetic coding, 16 contexts of the {context}, themselves for nothing", size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A dense model to be pruned in one shot.")
    parser.add_argument("--scheme", default="int8", choices=SCHEMES)
    parser.add_argument("--folders", nargs="*", type=Path, default=[], help="Finished checkpoints.")
    parser.add_argument("--codecs", type=Path, help="A finished checkpoint to try other codecs on.")
    arguments = parser.parse_args()
    logging.set_verbosity_error(), logging.disable_progress_bar()
    if arguments.model or arguments.folders:
        print(f"| {' | '.join(HEADINGS)} |", "| --- | ---: | ---: | ---: | ---: | ---: |", sep="\n")
    for sparsity in (0.0, 0.4, 0.6, 0.8, 0.9) if arguments.model else ():
        with tempfile.TemporaryDirectory() as folder:
            model = AutoModel.from_pretrained(arguments.model)
            recipe = packed(model, sparsity, arguments.scheme, Path(folder))
            print(row(f"{sparsity:.0%} + {arguments.scheme}", Path(folder), recipe))
    for folder in arguments.folders:
        print(row(str(folder), folder, hfc.Recipe.load(folder / "recipe.json")))
    if arguments.codecs:
        print("| integers | bytes / order-0 entropy | decode, M integers/s |", "| --- | ---: | ---: |", sep="\n")
        print(*codecs(arguments.codecs), sep="\n")


if __name__ == "__main__":
    main()
