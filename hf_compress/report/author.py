"""What the author adds to the card: metadata, a title, free text and an example, from a YAML or JSON file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_compress.documents import read_document
from hf_compress.report import records
from hf_compress.report.markdown import one_line
from hf_compress.report.merging import BEGIN, END

FLAG = "--compress_card_metadata"
# Keys of the file that are not metadata of the Hub.
WORDS = ("title", "text", "example")
# A report measures these, so nobody types them in.
MEASURED = ("metrics", "model-index", "widget")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
LONGEST_EXAMPLE = 1000
KEY = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


def read_author(source: str | Path | Mapping[str, Any] | None, flag: str = FLAG) -> dict[str, Any]:
    """Return what the author adds to the card, checked.

    Args:
        source: a YAML or JSON file, or what such a file holds. Besides metadata of the Hub (`license`, `language`,
            `tags`, ...) it may hold `title`, the title of the card; `text`, Markdown for the card; and `example`, one
            text or a pair of texts that the card shows with the model's answer, or `false` for a card without example.
        flag: that names the source, for errors.

    Raises:
        ValueError: the file cannot be read, a value has the wrong type, or a key is one that the report measures.

    Example:
        >>> from hf_compress.report.author import read_author
        >>> read_author({"license": "mit", "example": "A quiet, warm film."})
        {'license': 'mit', 'example': ['A quiet, warm film.']}
    """
    if source is None:
        return {}
    values = dict(source) if isinstance(source, Mapping) else read_document(source)
    where = f"`{flag}`" if isinstance(source, Mapping) else f"`{flag} {source}`"
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{where} must hold names and values, for example `license: mit`; got {values!r}.")
    if odd := [name for name in values if not KEY.fullmatch(name)]:
        raise ValueError(f"{where}: a name must be letters, digits, `_`, `-` and `.`; got {odd[0]!r}.")
    if measured := [name for name in MEASURED if name in values]:
        raise ValueError(
            f"{where} must leave out {', '.join(f'`{name}`' for name in measured)}, which is made from what the "
            "report measures. For a widget of your own, give its text as `example`."
        )
    values |= {"example": _example(values["example"], where)} if "example" in values else {}
    for name in ("title", "text"):
        if name in values and not (isinstance(values[name], str) and values[name].strip()):
            raise ValueError(f"{where}: `{name}` must be text; got {values[name]!r}.")
    if "title" in values and values["title"] != one_line(values["title"]):
        raise ValueError(f"{where}: `title` must be one line; got {values['title']!r}.")
    if BEGIN in values.get("text", "") or END in values.get("text", ""):
        raise ValueError(f"{where}: `text` must not hold the marks of a card, `{BEGIN}` and `{END}`. Remove them.")
    if (relation := values.get("base_model_relation", RELATIONS[0])) not in RELATIONS:
        raise ValueError(f"{where}: `base_model_relation` must be among {', '.join(RELATIONS)}; got {relation!r}.")
    if not isinstance(values.get("tags", []), list) or not all(isinstance(tag, str) for tag in values.get("tags", [])):
        raise ValueError(f"{where}: `tags` must be a list of words; got {values['tags']!r}.")
    try:
        encoded: dict[str, Any] = records.encode(values, "the value")
    except ValueError as error:
        raise ValueError(f"{where}: {error} Write dates and similar values in quotes.") from error
    return encoded


def author_metadata(author: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of the Hub in what the author adds.

    Example:
        >>> from hf_compress.report.author import author_metadata
        >>> author_metadata({"license": "mit", "title": "My model"})
        {'license': 'mit'}
    """
    return {name: value for name, value in author.items() if name not in WORDS}


def _example(value: Any, where: str) -> list[str] | bool:
    """The texts of the example; False for none."""
    if value is False:
        return False
    texts = [value] if isinstance(value, str) else value
    right = isinstance(texts, list) and len(texts) in (1, 2) and all(isinstance(text, str) and text for text in texts)
    if not right or sum(map(len, texts)) > LONGEST_EXAMPLE:
        raise ValueError(
            f"{where}: `example` must be a text, a list of two texts, or `false` for no example, of at most "
            f"{LONGEST_EXAMPLE:,} characters together; got {str(value)[:80]!r}."
        )
    return list(texts)
