"""Packed tensors: without loss, close to entropy, and deaf to damaged bytes."""

import math
import random
import struct
import zlib

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_compress import coding
from hf_compress.coding import declared, entropy_bytes, pack, unpack


def _integers(sparsity: float, *shape: int) -> torch.Tensor:
    values = (torch.randn(*shape) * 30).round().clamp(-127, 127).to(torch.int8)
    return values * (torch.rand(*shape) >= sparsity)


@pytest.mark.parametrize("dtype", coding.KINDS, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 9), (3, 5, 2)], ids=str)
def test_unpacking_returns_the_very_bits_that_were_packed(dtype: torch.dtype, sparsity: float, shape: tuple) -> None:
    tensor = (torch.randn(shape) * 20 * (torch.rand(shape) >= sparsity)).to(dtype)
    again = unpack(pack(tensor))
    assert again.dtype == dtype and again.shape == tensor.shape
    assert torch.equal(again.view(torch.uint8) if shape else again, tensor.view(torch.uint8) if shape else tensor)


def test_negative_zeros_infinities_and_nans_survive() -> None:
    tensor = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45] + [0.0] * 100)
    assert torch.equal(unpack(pack(tensor)).view(torch.int32), tensor.view(torch.int32))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-128, 127), max_size=300))
def test_any_integers_survive(values: list[int]) -> None:
    tensor = torch.tensor(values, dtype=torch.int8)
    assert torch.equal(unpack(pack(tensor)), tensor)


@pytest.mark.parametrize(("sparsity", "overhead"), [(0.0, 1.02), (0.4, 1.02), (0.6, 1.02), (0.8, 1.03), (0.9, 1.08)])
def test_pruned_integers_take_little_more_than_their_entropy(sparsity: float, overhead: float) -> None:
    integers = _integers(sparsity, 512, 512)
    assert pack(integers).numel() <= overhead * entropy_bytes(integers)


def test_a_sparse_float_tensor_takes_a_bit_a_weight_and_its_nonzeros() -> None:
    weights = torch.where(torch.rand(256, 256) >= 0.6, torch.randn(256, 256), 0.0)
    assert pack(weights).numel() <= weights.numel() / 8 + 4 * int(weights.count_nonzero()) + 100


def test_the_same_tensor_gives_the_same_bytes() -> None:
    integers = _integers(0.6, 100, 100)
    assert torch.equal(pack(integers), pack(integers.clone()))


def test_entropy_of_known_distributions() -> None:
    assert entropy_bytes(torch.zeros(80, dtype=torch.int8)) == 0
    assert entropy_bytes(torch.arange(-128, 128).to(torch.int8)) == pytest.approx(256)
    assert entropy_bytes(torch.tensor([0, 1] * 400, dtype=torch.int8)) == pytest.approx(100)
    assert entropy_bytes(torch.empty(0, dtype=torch.int8)) == 0


def test_the_head_can_be_read_without_decoding() -> None:
    head = declared(pack(_integers(0.8, 30, 50)))
    assert (head.dtype, head.codec, head.shape, head.numel) == (torch.int8, "mask", (30, 50), 1500)


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
def test_every_damaged_packed_tensor_is_refused_with_a_value_error(sparsity: float) -> None:
    rng, packed = random.Random(0), pack(_integers(sparsity, 20, 30))
    for _ in range(1000):
        damaged = _damaged(packed, rng)
        if torch.equal(damaged, packed):
            continue
        with pytest.raises(ValueError):
            unpack(damaged)


def _forged(body: bytes, dimensions: int = 1, codec: int = 0, kind: int = 0) -> torch.Tensor:
    head = coding._FIXED.pack(coding.MAGIC, kind, codec, dimensions, 0, zlib.crc32(body))
    return torch.frombuffer(bytearray(head + body), dtype=torch.uint8)


def test_a_forged_checksum_does_not_open_the_door() -> None:
    """Damage whose checksum was made to match: every length is checked on its own."""
    rng, packed = random.Random(1), pack(_integers(0.7, 20, 30))
    body = packed.numpy().tobytes()[coding._FIXED.size :]
    refused = 0
    for _ in range(1000):
        damaged = bytearray(body)
        damaged[rng.randrange(8, len(damaged))] ^= 1 << rng.randrange(8)
        try:
            unpack(_forged(bytes(damaged), dimensions=2, codec=1), shape=(20, 30))
        except ValueError:
            refused += 1
    assert refused > 100  # A flipped bit may also be just another valid value; it must only never crash.


def test_a_decompression_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    section = struct.pack("<IB", len(bomb), 1) + bomb
    with pytest.raises(ValueError, match="claims another size"):
        unpack(_forged(struct.pack("<I", 100) + section))


def test_an_absurd_shape_is_refused_when_the_model_expects_another() -> None:
    absurd = _forged(struct.pack("<2I", 2**32 - 1, 2**32 - 1) + struct.pack("<IB", 0, 0), dimensions=2)
    with pytest.raises(ValueError, match="the model needs shape"):
        unpack(absurd, shape=(20, 30))
    with pytest.raises(ValueError):
        unpack(absurd)
