"""Codecs: without loss, and close to entropy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_compress.packing.coding import (
    CODECS,
    TUPLES,
    Sections,
    decode,
    encode,
    encode_shortest,
    entropy_bytes,
    expected_bytes,
)


def _decoded(data: bytes, codec: str, words: np.ndarray) -> np.ndarray:
    sections = Sections(memoryview(data))
    decoded = np.full(len(words), 99, dtype=words.dtype)
    decode(sections, CODECS.index(codec), decoded)
    sections.finish()
    return decoded


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_every_codec_returns_the_very_words_or_declines(codec: str, width: int, sparsity: float, count: int) -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2 ** (8 * width), count, dtype=f"<u{width}")
    tuples = codec.split()[-1] in TUPLES
    if tuples and width == 1:
        largest = TUPLES[codec.split()[-1]][1] // 2 - 1
        words = rng.integers(-largest, largest + 1, count, dtype=np.int8).view(np.uint8)
        words[: count // 20] = np.arange(count // 20, dtype=np.uint8)  # Some are escaped.
    words[rng.random(count) < sparsity] = 0
    data = encode(words, codec)
    if tuples and width > 1:
        assert data is None
    else:
        assert data is not None and np.array_equal(_decoded(data, codec, words), words)


@given(st.lists(st.integers(0, 255), max_size=300))
def test_the_shortest_codec_is_chosen_and_any_bytes_survive(values: list[int]) -> None:
    words = np.array(values, dtype=np.uint8)
    number, data = encode_shortest(words)
    assert np.array_equal(_decoded(data, CODECS[number], words), words)
    assert all(len(data) <= len(other) for codec in CODECS if (other := encode(words, codec)) is not None)


@pytest.mark.parametrize(
    ("spread", "sparsity", "codec"),
    [
        (20, 0.0, "planes"),
        (2, 0.0, "pairs"),
        (0.7, 0.0, "triples"),
        (20, 0.6, "mask planes"),
        (2, 0.6, "mask pairs"),
        (1, 0.6, "mask triples"),
        (0.5, 0.0, "mask quads"),
        (20, 0.9, "gaps planes"),
        (2, 0.9, "gaps pairs"),
        (0.7, 0.9, "gaps triples"),
        (0.4, 0.9, "gaps quads"),
    ],
)
def test_the_codec_follows_the_values(spread: float, sparsity: float, codec: str) -> None:
    rng = np.random.default_rng(0)
    words = (rng.normal(size=100_000) * spread).round().clip(-127, 127).astype(np.int8).view(np.uint8)
    words[rng.random(len(words)) < sparsity] = 0
    assert CODECS[encode_shortest(words)[0]] == codec


@pytest.mark.parametrize("bits", [1.5, 2, 2.5, 3, 4, 5, 6])
@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_integers_of_any_width_take_little_more_than_entropy(bits: float, shape: str) -> None:
    rng, spread = np.random.default_rng(0), 2.0 ** (bits - 2.05)
    values = rng.normal(size=1 << 18) if shape == "normal" else rng.laplace(size=1 << 18) / 1.4
    words = (spread * values).round().clip(-127, 127).astype(np.int8)
    entropy = entropy_bytes(torch.from_numpy(words))
    assert len(encode_shortest(words.view(np.uint8))[1]) <= 1.0175 * entropy
    assert expected_bytes(words.view(np.uint8)) == pytest.approx(entropy, rel=0.01)


def test_entropy_of_known_distributions() -> None:
    assert entropy_bytes(torch.zeros(80, dtype=torch.int8)) == 0
    assert entropy_bytes(torch.arange(-128, 128).to(torch.int8)) == pytest.approx(256)
    assert entropy_bytes(torch.tensor([0, 1] * 400, dtype=torch.int8)) == pytest.approx(100)
    assert entropy_bytes(torch.empty(0, dtype=torch.int8)) == 0


def test_escapes_that_do_not_match_their_number_are_refused() -> None:
    words = np.array([1, 2, 3, 4, 5, 6, 7, 100] * 10, dtype=np.uint8)
    data = bytearray(encode(words, "pairs") or b"")
    assert data[0] == 10
    data[0] = 9
    with pytest.raises(ValueError, match="should hold 9 bytes|10 values are escaped and 9"):
        decode(Sections(memoryview(bytes(data))), CODECS.index("pairs"), np.empty_like(words))


def test_wide_values_in_pairs_and_unknown_codecs_are_refused() -> None:
    data = encode(np.zeros(4, dtype=np.uint8), "pairs")
    assert data is not None
    with pytest.raises(ValueError, match="cannot be stored in pairs"):
        decode(Sections(memoryview(data)), CODECS.index("pairs"), np.empty(4, dtype="<u4"))
    with pytest.raises(ValueError, match="this is 12: upgrade"):
        decode(Sections(memoryview(data)), 12, np.empty(4, dtype=np.uint8))


@pytest.mark.parametrize("zeros", [0, 1, 254, 255, 256, 509, 510, 511, 2000])
def test_gaps_of_any_length_survive(zeros: int) -> None:
    words = np.zeros(3 * zeros + 2, dtype=np.uint8)
    words[[zeros, 2 * zeros + 1]] = 7, 9
    data = encode(words, "gaps planes")
    assert data is not None and np.array_equal(_decoded(data, "gaps planes", words), words)


def test_a_value_beyond_the_last_is_refused() -> None:
    data = encode(np.array([0, 0, 0, 5], dtype=np.uint8), "gaps planes")
    assert data is not None
    with pytest.raises(ValueError, match="place 3 of 3"):
        decode(Sections(memoryview(data)), CODECS.index("gaps planes"), np.empty(3, dtype=np.uint8))
    with pytest.raises(ValueError, match="0 values cannot have 1 gaps"):
        decode(Sections(memoryview(data)), CODECS.index("gaps planes"), np.empty(0, dtype=np.uint8))
