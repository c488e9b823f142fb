"""Damaged, mixed-up and malicious checkpoints: each raises `ValueError`, and none causes larger allocations."""

import copy
import json
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors.torch import save
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.quantizer import CompressionQuantizer
from hf_compress.layers.grids import SCHEMES
from hf_compress.models.targets import prunable, quantizable
from hf_compress.packing import packed as packed_module

NAME = "model.safetensors"
BOMB = 1 << 28  # The size after decompression.
# Transformers warns of what a checkpoint lacks, thousands of times.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc"),
]


@pytest.fixture
def folder(make_bert: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    """A packed folder of a one-layer BERT: 80 % of its weights are zero, the others are integers."""
    model = make_bert(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
    with torch.no_grad():
        for target in prunable(model):
            count = int(0.8 * target.weight.numel()) + 1
            target.weight[target.weight.abs() <= target.weight.abs().flatten().kthvalue(count).values] = 0
    # All kinds of tensors: with scales, pruned ones in floating point, others.
    config = CompressionConfig(
        scheme=asdict(SCHEMES["int8-weight"].grids),
        quantized=[target.name for target in quantizable(model) if "output" not in target.name],
        pruned=[target.name for target in prunable(model)],
    )
    model.hf_quantizer, model.config.quantization_config = CompressionQuantizer(config), config
    model.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def _forge(data: bytearray, key: str) -> bytearray:
    struct.pack_into("<I", data, 4, packed_module._checksum(data, key))
    return data


def _edited(file: bytes, rng: random.Random, edit: Callable[[bytearray, random.Random], None], forge: bool) -> bytes:
    """The file with one tensor changed, and its checksum with it if `forge`."""
    header, begin = _header(file)
    tensors = {key: file[begin + facts["data_offsets"][0] : begin + facts["data_offsets"][1]] for key, facts in header}
    key = rng.choice(list(tensors))
    data = bytearray(tensors[key])
    edit(data, rng)
    tensors[key] = bytes(_forge(data, key) if forge and len(data) >= 8 else data)
    values = {key: torch.frombuffer(bytearray(data or b"0"), dtype=torch.uint8) for key, data in tensors.items()}
    return save(values, metadata={"format": "pt"})


def _resealed(file: bytes, config: CompressionConfig) -> bytes:
    """The file with the seal that its contents should have, so that the checks behind the seal are reached."""
    header, begin = _header(file)
    tensors = {
        key: bytearray(file[begin + facts["data_offsets"][0] : begin + facts["data_offsets"][1]])
        for key, facts in header
    }
    whole = [data for data in tensors.values() if len(data) >= 12]
    seal = config.seal({key: int.from_bytes(data[4:8], "little") for key, data in tensors.items()})
    for data in whole:
        struct.pack_into("<I", data, 8, seal)
    values = {key: torch.frombuffer(data, dtype=torch.uint8) for key, data in tensors.items()}
    return save(values, metadata={"format": "pt"})


def _header(file: bytes) -> tuple[list[tuple[str, Any]], int]:
    begin = 8 + int.from_bytes(file[:8], "little")
    return [(key, facts) for key, facts in json.loads(file[8:begin]).items() if key != "__metadata__"], begin


def _with_header(file: bytes, header: str) -> bytes:
    begin = 8 + int.from_bytes(file[:8], "little")
    data = header.encode()
    return len(data).to_bytes(8, "little") + data + file[begin:]


def flipped_bit(file: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(file))
    return file[:at] + bytes([file[at] ^ 1 << rng.randrange(8)]) + file[at + 1 :]


def flipped_bit_of_the_header(file: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(_header(file)[1])
    return file[:at] + bytes([file[at] ^ 1 << rng.randrange(8)]) + file[at + 1 :]


def overwritten(file: bytes, rng: random.Random) -> bytes:
    at, number = rng.randrange(len(file)), rng.choice([1, 2, 4, 8, 64])
    return file[:at] + rng.randbytes(number) + file[at + number :]


def truncated(file: bytes, rng: random.Random) -> bytes:
    return file[: rng.randrange(len(file))]


def lengthened(file: bytes, rng: random.Random) -> bytes:
    return file + rng.randbytes(rng.randrange(1, 50))


def moved(file: bytes, rng: random.Random) -> bytes:
    """The file with one piece moved to another place."""
    begin, to = rng.randrange(len(file)), rng.randrange(len(file))
    piece = file[begin : begin + rng.randrange(1, 64)]
    rest = file[:begin] + file[begin + len(piece) :]
    return rest[:to] + piece + rest[to:]


def swapped_tensors(file: bytes, rng: random.Random) -> bytes:
    """Two entries of the header that point at each other's bytes."""
    header = dict(_header(file)[0])
    one, other = rng.sample(list(header), 2)
    header[one], header[other] = header[other], header[one]
    return _with_header(file, json.dumps(header))


def renamed(file: bytes, rng: random.Random) -> bytes:
    header = dict(_header(file)[0])
    key = rng.choice(list(header))
    header[rng.choice([key + "x", key[:-1], key.replace("bert", "beet"), ""])] = header.pop(key)
    return _with_header(file, json.dumps(header))


def duplicate_key(file: bytes, rng: random.Random) -> bytes:
    header, _ = _header(file)
    (one, facts), (_, theirs) = rng.sample(header, 2)
    text, twin = json.dumps(dict(header)), json.dumps({one: rng.choice([facts, theirs])})[1:-1]
    return _with_header(file, rng.choice(["{" + twin + "," + text[1:], text[:-1] + "," + twin + "}"]))


def wrong_offsets(file: bytes, rng: random.Random) -> bytes:
    header = copy.deepcopy(dict(_header(file)[0]))
    facts = header[rng.choice(list(header))]
    facts[rng.choice(["data_offsets", "shape"])][-1] += rng.choice([-1, 1, 2**31, 2**40, 2**63])
    return _with_header(file, json.dumps(header))


def wrong_type(file: bytes, rng: random.Random) -> bytes:
    header = copy.deepcopy(dict(_header(file)[0]))
    header[rng.choice(list(header))]["dtype"] = rng.choice(["I8", "BOOL", "F8_E5M2", "F32", "U9"])
    return _with_header(file, json.dumps(header))


def left_out(file: bytes, rng: random.Random) -> bytes:
    header, begin = _header(file)
    keep = [entry for entry in header if entry[0] != rng.choice(header)[0]]
    data = {key: file[begin + facts["data_offsets"][0] : begin + facts["data_offsets"][1]] for key, facts in keep}
    tensors = {key: torch.frombuffer(bytearray(piece), dtype=torch.uint8) for key, piece in data.items()}
    return save(tensors, metadata={"format": "pt"})


def _garble(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(8, len(data))
    data[at] ^= 1 << rng.randrange(8)


def _absurd(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(12, min(len(data) - 4, 60))
    struct.pack_into("<I", data, at, rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


@cache
def _inflating() -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(BOMB))


def _bomb(data: bytearray, rng: random.Random) -> None:
    bomb = _inflating()
    section = struct.pack("<IB", len(bomb), 1) + bomb
    data[rng.randrange(24, len(data)) :] = struct.pack("<IB", len(section), rng.randrange(6)) + section


def damaged_tensor(file: bytes, rng: random.Random) -> bytes:
    return _edited(file, rng, rng.choice([_garble, _absurd, _cut, _bomb]), forge=False)


def forged_tensor(file: bytes, rng: random.Random) -> bytes:
    return _edited(file, rng, rng.choice([_garble, _absurd, _cut, _bomb]), forge=True)


MUTATIONS = [
    flipped_bit,
    flipped_bit_of_the_header,
    overwritten,
    truncated,
    lengthened,
    moved,
    swapped_tensors,
    renamed,
    duplicate_key,
    wrong_offsets,
    wrong_type,
    left_out,
    damaged_tensor,
    forged_tensor,
]


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that Transformers loads."""
    return _state(AutoModelForSequenceClassification.from_pretrained(folder))


class Door:
    """Only the part of hf_compress, on one model: ten times as fast, so that thousands of files can be read."""

    def __init__(self, folder: Path) -> None:
        config = AutoConfig.from_pretrained(folder)
        self.config = CompressionConfig(**config.quantization_config)
        with torch.device("meta"):
            self.model = AutoModelForSequenceClassification.from_config(config)

    def __call__(self, folder: Path) -> dict[str, torch.Tensor]:
        quantizer = CompressionQuantizer(self.config)
        quantizer._process_model_before_weight_loading(self.model, checkpoint_files=[folder / NAME])
        none = torch.empty(0)
        state = {name: quantizer.unpacked(self.model, name, none) for name in list(quantizer.packed)}
        quantizer._process_model_after_weight_loading(self.model)
        return state


def _memory(field: str) -> int:
    """Bytes that the process has (`VmRSS`) or had at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _fuzz(
    folder: Path,
    mutation: Callable[[bytes, random.Random], bytes],
    seed: int,
    rounds: int,
    load: Callable[[Path], dict[str, torch.Tensor]],
) -> None:
    """Every mutated file is refused or gives the same weights; a forged one at least gives the same shapes."""
    rng, file = random.Random(f"{mutation.__name__} {seed}"), (folder / NAME).read_bytes()
    expected, config = load(folder), CompressionConfig(**AutoConfig.from_pretrained(folder).quantization_config)
    before, refused = _memory("VmRSS"), 0
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
    for _ in range(rounds):
        mutated = mutation(file, rng)
        if mutation is forged_tensor:
            mutated = _resealed(mutated, config)
        # A new file each time: the old one may still be mapped.
        (folder / NAME).unlink()
        (folder / NAME).write_bytes(mutated)
        try:
            found = load(folder)
        except ValueError:
            refused += 1
            continue
        assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
        if mutation is not forged_tensor:
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert refused
    assert _memory("VmHWM") - before < BOMB // 2


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_mutated_file_is_refused_or_harmless(mutation: Callable[..., bytes], folder: Path) -> None:
    _fuzz(folder, mutation, seed=0, rounds=5, load=loaded)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mutated_files_are_refused_or_harmless(mutation: Callable[..., bytes], folder: Path) -> None:
    _fuzz(folder, mutation, seed=2, rounds=20, load=Door(folder))


def inspected(folder: Path) -> dict[str, torch.Tensor]:
    """The shape and the zeros of each tensor, as `hf-compress inspect` reads them."""
    inventory.bytes_by_codec(folder)
    return {facts.name: torch.zeros(facts.shape) for facts in inventory.tensors(folder)}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_inspection_refuses_what_loading_refuses(mutation: Callable[..., bytes], folder: Path) -> None:
    _fuzz(folder, mutation, seed=3, rounds=4, load=inspected)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_inspection_of_2000_mutated_files_is_harmless(mutation: Callable[..., bytes], folder: Path) -> None:
    _fuzz(folder, mutation, seed=4, rounds=2000 // len(MUTATIONS) + 1, load=inspected)


@pytest.mark.parametrize("size", ["", "0" * 30], ids=["bytes", "declared"])
def test_a_foreign_tensor_is_named_and_asks_for_no_memory(size: str, folder: Path) -> None:
    """A tensor that the model does not have may claim any size; its name may hold escape sequences."""
    file, config = (folder / NAME).read_bytes(), AutoConfig.from_pretrained(folder)
    header, begin = _header(file)
    tensors = {
        key: torch.frombuffer(bytearray(file[begin:][slice(*facts["data_offsets"])]), dtype=torch.uint8)
        for key, facts in header
    }
    head = packed_module._HEAD.pack(packed_module.MAGIC, 0, 0, 0, 2, 0, 0, 0, 1 << 30)
    bomb = bytearray(head + struct.pack("<2I", 1 << 16, 1 << 16))
    name = "bert\x1b[31m[/red]" + size
    tensors[name] = torch.frombuffer(_forge(bomb, name), dtype=torch.uint8)
    mutated = _resealed(save(tensors), CompressionConfig(**config.quantization_config))
    (folder / NAME).unlink()
    (folder / NAME).write_bytes(mutated)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for load in (inspected, loaded):
        with pytest.raises(ValueError, match="which the model lacks") as raised:
            load(folder)
        assert "\x1b" not in str(raised.value)
    assert _memory("VmHWM") - before < BOMB // 2


@pytest.mark.parametrize("layers", [0, 2, 10**7])
def test_another_number_of_layers_than_the_file_has_is_refused(layers: int, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    with pytest.raises(ValueError, match="names the layer|lacks|declares 10000000 layers"):
        inspected(folder)
    if layers < 10:
        with pytest.raises(ValueError, match="names the layer|lacks"):
            loaded(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "x"},
        {"hidden_act": "no such function"},
        {"hidden_size": 10**30},
        {"num_attention_heads": 0},
        {"architectures": ["AutoConfig"]},
    ],
    ids=str,
)
def test_a_config_of_no_model_is_refused_in_one_sentence(change: dict[str, Any], folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"config\.json"):
        inspected(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 10**30, "per": "row"}, r"scheme\.weight` must be a grid"),
        ({"bits": True, "per": "row"}, r"scheme\.weight` must be a grid"),
        ({"bits": 8, "per": "tensor"}, r"scheme\.weight` must be a grid"),
        ({"bits": 4, "per": "group", "group_size": 0}, r"scheme\.weight` must be a grid"),
        ({"bits": 8, "per": "row", "zero": 1}, r"scheme\.weight` must be a grid"),
    ],
)
def test_a_grid_out_of_bounds_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    scheme = asdict(SCHEMES["int8"].grids) | {"weight": change}
    with pytest.raises(ValueError, match=said):
        CompressionConfig(scheme=scheme, quantized=["layer"])


def test_an_unknown_field_of_the_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the fields of a packed checkpoint; got \\['prunedx'\\]"):
        CompressionConfig(prunedx=["layer"])


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_20000_mutated_files_are_refused_or_harmless(mutation: Callable[..., bytes], folder: Path) -> None:
    _fuzz(folder, mutation, seed=1, rounds=20_000 // len(MUTATIONS) + 1, load=Door(folder))


def _changed(value: Any, rng: random.Random) -> Any:
    """Another JSON value than `value`, deep inside it or in its place."""
    if isinstance(value, dict | list) and value and rng.random() < 0.7:
        changed = copy.deepcopy(value)
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        match rng.randrange(3):
            case 0:
                del changed[key]
            case 1 if isinstance(value, dict):
                changed[key + "x"] = changed.pop(key)
            case _:
                changed[key] = _changed(value[key], rng)
        return changed
    return rng.choice(
        [other for other in (None, 0, -1, 99, 1e300, "", "x", [], ["x"], {}, {"x": 1}) if other != value]
    )


def _fuzz_config(folder: Path, seed: int, rounds: int) -> None:
    rng, path = random.Random(seed), folder / "config.json"
    config, refused = json.loads(path.read_text()), 0
    expected = loaded(folder)
    for _ in range(rounds):
        values = _changed(config["quantization_config"], rng)
        if not isinstance(values, dict) or not isinstance(values.get("quant_method"), str):
            continue  # Transformers stumbles over it.
        path.write_text(json.dumps(config | {"quantization_config": values}))
        try:
            found = loaded(folder)
        except ValueError:
            refused += 1
            continue
        except RuntimeError:
            if values["quant_method"] != "hf_compress":
                continue  # Transformers takes it for an ordinary model, and fails on bytes in place of matrices.
            raise
        # A removed field may have its default value, and an added one may never be read.
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert refused


def test_a_changed_configuration_is_refused_or_harmless(folder: Path) -> None:
    _fuzz_config(folder, seed=0, rounds=20)


@pytest.mark.slow
def test_1000_changed_configurations_are_refused_or_harmless(folder: Path) -> None:
    _fuzz_config(folder, seed=1, rounds=1000)
