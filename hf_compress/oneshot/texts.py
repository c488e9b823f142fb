"""The texts that a model is compressed and measured on: from a file, a folder or a dataset of the Hub."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_compress.models.heads import Head
from hf_compress.oneshot.source import is_encoder
from hf_compress.redaction import redact
from hf_compress.report.preprocessing import Preprocessing
from hf_compress.report.report import DatasetFacts
from hf_compress.report.sentence_trial import PAIRS as COMPARED
from hf_compress.report.source import find_source
from hf_compress.texts import PAIRS, SINGLE, filled, is_text, load_splits, text_columns, word_columns

TRAIN, EVALUATION = ("train",), ("validation", "dev", "validation_matched", "test")
LABELS = ("label", "labels", "score")
TAGS = ("ner_tags", "pos_tags", "tags", "labels")
HELD_OUT = 0.2  # Of the rows, at most.
TEXT = "text"


@dataclass(frozen=True)
class Data:
    """Which texts to read.

    Args:
        name: a file (.txt, .csv, .tsv, .json, .jsonl, .parquet), a folder that `datasets.load_dataset` loads, or an id
            of the Hub.
        config: the configuration of the dataset.
        split: the split to choose the steps on; by default "train" or the only one.
        eval_split: the split to measure on; by default the validation split, or rows held out of `split`.
        columns: one column of text or two; by default found by their names and types.
        label_column: by default found, if there are labels.
        eval_rows: rows to measure on, at most.
        token: a Hub token.

    Example:
        >>> from hf_compress.oneshot import Data
        >>> Data("sentences.txt").eval_rows
        1000
    """

    name: str
    config: str | None = None
    split: str | None = None
    eval_split: str | None = None
    columns: Sequence[str] = ()
    label_column: str | None = None
    eval_rows: int = 1000
    token: str | None = None


@dataclass(frozen=True)
class Texts:
    """Rows to choose steps on, and others to measure on.

    Args:
        sample: a `datasets.Dataset`.
        held: another, with none of these rows.
        preprocessing: how a row becomes inputs of the model.
        facts: what the rows are.
        similar: how similar the two texts of each held-out row are, by the labels. An encoder reads the texts one by
            one, so `held` then has two rows for each of these. None without such labels.
    """

    sample: Any
    held: Any
    preprocessing: Preprocessing
    facts: DatasetFacts
    similar: list[float] | None = None

    @property
    def answers(self) -> str:
        """Whether the rows to measure on have labels of this model, for the log."""
        if self.preprocessing.label_column is not None or self.similar is not None:
            return "with labels"
        unused = next((name for name in (*LABELS, *TAGS) if name in self.held.column_names), None)
        return "without labels" + ("" if unused is None else f" (`{unused}` does not hold labels of this model)")

    def unrepeatable(self, why: str) -> "Texts":
        """Return these texts with the reason, a sentence, why the scores cannot be measured again from the report."""
        return replace(self, facts=replace(self.facts, preprocessing=None, without_preprocessing=why))


def read_texts(data: Data, head: Head, config: PreTrainedConfig, length: int) -> Texts:
    """Return the rows of `data` for a model with `head`.

    A model with a head reads two columns as a pair; for an encoder each column is a text of its own.

    Args:
        config: of the model; it names the classes.
        length: tokens that a text is cut to.

    Raises:
        ValueError: the data cannot be loaded, are empty, or have no column of text, or none that can be told.
    """
    splits = load_splits(data.name, data.config, option="data", configured="`--config NAME`", token=data.token)
    name = _split(data.split, splits, TRAIN, "split")
    rows = splits[name]
    columns = list(data.columns) or _columns(rows, head)
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(
            f"`--columns` names {', '.join(missing)}, but {data.name} has {', '.join(rows.column_names)}."
        )
    if len(columns) > 2:
        raise ValueError(f"`--columns` takes one column or two (a pair of texts); got {len(columns)}.")
    if wrong := [name for name in columns if not is_text(rows.features[name]) and name not in word_columns(rows)]:
        raise ValueError(
            f"`--columns` must name columns of text; {wrong[0]} of {data.name} holds {rows.features[wrong[0]]}."
        )
    rows = filled(rows, columns)
    if len(rows) < 2:
        raise ValueError(f"At least 2 rows with text are needed; got {len(rows)} in `{name}` of {data.name}.")
    if data.eval_split == name:
        raise ValueError(
            f"`--eval_split` must differ from the split that the steps are chosen on; got `{name}` for both. Leave it "
            "out to measure on rows that are held out."
        )
    own = data.eval_split or next((one for one in EVALUATION if one in splits and one != name), None)
    if own is not None:
        _split(own, splits, (), "eval_split")
        held = filled(splits[own], columns)
        sample, first = rows, 0
    else:
        kept = len(rows) - max(1, min(data.eval_rows, int(HELD_OUT * len(rows))))
        sample, held, own, first = rows.select(range(kept)), rows.select(range(kept, len(rows))), name, kept
    if not len(held):
        raise ValueError(f"{data.name} has no rows with text in `{own}`. Choose another `--eval_split`.")
    whole = len(held) if first == 0 else len(rows)
    held = held.select(range(min(len(held), data.eval_rows)))
    preprocessing = _preprocessing(data, head, config, columns, held, length)
    similar, recorded = None, preprocessing
    if is_encoder(head) and (label := _label(data, columns, held)) is not None:
        similar = [float(value) for value in held[label]]
        recorded = replace(preprocessing, kind=COMPARED, label_column=label)
    source = find_source(rows)
    facts = DatasetFacts(
        name=source.name or redact(Path(data.name).name),
        config=source.config,
        train_split=name,
        train_rows=len(sample),
        eval_split=own,
        eval_rows=len(held),
        hub_id=source.hub_id,
        eval_split_rows=whole,
        eval_part=None if len(held) == whole else f"{own}[{first or ''}:{first + len(held)}]",
        revision=source.revision,
        preprocessing=recorded,
    )
    if is_encoder(head) and len(columns) > 1:
        sample, held = _flat(sample, columns), _flat(held, columns)
        preprocessing = replace(preprocessing, columns=[TEXT])
    return Texts(sample, held, preprocessing, facts, similar)


def _split(wanted: str | None, splits: dict[str, Any], preferred: Sequence[str], option: str) -> str:
    if wanted is None:
        return next((name for name in preferred if name in splits), next(iter(splits)))
    if wanted not in splits:
        raise ValueError(f"`--{option} {wanted}` is not a split of the data, which has {', '.join(splits)}.")
    return wanted


def _columns(rows: Any, head: Head) -> list[str]:
    """Return the columns of text, by their types and usual names."""
    words = word_columns(rows)
    if head.kind == "token" and len(words) == 1:
        return words
    found = text_columns(rows)
    if len(found) == 1:
        return found
    pairs = [[*pair] for pair in PAIRS if set(pair) <= set(found)]
    single = [[name] for name in SINGLE if name in found]
    if chosen := [*pairs, *single]:
        return chosen[0]
    said = (
        f"has the text columns {', '.join(found)}" if found else f"has no column of text ({', '.join(rows.features)})"
    )
    raise ValueError(f"The data {said}. Name one, or two for pairs, with `--columns`.")


def _flat(rows: Any, columns: Sequence[str]) -> Any:
    """Return one row for each text."""
    from datasets import Dataset

    texts = list(itertools.chain(*zip(*(rows[column] for column in columns), strict=True)))
    return Dataset.from_dict({TEXT: texts})


def _label(data: Data, columns: Sequence[str], rows: Any) -> str | None:
    """Return the column that says how similar the texts of each pair are, if there is one."""
    names = [name for name in LABELS if name in rows.column_names and "float" in str(rows.features[name])]
    name = data.label_column or next(iter(names), None)
    if name is None or len(columns) < 2:
        if data.label_column is not None:
            raise ValueError("`--label_column` of an encoder needs two `--columns`: it says how similar they are.")
        return None
    values: list[Any] = list(rows[name]) if name in rows.column_names else [None]
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"`--label_column {name}` must be a column of numbers: how similar the texts of a pair are.")
    return name


def _preprocessing(
    data: Data, head: Head, config: PreTrainedConfig, columns: list[str], rows: Any, length: int
) -> Preprocessing:
    words = not is_text(rows.features[columns[0]])
    plain = Preprocessing("words" if words else "text", columns, None, max_length=length, truncation="longest_first")
    if head.kind not in ("sequence", "token") or (head.kind == "token" and not words):
        if data.label_column is not None and not is_encoder(head):
            raise ValueError(f"`--label_column` has no effect on a model for {head.name}. Leave it out.")
        return plain
    names = [data.label_column] if data.label_column else list(TAGS if words else LABELS)
    for name in names:
        if name in rows.column_names and name not in columns:
            for candidate in _labellings(replace(plain, label_column=name), rows, config):
                if _fits(candidate, rows, head):
                    return candidate
    if data.label_column is not None:
        raise ValueError(
            f"`--label_column {data.label_column}` does not hold the labels of {head.name} with "
            f"{head.num_labels} classes in {data.name}. Name another, or leave it out to measure without labels."
        )
    return plain


def _labellings(plain: Preprocessing, rows: Any, config: PreTrainedConfig) -> Iterator[Preprocessing]:
    """Yield how a column may give the classes: by names that are those of the model, or by the numbers as they are."""
    feature = rows.features[plain.label_column]
    feature = getattr(feature, "feature", feature)
    numbers = {str(name).casefold(): int(number) for number, name in config.id2label.items()}
    given = getattr(feature, "names", None)
    if given and {name.casefold() for name in given} == set(numbers):
        mapping = {str(number): numbers[name.casefold()] for number, name in enumerate(given)}
        if any(int(value) != number for value, number in mapping.items()):
            yield replace(plain, classes=mapping)
    if is_text(feature):
        values = {value for value in rows[plain.label_column] if isinstance(value, str)}
        if values and {value.casefold() for value in values} <= set(numbers):
            yield replace(plain, classes={value: numbers[value.casefold()] for value in sorted(values)})
        return
    yield plain


def _fits(candidate: Preprocessing, rows: Any, head: Head) -> bool:
    """Return whether the labels of all rows are ones that the model can give."""
    values = rows[candidate.label_column]
    if candidate.kind == "words":
        values = list(itertools.chain(*values))
    if head.regression:
        return all(isinstance(value, int | float) for value in values)
    if head.problem_type == "multi_label_classification":
        return all(isinstance(value, list) for value in values)
    known = range(head.num_labels or 0)
    numbers = values if candidate.classes is None else [candidate.classes.get(str(value)) for value in values]
    return all(isinstance(value, int) and value in known for value in numbers)
