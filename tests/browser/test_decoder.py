"""examples/browser reads packed files as Python does, bit for bit, and a browser computes with what it reads."""

import hashlib
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file

from hf_compress.export.parity import load as load_model
from hf_compress.export.parity import random_batches
from hf_compress.export.web_format import PATH, data_of, packed_weights, read_web
from hf_compress.packing import packed as packed_module
from hf_compress.packing.coding import CODECS, encode
from hf_compress.packing.ordering import ORDERS
from hf_compress.packing.packed import KINDS, Packed, pack
from hf_compress.packing.placing import words_of
from tests.browser.site import Site

pytestmark = pytest.mark.slow
RUNTIMES = ("in_node", "in_chromium")
ROWS, WIDTH = 300, 72


def digest(tensor: torch.Tensor | None) -> str | None:
    if tensor is None:
        return None
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def decoded(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor as JavaScript holds them. It computes float16, so bits behind NaN are lost there."""
    if tensor.dtype == torch.float16:
        values = tensor.float()
        return values.masked_fill(values.isnan(), torch.nan)
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def described(packed: Packed) -> dict[str, Any]:
    """What the probe says of a tensor, computed by Python."""
    integers, scale = not packed.dtype.is_floating_point, packed.scale()
    return {
        "kind": str(packed.dtype).removeprefix("torch."),
        "shape": list(packed.shape),
        "group": packed.group,
        "transposed": packed.transposed,
        "values": digest(decoded(packed.values())),
        "scales": digest(scale),
        "weight": None if integers and scale is None else digest(packed.weight(torch.float32)),
    }


def coded(codec: str, order: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Integers packed in a codec and an order, in several chunks."""
    generator = torch.Generator().manual_seed(0)
    largest = {"planes": 100, "pairs": 7, "triples": 2, "quads": 1}[codec.split()[-1]]
    integers = torch.randint(-largest, largest + 1, (ROWS, WIDTH), generator=generator, dtype=torch.int8)
    integers[:, 0] = -128  # Escaped.
    integers[torch.rand(integers.shape, generator=generator) < 0.8] = 0
    integers[:4] = 0  # Gaps of more than 255 zeros.
    scale = torch.rand(ROWS, 1, generator=generator).bfloat16().float()
    keys = {"own": None, "scales": words_of(scale.bfloat16()), "spread": np.arange(ROWS)[::-1] % 7}[order]

    def in_order(words: np.ndarray, *_: object) -> tuple[int, np.ndarray | None, np.ndarray]:
        rows = words.reshape(ROWS, WIDTH)
        found = rows if keys is None else rows[np.argsort(keys, kind="stable")]
        return ORDERS.index(order), keys.astype(np.uint8) if order == "spread" else None, found.reshape(-1)

    monkeypatch.setattr(packed_module, "encode_shortest", lambda words: (CODECS.index(codec), encode(words, codec)))
    monkeypatch.setattr(packed_module, "in_best_order", in_order)
    monkeypatch.setattr(packed_module, "CHUNK", 5000)
    return pack(integers, f"{codec}, {order}", scale)


def every_kind() -> dict[str, torch.Tensor]:
    """Tensors of every dtype, without scales, with scales of groups, transposed, and without values."""
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(60, 50, generator=generator)
    random[0, :5] = torch.tensor([float("inf"), float("-inf"), 1e-41, -0.0, 6e-8])
    found = {str(kind): (random if kind.is_floating_point else 100 * random.clamp(-1, 1)).to(kind) for kind in KINDS}
    tensors = {name: pack(tensor, name) for name, tensor in found.items()}
    integers = torch.randint(-8, 8, (9, 70), generator=generator, dtype=torch.int8)
    scales = torch.rand(9, 3, generator=generator).bfloat16().float()
    tensors["groups é 日本"] = pack(integers, "groups é 日本", scales, group=32)
    tensors["transposed"] = pack(integers, "transposed", scales[:, :1].contiguous(), transposed=True)
    for name, group in (("convolution", None), ("groups of a convolution", 32)):
        tensors[name] = pack(
            integers.view(9, 7, 5, 2), name, scales[:, : 1 if group is None else 3].contiguous(), group
        )
    tensors["number"], tensors["nothing"] = pack(torch.tensor(3.5), "number"), pack(torch.empty(0, 4), "nothing")
    return tensors


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_javascript_decodes_every_codec_as_python_does(
    runtime: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = every_kind()
    for codec in CODECS:
        for order in ORDERS:
            with monkeypatch.context() as patched:
                tensors[f"{codec}, {order}"] = coded(codec, order, patched)
    save_file(tensors, site.folder / "codecs.safetensors", {"format": "pt"})
    found = getattr(site, runtime)({"codecs": {"job": "unpack", "path": "codecs.safetensors"}})["codecs"]
    assert found == {name: described(Packed.open(data, name)) for name, data in tensors.items()}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_graph_computes_there_what_it_computes_here(runtime: str, site: Site, folder: Path) -> None:
    reference = load_model(folder)
    batches = [{name: value.long() for name, value in batch.items()} for batch in random_batches(reference)]
    given = [{name: value.tolist() for name, value in batch.items()} for batch in batches]
    found = getattr(site, runtime)({"run": {"job": "run", "path": "model/", "batches": given}})["run"]
    assert "crashed" not in found, found
    listed = json.loads((folder / PATH).with_suffix(".json").read_text())
    assert found["data"] == hashlib.sha256(data_of(listed, packed_weights(folder))).hexdigest()
    files = [folder / "model.safetensors", folder / PATH, (folder / PATH).with_suffix(".json")]
    assert found["bytes"] == sum(file.stat().st_size for file in files)
    here = read_web(folder / PATH, reference)
    for logits, batch in zip(found["logits"], batches, strict=True):
        torch.testing.assert_close(torch.tensor(logits), here(**batch).logits.flatten(), atol=0.02, rtol=0.02)


def damaged(file: bytes, rng: np.random.Generator) -> list[bytes]:
    """The file cut off, and with single bytes changed."""
    cut = [file[: int(at)] for at in rng.integers(0, len(file), 120)]
    changed = [bytearray(file) for _ in range(200)]
    for copy in changed:
        copy[int(rng.integers(len(copy)))] ^= 1 << int(rng.integers(8))
    return [*cut, *map(bytes, changed)]


def forged(tensor: bytes, name: str, rng: np.random.Generator) -> bytes:
    """A packed tensor with some bytes changed, and a checksum that says that it is whole."""
    changed = bytearray(tensor)
    end = len(changed) if rng.random() < 0.5 else min(120, len(changed))  # Most that can go wrong is at the front.
    for at in rng.integers(12, end, int(rng.integers(1, 4))):
        changed[int(at)] = int(rng.integers(256))
    changed[4:8] = zlib.crc32(name.encode() + changed[12:]).to_bytes(4, "little")
    return bytes(changed)


def python_reads(tensor: torch.Tensor, name: str) -> list[Any] | None:
    """The hashes that the probe sends for a tensor, or None if Python refuses it."""
    try:
        opened = Packed.open(tensor, name)
        return [name, digest(decoded(opened.values())), digest(opened.scale())]
    except (ValueError, RuntimeError, MemoryError):  # Torch cannot allocate what a forged head claims.
        return None


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_damaged_files_are_refused_in_words(
    runtime: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, tensors = np.random.default_rng(0), every_kind()
    for codec, order in (("pairs", "scales"), ("mask triples", "spread"), ("gaps quads", "own"), ("planes", "own")):
        with monkeypatch.context() as patched:
            tensors[f"{codec}, {order}"] = coded(codec, order, patched)
    save_file(tensors, tmp_path / "whole", {"format": "pt"})
    files = damaged((tmp_path / "whole").read_bytes(), rng)
    count, names = len(files), sorted(tensors)
    forgeries = [(name, forged(tensors[name].numpy().tobytes(), name, rng)) for name in names for _ in range(12)]
    for name, data in forgeries:
        save_file({name: torch.frombuffer(bytearray(data), dtype=torch.uint8)}, tmp_path / "one")
        files.append((tmp_path / "one").read_bytes())
    (site.folder / "damaged").write_bytes(b"".join(len(file).to_bytes(4, "little") + file for file in files))
    found = getattr(site, runtime)({"damaged": {"job": "damaged", "path": "damaged"}})["damaged"]
    assert len(found) == len(files)
    assert not [outcome["crashed"] for outcome in found if "crashed" in outcome]
    assert max(outcome["milliseconds"] for outcome in found) < 10_000
    # One bit may be of the metadata, which says nothing about the tensors.
    whole = sorted([name, digest(decoded(Packed.open(data, name).values()))] for name, data in tensors.items())
    for outcome in found[:count]:
        assert "refused" in outcome or sorted(pair[:2] for pair in outcome["hashes"]) == whole
    assert sum("refused" in outcome for outcome in found[:count]) > 0.9 * count
    refused = 0
    for (name, data), outcome in zip(forgeries, found[count:], strict=True):
        expected = python_reads(torch.frombuffer(bytearray(data), dtype=torch.uint8), name)
        refused += expected is None
        # Builds of zstandard differ in which damaged frames they refuse.
        if "does not decompress" not in outcome.get("refused", ""):
            assert outcome.get("hashes") == (None if expected is None else [expected]), (name, outcome)
    assert 20 < refused < len(forgeries)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scales_that_are_not_positive_and_finite_are_refused(runtime: str, site: Site, tmp_path: Path) -> None:
    values, files = torch.ones(2, 4, dtype=torch.int8), []
    for scale in (0.0, -0.0, -1.0, float("inf"), float("-inf"), 1e-40, 3e38):
        packed = pack(values, "weight", torch.tensor([[1.0], [scale]]).bfloat16().float())
        save_file({"weight": packed}, tmp_path / "one")
        files.append((tmp_path / "one").read_bytes())
    (site.folder / "scales").write_bytes(b"".join(len(file).to_bytes(4, "little") + file for file in files))
    found = getattr(site, runtime)({"scales": {"job": "damaged", "path": "scales"}})["scales"]
    refused = [one.get("refused") == "weight: a scale is not a positive number: it is damaged" for one in found]
    assert refused == [True] * 5 + [False] * 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_folders_that_do_not_fit_together_are_refused(runtime: str, site: Site, folder: Path) -> None:
    def seal(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        weights["classifier.weight"][8] ^= 1
        save_file(weights, copy / "model.safetensors")

    def graph(copy: Path) -> None:
        (copy / PATH).write_bytes((copy / PATH).read_bytes()[:-1] + b"\0")

    def missing(copy: Path) -> None:
        (copy / "model.safetensors").unlink()

    def tensor(copy: Path) -> None:
        weights = load((copy / "model.safetensors").read_bytes())
        del weights["classifier.weight"]
        save_file(weights, copy / "model.safetensors")

    def place(copy: Path) -> None:
        path = (copy / PATH).with_suffix(".json")
        listed = json.loads(path.read_text())
        listed["parts"][-1]["at"] += 1 << 20
        path.write_text(json.dumps(listed))

    def version(copy: Path) -> None:
        path = (copy / PATH).with_suffix(".json")
        path.write_text(path.read_text().replace('"version":1', '"version":9'))

    changes: dict[Callable[[Path], None], str] = {
        seal: "classifier.weight belongs to another model",
        graph: "web/graph.onnx is not the graph that web/graph.json describes",
        missing: "model.safetensors cannot be downloaded: status 404",
        tensor: "classifier.weight is missing",
        place: "does not fit its place in the graph",
        version: "web/graph.json must have version 1, this has 9",
    }
    for change in changes:
        copy = shutil.copytree(folder, site.folder / change.__name__, dirs_exist_ok=True)
        change(copy)
    jobs = {change.__name__: {"job": "refused", "path": f"{change.__name__}/"} for change in changes}
    found = getattr(site, runtime)(jobs)
    for change, words in changes.items():
        assert words in str(found[change.__name__]), (change.__name__, found[change.__name__])


def test_the_types_of_all_modules_hold(site: Site) -> None:
    compiler = site.folder / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        pytest.skip("typescript is not installed in examples/browser")
    run = subprocess.run(["node", str(compiler), "-p", "."], cwd=site.folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
