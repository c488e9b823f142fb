"""Words in rows of token ids: where they begin, which may be replaced, and which are close in meaning."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

# What tokenizers put before a piece that begins a word (SentencePiece, byte-level BPE), or before one that does not.
BEGINS, CONTINUES = ("▁", "Ġ"), "##"
STRUCTURE = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
UNDECODED = "\ufffd"  # What a piece decodes to that holds part of a character.
NEIGHBOURS = 15  # As many as TinyBERT chooses from.
# The most frequent words are mostly function words, in any language. Of a small vocabulary, a tenth is kept.
KEPT, KEPT_SHARE = 100, 0.1
ROWS = 128  # Words whose neighbours are computed together.

Word = tuple[int, ...]  # The ids of its pieces.


@dataclass(frozen=True)
class Vocabulary:
    """What is known of each token.

    Args:
        begins: whether a token begins a word.
        structure: whether it is a special token around the texts of a row, such as `[SEP]`. An unknown word is not.
        letters: whether it decodes to letters only.
        marks: whether it decodes to something that is no letter: a number, punctuation, an emoji, a special token.
        tokenizer: that knows the tokens.
    """

    begins: Bool[np.ndarray, " tokens"]
    structure: Bool[np.ndarray, " tokens"]
    letters: Bool[np.ndarray, " tokens"]
    marks: Bool[np.ndarray, " tokens"]
    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> "Vocabulary":
        """Return what is known of the `size` tokens of a tokenizer.

        In a vocabulary without signs for the beginning of words (of characters or of bytes) each token begins a word.
        """
        texts = [text or "" for text in tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))]
        texts += [""] * (size - len(texts))
        begun = [text.startswith(BEGINS) for text in texts]
        continued = [text.startswith(CONTINUES) for text in texts]
        # Counted, because single characters of a WordPiece vocabulary may look like the sign of another tokenizer.
        begins = begun if sum(begun) > sum(continued) else [not value for value in continued]
        special, structure = (np.zeros(size, dtype=bool) for _ in range(2))
        special[[number for number in tokenizer.all_special_ids if number < size]] = True
        around = [getattr(tokenizer, name, None) for name in STRUCTURE]
        structure[[number for number in around if number is not None and number < size]] = True
        read = [tokenizer.convert_tokens_to_string([text.removeprefix(CONTINUES)]).strip() for text in texts]
        letters = np.array([text.isalpha() for text in read]) & ~special
        marks = np.array([not text.replace(UNDECODED, "").isalpha() and bool(text) for text in read]) | special
        partly = np.array([UNDECODED in text and not text.strip(UNDECODED) for text in read])
        return cls(np.array(begins), structure, letters, marks & ~partly, tokenizer)

    def words(self, ids: Sequence[int]) -> Iterator[tuple[int, Word]]:
        """Yield place and pieces of every word of a row, and of what stands between words, without `structure`."""
        start = 0
        for place in range(1, len(ids) + 1):
            if place < len(ids) and self._continues(ids[place - 1], ids[place]):
                continue
            if not self.structure[ids[start]]:
                yield start, tuple(ids[start:place])
            start = place

    def _continues(self, before: int, token: int) -> bool:
        """Return whether `token` belongs to the same word as the token before it."""
        if self.begins[token] or self.structure[before] or self.structure[token]:
            return False
        return bool(self.marks[before] == self.marks[token])

    def replaceable(self, word: Word) -> bool:
        """Return whether a word has letters only."""
        if self.marks[list(word)].any():
            return False
        pieces = self.tokenizer.convert_ids_to_tokens(list(word))
        return bool(self.tokenizer.convert_tokens_to_string(pieces).strip().isalpha())


@torch.no_grad()
def close_words(
    rows: Iterable[Sequence[int]], vocabulary: Vocabulary, embeddings: Float[Tensor, "tokens width"]
) -> dict[Word, list[Word]]:
    """Return up to 15 words for each word of `rows` that may be replaced: those with the largest cosine.

    Words have letters only, and as many pieces as the word that they replace. Candidates are the words of `rows`, and
    all whole words of one piece. The embedding of a word is the mean of those of its pieces. The 100 most frequent
    words (at most a tenth of all words) are neither replaced nor candidates.
    """
    counts = Counter(word for ids in rows for _, word in vocabulary.words(ids))
    found = {word: count for word, count in counts.items() if vocabulary.replaceable(word)}
    kept = {word for word, _ in Counter(found).most_common(min(KEPT, int(KEPT_SHARE * len(found))))}
    whole = {(int(number),) for number in np.flatnonzero(vocabulary.begins & vocabulary.letters)}
    alike: dict[tuple[int, bool], set[Word]] = defaultdict(set)
    for word in found.keys() - kept:
        # A word behind a hyphen has another first piece than the same word behind a space.
        alike[len(word), bool(vocabulary.begins[word[0]])].add(word)
    close: dict[Word, list[Word]] = {}
    for (pieces, begins), words in sorted(alike.items()):
        wanted, others = sorted(words), sorted(words | (whole - kept if (pieces, begins) == (1, True) else set()))
        if len(others) < 2:
            continue
        places = {word: place for place, word in enumerate(others)}
        table = torch.nn.functional.normalize(embeddings[torch.tensor(others)].float().mean(1), dim=-1)
        for start in range(0, len(wanted), ROWS):
            some = wanted[start : start + ROWS]
            own = torch.tensor([places[word] for word in some])
            cosines = table[own] @ table.T
            cosines[torch.arange(len(some)), own] = -torch.inf
            best = cosines.topk(min(NEIGHBOURS, len(others) - 1), dim=-1).indices.tolist()
            close.update(
                (word, [others[number] for number in numbers]) for word, numbers in zip(some, best, strict=True)
            )
    return close
