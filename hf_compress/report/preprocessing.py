"""How a row of a dataset becomes inputs and labels of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_compress.models.heads import IGNORED, Head

Rows = Mapping[str, Sequence[Any]]
# The kinds of preprocessing, by the main input of the model.
KINDS = {"input_ids": ("text", "words"), "pixel_values": ("image",), "input_values": ("audio",)}
KINDS["input_features"] = KINDS["input_values"]
# Strategies that cut one text of two: the first, or the second.
SHORTENED = ("only_first", "only_second")


@dataclass(frozen=True)
class Preprocessing:
    """What turns a row of the evaluation split into inputs of the model, besides the saved tokenizer or processor.

    Args:
        kind: what the tokenizer or processor reads: "text", "words" (text that is split already), "image" or "audio";
            or "pairs", two texts that an evaluator of sentence-transformers compares.
        columns: the columns that it reads, in this order: one or two of text, or one of another kind.
        label_column: the column of the label; None if rows have no label.
        max_length: tokens that a row is cut to, with "pairs" each text; None if it is never cut, or as the model says.
        truncation: the strategy of the tokenizer that cuts: "longest_first", "only_first" or "only_second".
        classes: the model's class for each value of the label column, written as text; None if the values are the
            classes, or numbers to predict.
        all_pieces: with "words", whether every piece of a word carries its label, or the first piece only.
        label_scale: with "pairs", what the label is multiplied by.

    Example:
        >>> from hf_compress.report.preprocessing import Preprocessing
        >>> Preprocessing("text", ["premise", "hypothesis"], "label", max_length=128, truncation="longest_first").kind
        'text'
    """

    kind: str
    columns: list[str]
    label_column: str | None
    max_length: int | None = None
    truncation: str | None = None
    classes: dict[str, int] | None = None
    all_pieces: bool = False
    label_scale: float = 1.0

    def inputs(self, processor: Any, rows: Rows) -> list[dict[str, Any]]:
        """Return the inputs of each row, without padding, as `processor` makes them.

        Args:
            processor: the tokenizer, image processor or feature extractor of the model.
            rows: the columns of some rows.
        """
        values = [list(rows[name]) for name in self.columns]
        if self.kind == "image":
            images = [image.convert("RGB") for image in values[0]]
            return [
                {"pixel_values": np.asarray(processor(image, return_tensors="np")["pixel_values"][0])}
                for image in images
            ]
        if self.kind == "audio":
            return [_sound(processor, value) for value in values[0]]
        encoded = self.encoded(processor, rows)
        return [{name: encoded[name][row] for name in encoded} for row in range(len(values[0]))]

    def encoded(self, tokenizer: Any, rows: Rows) -> Any:
        """Return what `tokenizer` makes of the text of some rows, without padding.

        Raises:
            ValueError: a row cannot be cut, because the text that is to be cut is shorter than what is too much.
        """
        texts, words = [list(rows[name]) for name in self.columns], self.kind == "words"
        if self.truncation in SHORTENED:
            self._check_cut(tokenizer, texts)
        return tokenizer(
            *texts,
            is_split_into_words=words,
            truncation=self.truncation or False,
            max_length=self.max_length,
            padding=False,
        )

    def _check_cut(self, tokenizer: Any, texts: Sequence[list[str]]) -> None:
        """Refuse rows that the tokenizers library would refuse with a bare `Exception`."""
        whole = tokenizer(*texts)["input_ids"]
        cut = tokenizer(texts[SHORTENED.index(self.truncation)], add_special_tokens=False)["input_ids"]
        for row, (ids, part) in enumerate(zip(whole, cut, strict=True)):
            if len(ids) - (self.max_length or len(ids)) >= max(len(part), 1):
                raise ValueError(f"Row {row} cannot be cut to {self.max_length} tokens by `{self.truncation}`.")

    def labels(self, tokenizer: Any, rows: Rows, head: Head) -> list[Any] | None:
        """Return the label of each row as the model's loss reads it; None if rows have no label.

        That is a class, a number, a list of zeros and ones (several labels at once), or one class per token.

        Raises:
            ValueError: a label that `classes` does not know.
        """
        if self.label_column is None:
            return None
        values = [self._class_of(value) for value in rows[self.label_column]]
        if self.kind == "words":
            encoded = self.encoded(tokenizer, rows)
            return [spread(encoded.word_ids(row), value, self.all_pieces) for row, value in enumerate(values)]
        if head.problem_type == "multi_label_classification":
            return multi_hot(values, head.num_labels or 0)
        return [float(value) for value in values] if head.regression else values

    def _class_of(self, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self._class_of(item) for item in value]
        if self.classes is None:
            return value
        if str(value) not in self.classes:
            raise ValueError(
                f"The column `{self.label_column}` holds the label {value!r}, which the model was not evaluated on. "
                f"Its labels are: {', '.join(self.classes)}."
            )
        return self.classes[str(value)]


def spread(words: Sequence[int | None], labels: Sequence[int], all_pieces: bool) -> list[int]:
    """Return the label of each token from the labels of the words; special tokens get -100.

    Args:
        words: the word of each token; None for special tokens.
        labels: of the words.
        all_pieces: whether later pieces of a word carry its label too. Otherwise they get -100.

    Example:
        >>> from hf_compress.report.preprocessing import spread
        >>> spread([None, 0, 0, 1, None], [3, 7], all_pieces=False)
        [-100, 3, -100, 7, -100]
    """
    before = [None, *words[:-1]]
    return [
        labels[word] if word is not None and (all_pieces or word != previous) else IGNORED
        for word, previous in zip(words, before, strict=True)
    ]


def multi_hot(values: Sequence[Sequence[Any]], width: int) -> list[list[float]]:
    """Return each row's labels as `width` zeros and ones.

    If all rows have `width` values of zero and one they are taken as they are, otherwise as the classes that hold.

    Example:
        >>> from hf_compress.report.preprocessing import multi_hot
        >>> multi_hot([[0, 2], []], 3)
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if all(len(row) == width and set(row) <= {0, 1} for row in values):
        return [[float(value) for value in row] for row in values]
    return [[float(index in set(row)) for index in range(width)] for row in values]


def resampled(rows: Any, processor: Any) -> Any:
    """Return the `datasets.Dataset` `rows`, whose audio files are decoded at the rate that `processor` reads.

    Example:
        >>> from datasets import Dataset
        >>> from hf_compress.report.preprocessing import resampled
        >>> resampled(Dataset.from_dict({"text": ["no sound"]}), processor=None).column_names
        ['text']
    """
    from datasets import Audio

    rate = getattr(processor, "sampling_rate", None)
    sounds = [name for name, feature in rows.features.items() if isinstance(feature, Audio) and feature.decode]
    for name in sounds if rate is not None else ():
        rows = rows.cast_column(name, Audio(sampling_rate=rate))
    return rows


def _sound(extractor: Any, value: Any) -> dict[str, Any]:
    """Return the inputs of one sound: samples, or what `datasets` decodes an audio file to."""
    rate = extractor.sampling_rate
    if not isinstance(value, Sequence | np.ndarray):  # A mapping, or a decoder that is read like one.
        value, rate = value["array"], value["sampling_rate"]
    found = extractor(np.asarray(value, dtype=np.float32), sampling_rate=rate, return_tensors="np")
    return {name: array[0] for name, array in found.items()}
