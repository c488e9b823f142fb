"""A tokenizer with fewer tokens cuts the texts it was made for as before, and spells every other word."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from hf_compress.cut.tokenizer import kept_tokens, rewritten

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SYLLABLES = ["ka", "to", "mi", "ren", "sul", "po", "dra", "vi", "nel", "osh"]


def words(seed: int, number: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(number)]


CORPUS = [" ".join(words(seed, 6)) for seed in range(400)]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL))
    return tokenizer


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="[UNK]")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def prepared(tokenizer: Tokenizer) -> Tokenizer:
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


TOKENIZERS = {make.__name__: prepared(make()) for make in (wordpiece, bpe, unigram)}


def cut(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tokenizer, list[int]]:
    description = json.loads(tokenizer.to_str())
    kept = kept_tokens(description, [number for text in texts for number in tokenizer.encode(text).ids])
    return Tokenizer.from_str(json.dumps(rewritten(description, kept))), kept


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("rows", [0, 1, 20])
def test_what_was_seen_is_cut_into_the_same_tokens(name: str, rows: int) -> None:
    tokenizer, seen = TOKENIZERS[name], CORPUS[:rows]
    smaller, kept = cut(tokenizer, seen)
    assert smaller.get_vocab_size() == len(kept) < 0.8 * tokenizer.get_vocab_size()
    for text in seen:
        before, after = tokenizer.encode(text), smaller.encode(text)
        assert [kept[number] for number in after.ids] == before.ids
        assert after.tokens == before.tokens


SMALLER = {name: cut(tokenizer, CORPUS[:5])[0] for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text("katomirensulpodravishn ", max_size=30))
def test_other_texts_are_spelled_in_more_pieces_none_unknown(name: str, text: str) -> None:
    before, after = TOKENIZERS[name].encode(text), SMALLER[name].encode(text)
    unknown = "[UNK]"
    assert after.tokens.count(unknown) <= before.tokens.count(unknown)
    assert len(after.ids) >= len(before.ids)
    if unknown not in before.tokens:
        spelled = "".join(token.removeprefix("##") for token in after.tokens)
        assert spelled == "".join(token.removeprefix("##") for token in before.tokens)


def test_a_token_with_a_character_that_is_no_token_stays() -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "##a": 2, "aé": 3, "##éa": 4, "aa": 5, "b": 6, "##ab": 7}
    description = json.loads(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).to_str())
    assert kept_tokens(description, []) == [0, 1, 2, 3, 4, 6, 7]
    assert kept_tokens(description, [5]) == list(range(8))


def test_bytes_stay_where_characters_fall_back_on_them() -> None:
    vocabulary = {"<unk>": 0, "<0x41>": 1, "a": 2, "b": 3, "ab": 4}
    model = models.BPE(vocabulary, [("a", "b")], unk_token="<unk>", byte_fallback=True)
    assert kept_tokens(json.loads(Tokenizer(model).to_str()), []) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing", "Sequence"])
def test_what_adds_special_tokens_is_renumbered(kind: str) -> None:
    tokenizer = wordpiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    made: dict[str, Any] = {
        "BertProcessing": lambda: processors.BertProcessing(*ends),
        "RobertaProcessing": lambda: processors.RobertaProcessing(*ends),
        "Sequence": lambda: processors.Sequence([processors.BertProcessing(*ends)]),
    }
    tokenizer.post_processor = made[kind]()
    # In front of the special tokens stands one that goes: they have to move.
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    first, last = SPECIAL[0], max(vocabulary, key=vocabulary.get)
    del description["added_tokens"][0]
    vocabulary[first], vocabulary[last] = vocabulary[last], vocabulary[first]
    vocabulary["[PAD]".lower() + "x"] = vocabulary.pop(first)
    tokenizer = Tokenizer.from_str(json.dumps(description))
    smaller, kept = cut(tokenizer, CORPUS[:3])
    assert [kept[number] for number in smaller.encode(CORPUS[0]).ids] == tokenizer.encode(CORPUS[0]).ids


def test_padding_is_renumbered() -> None:
    tokenizer = prepared(wordpiece())
    number = tokenizer.token_to_id("[SEP]")
    tokenizer.enable_padding(length=20, pad_id=number, pad_token="[SEP]")
    smaller, kept = cut(tokenizer, CORPUS[:3])
    assert [kept[number] for number in smaller.encode(CORPUS[0]).ids] == tokenizer.encode(CORPUS[0]).ids


def test_a_tokenizer_of_whole_words_is_refused() -> None:
    description = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(ValueError, match=r"WordPiece, BPE, Unigram; the tokenizer's model is WordLevel"):
        kept_tokens(description, [0])


def test_an_unknown_post_processor_is_refused() -> None:
    description = json.loads(TOKENIZERS["wordpiece"].to_str())
    description["post_processor"] = {"type": "Novel"}
    with pytest.raises(ValueError, match="with the post-processor Novel"):
        rewritten(description, kept_tokens(description, []))
