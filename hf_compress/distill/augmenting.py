"""Further rows for a teacher to label: training rows with some words replaced, and pairs swapped or paired anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hf_compress.distill.fingerprints import content, digest, vocabulary_facts
from hf_compress.distill.row_form import RowForm
from hf_compress.distill.teacher_only import COLUMN
from hf_compress.distill.words import Vocabulary, Word, close_words

REPLACED = 0.4  # The share of words that are replaced (Jiao et al., 2020).
SWAPPED, PAIRED = 0.5, 0.5  # The shares of pairs whose texts change places, and that get another row's text.

# Change it whenever other rows are made of the same data: it is part of the name of their cache.
FORMAT = "1"
BATCH = 1000

Ids = Sequence[int]


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
        """Whether most rows are pairs of texts, and may be treated so."""
        return self.pairs and 2 * sum(len(parts(ids, self.vocabulary)) == 2 for ids in self.rows) > len(self.rows)

    def new(self, number: int, copy: int) -> tuple[list[int], list[int]]:
        """Return the ids of a new row made of row `number`, and for each the place in that row that it comes from.

        Other columns with a value for each token (token types) are taken from these places.
        """
        ids, draw = self.rows[number], np.random.default_rng([self.seed, number, copy])
        texts = parts(ids, self.vocabulary)
        if not self.paired or len(texts) != 2:
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
        texts = parts(ids, self.vocabulary)
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


def parts(ids: Ids, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Return where each text of a row begins and ends: the runs without special tokens around texts."""
    inside = np.concatenate([[False], ~vocabulary.structure[list(ids)], [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def augmented_rows(dataset: Any, form: RowForm, embeddings: Tensor, copies: int, seed: int) -> Any:
    """Return a `datasets.Dataset` of new rows made of those of `dataset`, which only the teacher labels.

    They are kept in a file beside the caches of datasets. A digest of all that they depend on names it, so the same
    arguments give the same rows, and the second time without work.

    Args:
        dataset: without format, with the columns that reach the model.
        embeddings: the teacher's, one per token.
        copies: the number of new rows for each row.
    """
    import datasets

    vocabulary = Vocabulary.of(form.tokenizer, len(embeddings))
    # The places of an answer may point anywhere, but its question belongs to its context.
    rows, pairs = [form.trimmed(row)[form.head.main_input] for row in dataset], form.head.kind == "sequence"
    maker = Augmenter(rows, vocabulary, embeddings, form.length, pairs, seed)

    def make(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in features}
        for number, values in zip(numbers, zip(*batch.values(), strict=True), strict=True):
            row = form.trimmed(dict(zip(batch, values, strict=True)))
            for copy in range(copies):
                ids, places = maker.new(number, copy)
                new = form.unlabelled(form.rebuilt(row, ids, places), (~vocabulary.structure[ids]).tolist())
                for name in features:
                    made[name].append(new[name])
        return made

    features = datasets.Features(dict(dataset.features) | {COLUMN: datasets.Value("bool")})
    facts = {"format": FORMAT, "rows": content(dataset, dataset.column_names), "copies": copies, "seed": seed}
    facts |= {"head": repr(form.head), "features": repr(sorted(features.items())), "labels": repr(form.labels)}
    key = digest([*facts.items(), *vocabulary_facts(form.tokenizer).items(), ("embeddings", embeddings)])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "augmented"
    folder.mkdir(parents=True, exist_ok=True)
    return dataset.map(
        make,
        batched=True,
        batch_size=max(1, BATCH // copies),
        with_indices=True,
        remove_columns=dataset.column_names,
        features=features,
        cache_file_name=str(folder / f"{key}.arrow"),
        new_fingerprint=key,
        desc="Augmenting",
    )
