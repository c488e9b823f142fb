"""Packed tensors are lossless and close to entropy, and damaged bytes are refused."""

import math
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import zstandard

from hf_compress.layers.grids import SCHEMES, from_integers, symmetric_scale, to_integers
from hf_compress.packing import packed as packed_module
from hf_compress.packing.coding import CODECS, entropy_bytes
from hf_compress.packing.ordering import ORDERS
from hf_compress.packing.packed import KINDS, Packed, pack


def _integers(sparsity: float, *shape: int) -> torch.Tensor:
    values = (torch.randn(*shape) * 30).round().clamp(-127, 127).to(torch.int8)
    return values * (torch.rand(*shape) >= sparsity)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 9), (3, 5, 2)], ids=str)
def test_unpacking_returns_the_very_bits_that_were_packed(dtype: torch.dtype, sparsity: float, shape: tuple) -> None:
    tensor = (torch.randn(shape) * 20 * (torch.rand(shape) >= sparsity)).to(dtype)
    opened = Packed.open(pack(tensor))
    for again in (opened.values(), opened.weight(dtype)):
        assert again.dtype == dtype and again.shape == tensor.shape
        assert torch.equal(_bits(again), _bits(tensor))


def test_negative_zeros_infinities_and_nans_survive() -> None:
    tensor = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45] + [0.0] * 100)
    assert torch.equal(Packed.open(pack(tensor)).values().view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize("scheme", ["int8", "int4-weight"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_weight_is_its_integers_times_their_scales(
    scheme: str, transposed: bool, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_module, "CHUNK", 500)  # Rows of 100, so that there are chunks of five.
    grid, rows = SCHEMES[scheme].weight, torch.randn(33, 100)
    scale = symmetric_scale(rows, grid)
    integers = to_integers(rows, scale, grid).to(torch.int8)
    opened = Packed.open(pack(integers, "name", scale, grid.group_size, transposed), "name")
    expected = from_integers(integers, scale, grid).to(dtype)
    with ThreadPoolExecutor(threads) as executor:
        weight = opened.begin(dtype, executor if threads > 1 else None)()
    assert torch.equal(weight, expected.t() if transposed else expected) and weight.is_contiguous()
    assert torch.equal(opened.values(), integers) and torch.equal(opened.scale(), scale)  # type: ignore[arg-type]
    assert opened.weight_shape == tuple(weight.shape)


def test_floats_are_rounded_to_the_dtype_that_is_asked_for() -> None:
    tensor = torch.randn(50, 7)
    assert torch.equal(Packed.open(pack(tensor)).weight(torch.bfloat16), tensor.bfloat16())


@pytest.mark.parametrize(
    ("sparsity", "overhead"), [(0.0, 1.015), (0.4, 1.015), (0.6, 1.015), (0.8, 1.02), (0.9, 1.03)]
)
def test_pruned_integers_take_little_more_than_their_entropy(sparsity: float, overhead: float) -> None:
    integers = _integers(sparsity, 512, 512)
    assert pack(integers).numel() <= overhead * entropy_bytes(integers)


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_four_bit_integers_take_little_more_than_their_entropy(sparsity: float) -> None:
    integers = (torch.randn(512, 512) * 2.5).round().clamp(-7, 7).to(torch.int8) * (torch.rand(512, 512) >= sparsity)
    assert pack(integers).numel() <= 1.02 * entropy_bytes(integers)


def test_two_of_four_takes_less_than_order_0_entropy() -> None:
    integers = _integers(0.0, 512, 512)
    integers.view(-1, 4).scatter_(1, torch.rand(512 * 128, 4).topk(2, 1).indices, 0)
    assert pack(integers).numel() <= 0.96 * entropy_bytes(integers)


@pytest.mark.parametrize(("scheme", "share"), [("int8", 0.95), ("int4-weight", 0.92)])
def test_rows_of_different_spread_beat_order_0_entropy(scheme: str, share: float) -> None:
    rows, grid = (
        torch.randn(512, 512) * torch.logspace(-0.3, 0.3, 512)[torch.randperm(512), None],
        SCHEMES[scheme].weight,
    )
    rows[rows.abs() < rows.abs().quantile(0.8)] = 0
    scale = symmetric_scale(rows, grid)
    integers = to_integers(rows, scale, grid).to(torch.int8)
    values = pack(integers, scale=scale, group=grid.group_size).numel() - pack(scale.bfloat16()).numel()
    assert values <= share * entropy_bytes(integers)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.86), (torch.bfloat16, 0.72), (torch.float16, 0.89)])
def test_the_exponents_of_floats_are_squeezed(dtype: torch.dtype, share: float) -> None:
    weights = (torch.randn(256, 256) * 0.02).to(dtype)
    assert pack(weights).numel() <= share * weights.nbytes


def test_rows_of_different_spread_share_one_scale_cheaply() -> None:
    """A step for the whole tensor: the order of the scales says nothing, that of the spreads does."""
    rows = torch.randn(512, 512) * torch.logspace(-0.5, 0.5, 512)[torch.randperm(512), None]
    integers = (rows * 2).round().clamp(-127, 127).to(torch.int8)
    packed = pack(integers, scale=torch.full((512, 1), 0.5))
    assert ORDERS[Packed.open(packed).order] == "spread"
    assert packed.numel() <= 0.97 * entropy_bytes(integers)


def test_scales_take_little_more_than_a_byte() -> None:
    rows = torch.randn(4000, 8)
    scale = symmetric_scale(rows, SCHEMES["int8"].weight)
    integers = to_integers(rows, scale, SCHEMES["int8"].weight).to(torch.int8)
    assert pack(integers, scale=scale).numel() - pack(integers).numel() < 1.1 * 4000


def test_the_same_tensor_gives_the_same_bytes() -> None:
    integers = _integers(0.6, 100, 100)
    assert torch.equal(pack(integers), pack(integers.clone()))


def test_bytes_with_another_codec_are_those_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    integers = _integers(0.6, 100, 100)
    opened = Packed.open(pack(integers))
    assert opened.codecs() == {"mask planes"}
    assert opened.bytes_with("mask planes") == pack(integers).numel() and opened.bytes_with("pairs") is None
    monkeypatch.setattr(packed_module, "encode_shortest", lambda words: (0, packed_module.encode(words, CODECS[0])))
    assert opened.bytes_with("planes") == pack(integers).numel()


def _damaged(packed: torch.Tensor, rng: random.Random) -> torch.Tensor:
    data = bytearray(packed.numpy().tobytes())
    match rng.randrange(4):
        case 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            data += bytes(rng.randrange(1, 9))
        case 3:
            at = rng.randrange(len(data))
            data[at : at + 4] = rng.randbytes(4)
    return torch.frombuffer(data or bytearray(1), dtype=torch.uint8)


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_every_damaged_packed_tensor_is_refused(sparsity: float) -> None:
    rng, packed = random.Random(0), pack(_integers(sparsity, 20, 30))
    for _ in range(1000):
        damaged = _damaged(packed, rng)
        if torch.equal(damaged[:8], packed[:8]) and torch.equal(damaged[12:], packed[12:]):
            continue  # The seal belongs to the whole checkpoint, which checks it.
        with pytest.raises(ValueError):
            Packed.open(damaged).values()


def test_the_bytes_of_another_weight_are_refused() -> None:
    packed = pack(_integers(0.7, 20, 30), "query")
    with pytest.raises(ValueError, match="checksum"):
        Packed.open(packed, "key").values()


def _forged(data: bytes) -> torch.Tensor:
    """`data` with a checksum that matches."""
    forged = bytearray(data)
    struct.pack_into("<I", forged, 4, packed_module._checksum(forged, ""))
    return torch.frombuffer(forged, dtype=torch.uint8)


def test_a_forged_checksum_does_not_open_the_door() -> None:
    """Damage whose checksum was made to match: every length is checked on its own."""
    rng, scale = random.Random(1), torch.rand(20, 1).bfloat16().float()
    data = pack(_integers(0.7, 20, 30), scale=scale).numpy().tobytes()
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[rng.randrange(8, len(damaged))] ^= 1 << rng.randrange(8)
        try:
            opened = Packed.open(_forged(bytes(damaged)), expected=(20, 30))
            assert opened.weight(torch.float32).shape == (20, 30)
            assert opened.values().shape == (20, 30)
        except ValueError:
            refused += 1
    assert refused > 300  # A flipped bit may also be just another valid value; it must only never crash.


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    packed = pack(torch.ones(2, 3, dtype=torch.int8), scale=torch.tensor([[1.0], [scale]]))
    with pytest.raises(ValueError, match="a scale is not a positive number"):
        Packed.open(packed).weight(torch.float32)


def _head(shape: tuple[int, ...], body: bytes, step: int = 1 << 18, group: int = 0) -> torch.Tensor:
    head = packed_module._HEAD.pack(packed_module.MAGIC, 0, 0, 0, len(shape), 0, 0, group, step)
    return _forged(head + struct.pack(f"<{len(shape)}I", *shape) + body)


def test_a_decompression_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    section = struct.pack("<IB", len(bomb), 1) + bomb
    with pytest.raises(ValueError, match="claims another size"):
        Packed.open(_head((100,), struct.pack("<IB", len(section), 0) + section)).values()


def test_a_shape_other_than_the_expected_one_is_refused() -> None:
    with pytest.raises(ValueError, match="the model needs shape"):
        Packed.open(_head((2**32 - 1, 2**32 - 1), b""), expected=(20, 30))


@pytest.mark.parametrize(
    ("step", "group"),
    [(0, 0), (30, 31), (31, 30), (1, 30)],
    ids=["no chunks", "a group wider than the row", "chunks of part of a row", "chunks shorter than a row"],
)
def test_a_head_that_contradicts_itself_is_refused(step: int, group: int) -> None:
    with pytest.raises(ValueError, match="contradicts itself"):
        Packed.open(_head((20, 30), b"", step=step, group=group))


def test_what_is_no_row_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row of bytes, this is float32 of shape \(2,\)"):
        Packed.open(torch.zeros(2))
    with pytest.raises(ValueError, match="truncated"):
        Packed.open(torch.zeros(0, dtype=torch.uint8))
