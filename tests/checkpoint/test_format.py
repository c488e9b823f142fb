"""docs/format.md is enough to read a packed file: a reader written from it alone gives the same bits."""

import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ConvNextConfig,
    GPT2Config,
    PreTrainedModel,
)

from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.heads import find_head
from hf_compress.models.targets import prunable
from hf_compress.packing import packed as packed_module
from hf_compress.packing.coding import CODECS, encode
from hf_compress.packing.ordering import ORDERS
from hf_compress.packing.placing import words_of
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback
from hf_compress.quantize.spending import spend
from hf_compress.recipe import Recipe

KINDS = ["<i1", "<f4", "<f2", "bfloat16", "<f8", "<u1", "<i2", "<i4", "<i8", "?"]


class Reader:
    """Reads one packed tensor as docs/format.md specifies, without hf_compress."""

    def __init__(self, name: str, data: bytes, seal: int) -> None:
        magic, checksum, own_seal, kind, dimensions, self.transposed, self.order, self.group, self.step = (
            struct.unpack("<4sIIBBBBII", data[:24])
        )
        assert magic == b"HFC5" and own_seal == seal
        assert checksum == zlib.crc32(name.encode() + data[12:])
        self.shape = struct.unpack(f"<{dimensions}I", data[24 : 24 + 4 * dimensions])
        self.data, self.at, self.kind = data, 24 + 4 * dimensions, KINDS[kind]
        self.width = 2 if self.kind == "bfloat16" else np.dtype(self.kind).itemsize

    def number(self, format: str) -> int:
        (value,) = struct.unpack_from(format, self.data, self.at)
        self.at += struct.calcsize(format)
        return value

    def section(self) -> np.ndarray:
        length, method = self.number("<I"), self.number("<B")
        content = self.data[self.at : self.at + length]
        self.at += length
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(content) if method else content, dtype=np.uint8)

    def planes(self, width: int) -> np.ndarray:
        return np.stack([self.section() for _ in range(width)], axis=1)

    def chunk(self, count: int) -> np.ndarray:
        length, codec = self.number("<I"), self.number("<B")
        end = self.at + length
        kept = np.arange(count)
        places, coder = divmod(codec, 4)
        if places == 1:
            kept = np.flatnonzero(np.unpackbits(self.section(), bitorder="little")[:count])
        if places == 2:
            number = self.number("<I")
            gaps, place, places = self.section(), 0, []
            assert len(gaps) == number
            for gap in gaps.tolist():
                place += gap
                if gap < 255:
                    places.append(place)
                    place += 1
            kept = np.array(places, dtype=int)
        if coder:
            size, base = [(2, 16), (3, 6), (4, 4)][coder - 1]
            escapes, tuples = self.number("<I"), self.section().astype(int)
            digits = np.stack([tuples // base**place % base for place in range(size)], axis=1).reshape(-1)[: len(kept)]
            values = (digits - (base // 2 - 1)).astype(np.int8).view(np.uint8).reshape(-1, 1)
            escaped = self.section()
            assert len(escaped) == escapes
            values[digits == base - 1, 0] = escaped
        else:
            values = self.planes(self.width)
        assert self.at == end
        chunk = np.zeros((count, self.width), dtype=np.uint8)
        chunk[kept] = values
        return chunk

    def weight(self) -> np.ndarray:
        scales = None
        if self.group:  # bfloat16: the upper half of a float32.
            stored = self.planes(2)
            scales = np.pad(stored, ((0, 0), (2, 0))).view("<f4").reshape(self.shape[0], -1)
            keys = self.section() if self.order == 2 else stored.view("<u2")[:, 0]
        numel = math.prod(self.shape)
        chunks = [self.chunk(min(self.step, numel - begin)) for begin in range(0, numel, self.step)]
        assert self.at == len(self.data)
        data = np.concatenate([np.empty((0, self.width), dtype=np.uint8), *chunks])
        if self.kind == "bfloat16":  # The upper half of a float32.
            values = np.pad(data, ((0, 0), (2, 0))).view("<f4").reshape(self.shape)
        else:
            values = data.view(self.kind).reshape(self.shape)
        if scales is not None:
            if self.order:
                order = sorted(range(scales.size), key=lambda run: keys[run])
                in_order, values = values.reshape(-1, self.group), np.empty((scales.size, self.group), dtype="i1")
                values[order] = in_order
                values = values.reshape(self.shape)
            rows = scales.repeat(self.group, axis=1)[:, : math.prod(self.shape[1:])]
            values = values * rows.reshape(self.shape)
        return values.T if self.transposed else values


def read(folder: Path) -> dict[str, np.ndarray]:
    files: dict[str, np.ndarray] = {}
    for path in folder.glob("*.safetensors"):
        files |= load_file(path)
    tensors = {name: data.tobytes() for name, data in files.items()}
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    checksums = sorted([name, int.from_bytes(data[4:8], "little")] for name, data in tensors.items())
    sealed = [{key: value for key, value in config.items() if key != "quant_method"}, checksums]
    seal = zlib.crc32(json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode())
    return {name: Reader(name, data, seal).weight() for name, data in tensors.items()}


def compressed(model: PreTrainedModel, recipe: Recipe, folder: Path, **options: Any) -> Path:
    """The folder of a model that is pruned and quantized as training would do it, without the training."""
    with torch.no_grad():
        if recipe.pruning.enabled:
            for target in prunable(model):
                count = round(recipe.pruning.prune_sparsity * target.weight.numel()) + 1
                target.weight[target.weight.abs() <= target.weight.abs().flatten().kthvalue(count).values] = 0
    if recipe.quantization.enabled:
        QuantizationCallback(recipe.quantization).on_init_end(None, None, None, model=model)  # type: ignore[arg-type]
        if recipe.quantization.quant_step is not None:
            spend(model, [find_head(model).example_batch(model)], None, constant=recipe.quantization.quant_step)
        for layer in compressed_layers(model).values():
            layer.quantizing = True
            if layer.has_range:
                layer.input_range.copy_(torch.tensor([-3.0, 5.0]))
        with torch.no_grad():
            model.eval()(**find_head(model).example_batch(model))
    return save_compressed(model, folder, recipe)


RECIPES = {
    "pruned": Recipe(pruning=PruningArguments(prune_sparsity=0.6)),
    **{scheme: Recipe(quantization=QuantizationArguments(quant_scheme=scheme)) for scheme in SCHEMES},
    "pruned int8": Recipe(
        pruning=PruningArguments(prune_sparsity=0.8), quantization=QuantizationArguments(quant_scheme="int8")
    ),
    "very pruned int8": Recipe(
        pruning=PruningArguments(prune_sparsity=0.95), quantization=QuantizationArguments(quant_scheme="int8")
    ),
    # Models that were not trained depend little on their weights, so their steps have a small constant.
    "steps": Recipe(quantization=QuantizationArguments(quant_scheme="int8", quant_step=3e-4)),
    "pruned steps": Recipe(
        pruning=PruningArguments(prune_sparsity=0.8),
        quantization=QuantizationArguments(quant_scheme="int8-dynamic", quant_step=3e-4),
    ),
    "mixed": Recipe(
        quantization=QuantizationArguments(quant_scheme="int8", quant_bits=[".=5", "emb|wte=4", "query|attn=2"])
    ),
    "very pruned int4": Recipe(
        pruning=PruningArguments(prune_sparsity=0.95), quantization=QuantizationArguments(quant_scheme="int4-weight")
    ),
    "pruned int4": Recipe(
        pruning=PruningArguments(prune_sparsity=0.5), quantization=QuantizationArguments(quant_scheme="int4-weight")
    ),
}


def _equal(ours: dict[str, torch.Tensor], theirs: dict[str, np.ndarray]) -> None:
    for name, values in theirs.items():
        expected = ours[name].float() if ours[name].dtype == torch.bfloat16 else ours[name]
        assert np.array_equal(
            np.ascontiguousarray(values).view(np.uint8), expected.contiguous().numpy().view(np.uint8)
        ), name


@pytest.mark.parametrize("recipe", ["int8", "int4-weight", "very pruned int8"])
def test_the_specification_covers_convolutions(recipe: str, tmp_path: Path) -> None:
    config = ConvNextConfig(depths=[1, 1], hidden_sizes=[16, 32], num_stages=2)
    model = AutoModelForImageClassification.from_config(config)
    folder = compressed(model, RECIPES[recipe], tmp_path / "packed")
    _equal(AutoModelForImageClassification.from_pretrained(folder).state_dict(), read(folder))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_reader_of_the_specification_gives_the_same_bits(
    recipe: str, dtype: torch.dtype, make_bert: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    # Rows of 72 have a last group of 8, and 4000 of them are two chunks.
    sizes = {"hidden_size": 72, "intermediate_size": 100, "vocab_size": 4000}
    folder = compressed(make_bert(**sizes).to(dtype), RECIPES[recipe], tmp_path / "packed")
    # Integers times scales are float32; the two agree only in float32, before rounding to bfloat16.
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    weights = read(folder)
    # Steps are the scales of the integers, so no tensor in the file has their name.
    assert set(weights) == {name for name in reloaded.state_dict() if not name.endswith("weight_step")}
    _equal(reloaded.state_dict(), weights)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("order", ORDERS)
def test_it_reads_every_codec_in_every_order(codec: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    largest = {"planes": 100, "pairs": 7, "triples": 2, "quads": 1}[codec.split()[-1]]
    integers = torch.randint(-largest, largest + 1, (300, 72), generator=generator, dtype=torch.int8)
    integers[:, 0] = -128  # Escaped.
    integers[torch.rand(integers.shape, generator=generator) < 0.8] = 0
    scale = torch.rand(300, 1, generator=generator).bfloat16().float()
    keys = {"own": None, "scales": words_of(scale.bfloat16()), "spread": np.arange(300)[::-1] % 7}[order]

    def in_order(words: np.ndarray, *_: object) -> tuple[int, np.ndarray | None, np.ndarray]:
        rows = words.reshape(300, 72)
        found = rows if keys is None else rows[np.argsort(keys, kind="stable")]
        return ORDERS.index(order), keys.astype(np.uint8) if order == "spread" else None, found.reshape(-1)

    monkeypatch.setattr(packed_module, "encode_shortest", lambda words: (CODECS.index(codec), encode(words, codec)))
    monkeypatch.setattr(packed_module, "in_best_order", in_order)
    monkeypatch.setattr(packed_module, "CHUNK", 5000)
    data = packed_module.pack(integers, "name", scale)
    assert np.array_equal(Reader("name", data.numpy().tobytes(), 0).weight(), integers * scale)
    assert torch.equal(packed_module.Packed.open(data, "name").weight(torch.float32), integers * scale)


@pytest.mark.parametrize("recipe", ["int8", "pruned int8", "int4-weight", "mixed", "steps"])
def test_it_reads_transposed_and_tied_weights(recipe: str, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=29, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    folder = compressed(AutoModelForCausalLM.from_config(config), RECIPES[recipe], tmp_path / "packed")
    weights, state = read(folder), AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert {name for name in set(state) - set(weights) if not name.endswith("_step")} == {"lm_head.weight"}
    _equal(state, weights)


def test_it_reads_shards(make_bert: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    folder = compressed(make_bert(), RECIPES["pruned int8"], tmp_path / "packed")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    _equal(model.state_dict(), read(tmp_path / "shards"))
