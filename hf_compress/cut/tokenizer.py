"""Which tokens a tokenizer must keep, and its description (`tokenizer.json`) without the others.

Three models of the library tokenizers are supported: WordPiece, BPE and Unigram.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MODELS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

Description = Mapping[str, Any]


class Merge(NamedTuple):
    """A merge of BPE: two adjacent tokens, and the token that replaces them."""

    left: str
    right: str
    result: str


def kept_tokens(description: Description, seen: Iterable[int]) -> list[int]:
    """Return the numbers of the tokens to keep so that texts of `seen` tokens are split as before, ascending.

    Besides `seen`, these are the added tokens, the unknown token, and the pieces that spell everything else: single
    characters, bytes, and tokens that these cannot spell. A text of `seen` tokens is split into the same tokens:

    - WordPiece takes the longest token that fits. That token is kept; others only disappear.
    - Unigram takes the best split of a text. That split is kept; others only disappear.
    - BPE applies the first possible merge in its list. Every token that a seen one is merged from is kept, too.

    Any other text is split into more pieces than before. A piece is unknown only if it was unknown before, or if it
    has a character that is not a token by itself.

    Raises:
        ValueError: the tokenizer has another model.
    """
    model, vocabulary = _model(description), _vocabulary(description)
    kept = {*seen, *(token["id"] for token in description.get("added_tokens") or ())}
    unknown = model.get("unk_token")
    kept |= {vocabulary[unknown]} if unknown in vocabulary else set()
    kept |= {number for token, number in vocabulary.items() if BYTE.fullmatch(token)}
    if model["type"] == "BPE":
        return sorted(kept | _bpe_pieces(model, vocabulary, kept))
    if model["type"] == "Unigram" and model["vocab"]:
        kept |= {model["unk_id"]} if model["unk_id"] is not None else set()
        # The score of an unknown character is derived from the least likely token.
        kept.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
    prefix = model["continuing_subword_prefix"] if model["type"] == "WordPiece" else ""
    begins = {token for token in vocabulary if len(token) == 1}
    within = {token[len(prefix) :] for token in vocabulary if token.startswith(prefix)}
    for token, number in vocabulary.items():
        inner = bool(prefix) and token.startswith(prefix) and token != prefix
        characters = token.removeprefix(prefix) if inner else token
        first = characters[:1] in (within if inner else begins)
        if len(characters) <= 1 or not (first and all(letter in within for letter in characters[1:])):
            kept.add(number)
    return sorted(kept)


def rewritten(description: Description, kept: Sequence[int]) -> dict[str, Any]:
    """Return the description of a tokenizer with only the tokens `kept`, which get new numbers in the same order.

    Args:
        kept: the result of `kept_tokens`, or more tokens.

    Raises:
        ValueError: the tokenizer has another model, or an unknown post-processor.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    changed: dict[str, Any] = copy.deepcopy(dict(description))
    model, vocabulary = _model(changed), _vocabulary(changed)
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][number] for number in kept if number < len(model["vocab"])]
        model["unk_id"] = numbers.get(model["unk_id"])
    else:
        ordered = sorted(vocabulary.items(), key=lambda item: item[1])
        model["vocab"] = {token: numbers[number] for token, number in ordered if number in numbers}
    if model["type"] == "BPE":
        model["merges"] = [[m.left, m.right] for m in _merges(model) if m.result in model["vocab"]]
    changed["added_tokens"] = [
        token | {"id": numbers[token["id"]]} for token in changed.get("added_tokens") or () if token["id"] in numbers
    ]
    if changed.get("padding"):
        changed["padding"]["pad_id"] = numbers[changed["padding"]["pad_id"]]
    _renumber(changed.get("post_processor"), numbers)
    return changed


def _model(description: Description) -> dict[str, Any]:
    model: dict[str, Any] = description["model"]
    if model.get("type") not in MODELS:
        raise ValueError(
            f"`--compress_vocabulary` supports {', '.join(MODELS)}; the tokenizer's model is {model.get('type')}, "
            "which has no smaller pieces to spell a word with. Leave the flag out."
        )
    return model


def _vocabulary(description: Description) -> dict[str, int]:
    vocabulary = description["model"]["vocab"]
    if description["model"]["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _merges(model: Mapping[str, Any]) -> list[Merge]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    prefix = model.get("continuing_subword_prefix") or ""
    return [Merge(left, right, left + right.removeprefix(prefix)) for left, right in pairs]


def _bpe_pieces(model: Mapping[str, Any], vocabulary: Mapping[str, int], kept: Iterable[int]) -> set[int]:
    """Return the alphabet (tokens that no merge makes) and all tokens that `kept` tokens are merged from."""
    parts: dict[str, list[str]] = {}
    for merge in _merges(model):
        parts.setdefault(merge.result, []).extend((merge.left, merge.right))
    names = {number: token for token, number in vocabulary.items()}
    found = {token for token in vocabulary if token not in parts}
    open_ones = [names[number] for number in kept if number in names]
    while open_ones:
        token = open_ones.pop()
        if token not in found:
            found.add(token)
            open_ones += parts[token]
    return {vocabulary[token] for token in found}


def _renumber(processor: dict[str, Any] | None, numbers: Mapping[int, int]) -> None:
    """Replace the numbers of special tokens in a post-processor, in place."""
    kind = None if processor is None else processor["type"]
    if processor is None or kind == "ByteLevel":
        return
    if kind == "Sequence":
        for inner in processor["processors"]:
            _renumber(inner, numbers)
    elif kind == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [numbers[number] for number in special["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            token, number = processor[name]
            processor[name] = [token, numbers[number]]
    else:
        raise ValueError(
            f"`--compress_vocabulary` does not support tokenizers with the post-processor {kind}. Leave the flag out."
        )
