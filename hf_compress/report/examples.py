"""An example for the card: a text of the evaluation set, or of the author, and what the model answers to it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from hf_compress.models.heads import Head
from hf_compress.report.facts import Example
from hf_compress.report.report import DatasetFacts
from hf_compress.report.source import raw_rows

# Tasks whose pipeline answers to a text, or to a pair of texts, alike every time.
ANSWERED = ("text-classification", "token-classification", "fill-mask")
TRIED = 100
LONGEST = 200  # Characters of an example, and tokens at most.
MOST_ANSWERS = 5

logger = logging.get_logger(__name__)


def find_example(
    trainer: Trainer, model: PreTrainedModel, head: Head, dataset: DatasetFacts, author: Mapping[str, Any]
) -> Example | None:
    """Return an example with the measured answer of `model`; None if the card has none.

    The text is the author's, or else the first short one of the evaluation set, if that is a dataset of the Hub: rows
    that are not published stay private.

    Args:
        trainer: the one that trained the model.
        model: as reloaded from disk.
        head: of the model.
        dataset: the rows.
        author: what `read_author` returned.
    """
    tokenizer = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    if head.pipeline_tag not in ANSWERED or not head.takes_text or not hasattr(tokenizer, "decode"):
        return None
    texts = author.get("example")
    if texts is None and dataset.hub_id is not None:
        texts = _of_rows(trainer.eval_dataset, tokenizer, dataset)
    if not texts:
        return None
    if obstacle := _obstacle(texts, tokenizer, head):
        if "example" in author:
            logger.warning(f"The card has no example: {obstacle}")
        return None
    try:
        return Example(list(texts), _answer(model, tokenizer, head, texts))
    except (ValueError, RuntimeError, IndexError) as error:  # A text that the model cannot read.
        logger.warning(f"The card has no example: the model does not answer to {texts}. {error}")
        return None


def _obstacle(texts: Sequence[str], tokenizer: Any, head: Head) -> str:
    """Why the pipeline has no answer to the texts; empty if it has one."""
    if head.kind != "sequence" and len(texts) > 1:
        return f"a model for {head.name} reads one text, and `example` holds a pair."
    mask = getattr(tokenizer, "mask_token", None)
    if head.kind == "masked" and (mask is None or texts[0].count(mask) != 1):
        return f"a model for {head.name} needs a text with one `{mask}`."
    return ""


def _of_rows(rows: Any, tokenizer: Any, dataset: DatasetFacts) -> list[str] | None:
    """The texts of the first row that is short enough."""
    first = next(iter(rows.values()), None) if isinstance(rows, Mapping) else rows
    if dataset.preprocessing is not None and dataset.preprocessing.kind == "text":
        first = raw_rows(first) or first
    if first is None or not hasattr(first, "__getitem__"):
        return None
    for row in itertools.islice(iter(first), TRIED):
        texts = _texts(row, tokenizer, dataset) if isinstance(row, Mapping) else None
        if texts and 0 < sum(map(len, texts)) <= LONGEST:
            return texts
    return None


def _texts(row: Mapping[str, Any], tokenizer: Any, dataset: DatasetFacts) -> list[str] | None:
    """The one or two texts of a row: its columns, or else what its token ids spell."""
    columns = dataset.preprocessing.columns if dataset.preprocessing else []
    if columns and all(isinstance(row.get(column), str) for column in columns):
        return [row[column] for column in columns]
    if row.get("input_ids") is None or len(row["input_ids"]) > LONGEST:
        return None
    ids = [int(token) for token in row["input_ids"]]  # They may be tensors.
    segments = [int(segment) for segment in row.get("token_type_ids", [0] * len(ids))]
    parts = [[i for i, s in zip(ids, segments, strict=False) if s == segment] for segment in sorted(set(segments))]
    separators = ids.count(tokenizer.sep_token_id) if tokenizer.sep_token_id else 0
    if len(parts) > 2 or (len(parts) == 1 and separators > 2):  # A pair whose parts only its separators tell apart.
        return None
    texts = [tokenizer.decode(part, skip_special_tokens=True).strip() for part in parts]
    return texts if all(texts) else None


def _answer(model: PreTrainedModel, tokenizer: Any, head: Head, texts: Sequence[str]) -> list[dict[str, Any]]:
    """What the pipeline of Transformers returns for the texts, scores rounded."""
    from transformers import pipeline

    predict: Any = pipeline(head.pipeline_tag, model=model, tokenizer=tokenizer, device=model.device)
    if head.kind == "token":
        answers = predict(texts[0], aggregation_strategy="simple")
    else:
        given = {"text": texts[0], "text_pair": texts[1]} if len(texts) == 2 else texts[0]
        answers = predict(given, **({"top_k": None} if head.name.startswith("multi-label") else {}))
    listed = answers if isinstance(answers, list) else [answers]
    return [{name: _plain(value) for name, value in answer.items()} for answer in listed[:MOST_ANSWERS]]


def _plain(value: Any) -> Any:
    """The value as JSON holds it, a number with four digits behind the point."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    return round(float(value), 4)
