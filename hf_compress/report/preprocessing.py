"""How a row of a dataset becomes inputs of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """What turns a row of the evaluation split into inputs of the model, besides the saved tokenizer or processor.

    Args:
        kind: what the tokenizer or processor reads: "text", "words" (text that is split already), "image" or "audio".
        columns: the columns that it reads, in this order: one or two of text, or one of another kind.
        label_column: the column of the label; None if rows have no label.
        max_length: tokens that a row is cut to; None if it is never cut.
        truncation: the strategy of the tokenizer that cuts: "longest_first", "only_first" or "only_second".
        classes: the model's class for each value of the label column, written as text; None if the values are the
            classes, or numbers to predict.
        all_pieces: with "words", whether every piece of a word carries its label, or the first piece only.
    """

    kind: str
    columns: list[str]
    label_column: str | None
    max_length: int | None = None
    truncation: str | None = None
    classes: dict[str, int] | None = None
    all_pieces: bool = False
