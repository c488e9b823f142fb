"""Further rows for a teacher to label: training rows with some words replaced, and pairs swapped or paired anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from hf_compress.distill.fingerprints import digest
from hf_compress.distill.made_rows import BATCH, made_rows
from hf_compress.distill.row_form import Row, RowForm
from hf_compress.distill.words import Vocabulary, Word, close_words

REPLACED = 0.4  # The share of words that are replaced (Jiao et al., 2020).
SWAPPED, PAIRED = 0.5, 0.5  # The shares of pairs whose texts change places, and that get another row's text.

LOOKED_AT = 1000

Ids = Sequence[int]
Structure = Bool[np.ndarray, " tokens"]  # Which tokens of a vocabulary stand around texts.


@dataclass(frozen=True)
class Augmenter:
    """Makes new rows from the rows of a training set.

    Args:
        rows: the token ids of each row, with special tokens and without padding.
        vocabulary: of their tokenizer.
        embeddings: the teacher's, one per token, of shape (tokens, width).
        length: the tokens of the longest row. A pair that becomes longer is cut at the end of its longer text.
        pairs: whether the texts of a pair may change places and get another row's text.
        seed: chooses the new rows, together with the number of a row and that of its copy.
    """

    rows: Sequence[Ids]
    vocabulary: Vocabulary
    embeddings: Tensor
    length: int
    pairs: bool
    seed: int

    @cached_property
    def close(self) -> Mapping[Word, Sequence[Word]]:
        """The words that may replace each word."""
        return close_words(self.rows, self.vocabulary, self.embeddings)

    @cached_property
    def paired(self) -> bool:
        """Whether the rows are pairs of texts, and may be treated so."""
        return self.pairs and are_pairs(self.rows, self.vocabulary.structure)

    def new(self, number: int, copy: int) -> tuple[list[int], list[int]]:
        """Return the ids of a new row made of row `number`, and for each the place in that row that it comes from.

        Other columns with a value for each token (token types) are taken from these places.
        """
        ids, draw = self.rows[number], np.random.default_rng([self.seed, number, copy])
        texts = parts(ids, self.vocabulary.structure) if self.paired else []
        if len(texts) != 2:
            return self._replaced(ids, draw), list(range(len(ids)))
        pair = [list(ids[begin:end]) for begin, end in texts]
        if draw.random() < SWAPPED:
            pair.reverse()
        if draw.random() < PAIRED:
            pair[1] = self._other_text(draw) or pair[1]
        pair = [self._replaced(text, draw) for text in pair]
        (first, first_end), (second, second_end) = texts
        room = self.length - (len(ids) - (first_end - first) - (second_end - second))
        while len(pair[0]) + len(pair[1]) > max(room, 2):
            max(pair, key=len).pop()
        new = [*ids[:first], *pair[0], *ids[first_end:second], *pair[1], *ids[second_end:]]
        places = [*range(first), *[first] * len(pair[0]), *range(first_end, second)]
        places += [*[second] * len(pair[1]), *range(second_end, len(ids))]
        return new, places

    def _other_text(self, draw: np.random.Generator) -> list[int]:
        """Return one text of any row; nothing if that row has none."""
        ids = self.rows[int(draw.integers(len(self.rows)))]
        texts = parts(ids, self.vocabulary.structure)
        if not texts:
            return []
        begin, end = texts[int(draw.integers(len(texts)))]
        return list(ids[begin:end])

    def _replaced(self, ids: Ids, draw: np.random.Generator) -> list[int]:
        """Return `ids` with some words replaced by as many tokens."""
        new = list(ids)
        for place, word in self.vocabulary.words(ids):
            others = self.close.get(word)
            if others and draw.random() < REPLACED:
                new[place : place + len(word)] = others[int(draw.integers(len(others)))]
        return new


def are_pairs(rows: Sequence[Ids], structure: Structure) -> bool:
    """Return whether most rows are pairs of texts. Up to 1,000 of them are looked at."""
    some = rows[:: max(1, len(rows) // LOOKED_AT)]
    return 2 * sum(len(parts(ids, structure)) == 2 for ids in some) > len(some)


def parts(ids: Ids, structure: Structure) -> list[tuple[int, int]]:
    """Return where each text of a row begins and ends: the runs without tokens of the `structure` around texts."""
    inside = np.concatenate([[False], ~structure[np.asarray(ids, dtype=np.int64)], [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def augmented_rows(
    dataset: Any, form: RowForm, vocabulary: Vocabulary, embeddings: Tensor, copies: int, seed: int
) -> Any:
    """Return a `datasets.Dataset` of new rows made of those of `dataset`, which only the teacher labels.

    Args:
        dataset: without format, with the columns that reach the model.
        embeddings: the teacher's, one per token.
        copies: the number of new rows for each row.
        seed: another one gives other rows.
    """
    main = form.head.main_input
    # Answers are asked about a context, so a question stays with its own. Labels of tokens stand at their tokens.
    pairs = form.head.kind == "sequence"
    maker = Augmenter([form.trimmed(row)[main] for row in dataset], vocabulary, embeddings, form.length, pairs, seed)

    def make(rows: list[Row], numbers: list[int]) -> list[Row]:
        made = []
        for number, row in zip(numbers, map(form.trimmed, rows), strict=True):
            for copy in range(copies):
                ids, places = maker.new(number, copy)
                made.append(form.unlabelled(form.rebuilt(row, ids, places), vocabulary.structure))
        return made

    facts = {"embeddings": digest([("embeddings", embeddings)]), "copies": copies, "seed": seed}
    return made_rows(dataset, make, form, dataset, facts, "augmented", batch_size=max(1, BATCH // copies))
