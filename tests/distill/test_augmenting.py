"""Words in rows of token ids, words close to them, and the rows that are made of others with them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hf_compress.distill.augmenting import Augmenter, parts
from hf_compress.distill.words import Vocabulary, close_words

TEXTS = [
    "The harbour was quiet, and a lantern burned over the harbourmaster's door.",
    "Nobody had unpacked the lanterns; forty-two boxes stood in the quietest room!",
    "Morning came slowly over the burned fields, and the boxes were opened.",
]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SETTINGS: dict[str, Any] = {"special_tokens": MARKS, "show_progress": False}


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, **SETTINGS))
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, **SETTINGS, unk_token="[UNK]")
    made.train_from_iterator(TEXTS, trainer)
    return made


def bytes_of_words(texts: Sequence[str] = TEXTS) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if texts is not TEXTS else []
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=80, initial_alphabet=alphabet, **SETTINGS))
    return made


def finished(made: Tokenizer) -> PreTrainedTokenizerFast:
    marks = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=made, **dict(zip(names, MARKS, strict=True)))


@pytest.fixture(scope="module", params=[wordpiece, unigram, bytes_of_words], ids=["wordpiece", "unigram", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of each kind, of words in several pieces."""
    return finished(request.param())


@pytest.fixture(scope="module")
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """What is known of its tokens."""
    return Vocabulary.of(tokenizer, len(tokenizer))


def read(tokenizer: Any, word: tuple[int, ...]) -> str:
    return str(tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(list(word)))).strip()


def table(size: int) -> Tensor:
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(0))


def test_words_are_whole_in_every_tokenizer(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    ids = tokenizer("The harbour was quiet, and forty-two lanterns burned!")["input_ids"]
    found = [word for _, word in vocabulary.words(ids)]
    words = [read(tokenizer, word).lower() for word in found if vocabulary.replaceable(word)]
    assert words == ["the", "harbour", "was", "quiet", "and", "forty", "two", "lanterns", "burned"]
    assert any(len(word) > 1 for word in found), "else nothing here has several pieces"
    others = "".join(read(tokenizer, word) for word in found if not vocabulary.replaceable(word))
    assert others.replace(" ", "") == ",-!"


def test_words_cover_a_row_but_its_special_tokens(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    ids = tokenizer(TEXTS[0], TEXTS[1])["input_ids"]
    covered = [place + step for place, word in vocabulary.words(ids) for step in range(len(word))]
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert covered == [place for place, token in enumerate(ids) if token not in special]
    assert all(tuple(ids[place : place + len(word)]) == word for place, word in vocabulary.words(ids))


def test_an_unknown_word_does_not_split_a_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    known = Vocabulary.of(tiny_tokenizer, len(tiny_tokenizer))
    ids = tiny_tokenizer("the zzz film", "a zzz song")["input_ids"]
    assert tiny_tokenizer.unk_token_id in ids
    assert parts(ids, known.structure) == [(1, 4), (5, 8)]
    assert not known.replaceable((tiny_tokenizer.unk_token_id,))


def test_rows_without_words_stay_as_they_are(
    tokenizer: PreTrainedTokenizerFast, augmenter: Callable[..., Augmenter]
) -> None:
    rows = [*tokenizer(["", "!?", "[UNK] 42"])["input_ids"], []]
    maker = augmenter(rows)
    assert [maker.new(number, 0)[0] for number in range(4)] == rows


def test_words_of_other_scripts_are_words() -> None:
    made = bytes_of_words(["тихая гавань", "静かな港"])
    known = Vocabulary.of(finished(made), made.get_vocab_size() + 5)
    ids = made.encode("тихая гавань, 静かな港 \U0001f600!").ids
    found = [(read(known.tokenizer, word), known.replaceable(word)) for _, word in known.words(ids)]
    assert [word for word, whole in found if whole] == ["тихая", "гавань", "静かな港"]


def test_close_words_are_those_with_the_largest_cosine(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> None:
    rows = tokenizer(TEXTS)["input_ids"]
    embeddings = table(len(tokenizer))
    close = close_words(rows, vocabulary, embeddings)
    words = {word for ids in rows for _, word in vocabulary.words(ids) if vocabulary.replaceable(word)}
    kept = words - set(close)
    whole = {(token,) for token in range(len(tokenizer)) if vocabulary.begins[token] and vocabulary.letters[token]}
    assert close
    for word, found in close.items():
        cosines = []  # In a naive loop.
        for other in (words | whole) - kept - {word}:
            if len(other) == len(word) and vocabulary.begins[other[0]] == vocabulary.begins[word[0]]:
                means = embeddings[list(word)].mean(0), embeddings[list(other)].mean(0)
                cosines.append((float(torch.cosine_similarity(*means, dim=0)), other))
        assert found == [other for _, other in sorted(cosines, reverse=True)[:15]]


def test_the_most_frequent_words_are_kept(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    rows = tokenizer([*TEXTS, *["the lantern and the box"] * 20])["input_ids"]
    close = close_words(rows, vocabulary, table(len(tokenizer)))
    the = next(word for ids in rows[3:] for _, word in vocabulary.words(ids) if read(tokenizer, word) == "the")
    assert the not in close
    assert all(the not in others for others in close.values())


@pytest.fixture(scope="module")
def augmenter(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Callable[..., Augmenter]:
    """A function that makes an augmenter of rows."""

    def build(rows: list[list[int]], pairs: bool = True, seed: int = 0) -> Augmenter:
        return Augmenter(rows, vocabulary, table(len(tokenizer)), max(map(len, rows)), pairs, seed)

    return build


def changed(old: list[int], new: list[int], vocabulary: Vocabulary) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    for place, word in vocabulary.words(old):
        yield word, new[place : place + len(word)]


def test_four_in_ten_words_become_close_words(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, augmenter: Callable[..., Augmenter]
) -> None:
    rows = tokenizer(TEXTS)["input_ids"]
    maker, replaced, could = augmenter(rows), 0, 0
    for number, copy in np.ndindex(3, 60):
        new, places = maker.new(number, copy)
        assert places == list(range(len(rows[number])))
        for word, now in changed(rows[number], new, vocabulary):
            assert tuple(now) in {word, *maker.close.get(word, ())}
            replaced, could = replaced + (tuple(now) != word), could + (word in maker.close)
    assert 0.36 < replaced / could < 0.44


def test_the_same_seed_makes_the_same_rows(
    tokenizer: PreTrainedTokenizerFast, augmenter: Callable[..., Augmenter]
) -> None:
    rows = tokenizer(TEXTS, TEXTS[::-1])["input_ids"]
    once, again, other = (augmenter(rows, seed=seed) for seed in (0, 0, 1))
    assert all(once.new(1, copy) == again.new(1, copy) for copy in range(4))
    assert any(once.new(1, copy) != other.new(1, copy) for copy in range(4))
    assert len({tuple(once.new(1, copy)[0]) for copy in range(4)}) > 1, "copies differ"


def test_half_of_pairs_get_another_text_or_turn_round(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, augmenter: Callable[..., Augmenter]
) -> None:
    rows = tokenizer([*TEXTS, "quiet boxes"] * 2, [*TEXTS[1:], "a door", "over the fields"] * 2)["input_ids"]
    maker, rounds, turned, other = augmenter(rows), 400, 0, 0
    maker.__dict__["close"] = {}  # No word is replaced, so that texts can be told.
    known = {tuple(ids[begin:end]) for ids in rows for begin, end in parts(ids, vocabulary.structure)}
    for copy in range(rounds):
        number = copy % len(rows)
        new, places = maker.new(number, copy)
        assert len(new) == len(places) <= maker.length
        first, second = (tuple(new[begin:end]) for begin, end in parts(new, vocabulary.structure))
        old = [tuple(rows[number][begin:end]) for begin, end in parts(rows[number], vocabulary.structure)]
        turned += first == old[1]
        other += second not in old
        assert all(any(text == whole[: len(text)] for whole in known) for text in (first, second))
    assert 0.4 < turned / rounds < 0.6
    assert 0.3 < other / rounds < 0.5, "one text in four or so is that of the pair itself"


def test_values_of_tokens_follow_their_text(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, augmenter: Callable[..., Augmenter]
) -> None:
    encoded = tokenizer(TEXTS, ["a door", "quiet", "the fields"], return_token_type_ids=True)
    maker = augmenter(encoded["input_ids"])
    for number, copy in np.ndindex(3, 10):
        new, places = maker.new(number, copy)
        types = [encoded["token_type_ids"][number][place] for place in places]
        (begin, end), (second, last) = parts(new, vocabulary.structure)
        assert types == [0] * (end + 1) + [1] * (last + 1 - second), "as the tokenizer numbers a pair"
        assert begin == 1


def test_texts_that_belong_together_stay_together(
    tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary, augmenter: Callable[..., Augmenter]
) -> None:
    rows = tokenizer(TEXTS, TEXTS[::-1])["input_ids"]
    maker = augmenter(rows, pairs=False)
    for copy in range(10):
        new, _ = maker.new(0, copy)
        assert len(new) == len(rows[0])
        assert parts(new, vocabulary.structure) == parts(rows[0], vocabulary.structure)


def test_single_texts_are_not_paired(tokenizer: PreTrainedTokenizerFast, augmenter: Callable[..., Augmenter]) -> None:
    rows = [*tokenizer(TEXTS)["input_ids"], tokenizer("a door", "a box")["input_ids"]]
    maker = augmenter(rows)
    assert all(len(maker.new(3, copy)[0]) == len(rows[3]) for copy in range(10))
