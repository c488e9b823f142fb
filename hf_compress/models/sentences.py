"""Models of sentence-transformers: which kind a model is, and the Transformers model inside it.

sentence-transformers is imported by its users only. A model of it exists only where that has happened.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from hf_compress.models.targets import transformer

LIBRARY = "sentence_transformers"
LARGEST = 1_000_000  # Bytes of the options.
MODULES, OPTIONS = "modules.json", "config_sentence_transformers.json"


@dataclass(frozen=True)
class SentenceKind:
    """One kind of model of sentence-transformers.

    Args:
        name: its class, which loads a folder.
        output: the entry of what its `forward` returns that training is about.
        scores_pairs: whether it reads pairs of texts and scores each, rather than one text at a time.
        pipeline_tag: the Hub's name of the task.
        tags: by which the Hub finds such models.
        does: what it does, in a sentence for the card.

    Example:
        >>> from hf_compress.models.sentences import SENTENCE_KINDS
        >>> SENTENCE_KINDS["CrossEncoder"].pipeline_tag
        'text-ranking'
    """

    name: str
    output: str
    scores_pairs: bool
    pipeline_tag: str
    tags: tuple[str, ...]
    does: str


SENTENCE_KINDS = {
    kind.name: kind
    for kind in (
        SentenceKind(
            "SentenceTransformer",
            "sentence_embedding",
            scores_pairs=False,
            pipeline_tag="sentence-similarity",
            tags=("sentence-similarity", "feature-extraction"),
            does="This model turns a text into an embedding.",
        ),
        SentenceKind(
            "CrossEncoder",
            "scores",
            scores_pairs=True,
            pipeline_tag="text-ranking",
            tags=("cross-encoder", "reranker"),
            does="This model scores a pair of texts.",
        ),
        SentenceKind(
            "SparseEncoder",
            "sentence_embedding",
            scores_pairs=False,
            pipeline_tag="feature-extraction",
            tags=("sparse-encoder", "sparse"),
            does="This model turns a text into a sparse embedding.",
        ),
    )
}


def sentence_kind(model: object) -> SentenceKind | None:
    """Return which kind of model of sentence-transformers `model` is; None for anything else.

    Example:
        >>> from torch import nn
        >>> from hf_compress.models.sentences import sentence_kind
        >>> sentence_kind(nn.Linear(2, 2)) is None
        True
    """
    library = sys.modules.get(LIBRARY)
    if library is None:
        return None
    known = ((kind, getattr(library, name, None)) for name, kind in SENTENCE_KINDS.items())
    return next((kind for kind, found in known if isinstance(found, type) and isinstance(model, found)), None)


def kind_of_folder(folder: str | Path) -> str | None:
    """Return the class of sentence-transformers that saved the model in `folder`; None if none did.

    Example:
        >>> from hf_compress.models.sentences import kind_of_folder
        >>> kind_of_folder(".") is None
        True
    """
    if not Path(folder, MODULES).is_file():
        return None
    path = Path(folder, OPTIONS)
    try:
        options = json.loads(path.read_text("utf-8")) if path.is_file() and path.stat().st_size < LARGEST else {}
    except ValueError:
        return None
    unsaid = "SentenceTransformer"  # Before version 5.
    return str(options.get("model_type", unsaid)) if isinstance(options, dict) else None


def starts_trained(model: nn.Module) -> bool:
    """Return whether a model of sentence-transformers was loaded from one that was trained for the same.

    A plain encoder has embeddings that nothing has trained, and a plain model has no head for scores.
    """
    kind, inner = sentence_kind(model), cast(Any, transformer(model))
    name, config = inner.config.name_or_path or "", inner.config
    if kind is None or not name:
        return False
    if kind.scores_pairs and type(inner).__name__ in (config.architectures or []):
        return True
    commit = getattr(config, "_commit_hash", None)
    found = cached_file(name, MODULES, revision=commit, _raise_exceptions_for_missing_entries=False)
    return found is not None and kind_of_folder(Path(found).parent) == kind.name


def place_of_transformer(model: nn.Module) -> str:
    """Return the name of the Transformers model in the first module of a model of sentence-transformers.

    Raises:
        ValueError: it is elsewhere, as in a `Router`, or there is none, or more than one.
    """
    inner = transformer(model)
    name = next(name for name, module in model.named_modules() if module is inner)
    first = next(iter(model._modules))
    if name.partition(".")[0] != first or name.count(".") != 1:
        raise ValueError(
            f"The Transformers model must be in the first module of a {type(model).__name__}; this one has it in "
            f"`{name}`. Routers and modules in front of it are not supported: train the part inside on its own."
        )
    return name


def pooling_of(model: object) -> Literal["mean", "first"]:
    """Return whether the embeddings of `model` come from the first token alone; "mean" for all other models."""
    parts = model.children() if isinstance(model, nn.Module) and sentence_kind(model) is not None else ()
    return "first" if any(getattr(part, "pooling_mode", None) == "cls" for part in parts) else "mean"


def pairs_of(batch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of texts in a batch for a `CrossEncoder`: the first column with each of the others.

    A column may hold several texts for each row, such as the documents that a query found.

    Example:
        >>> from hf_compress.models.sentences import pairs_of
        >>> pairs_of({"query": ["a", "b"], "docs": [["c", "d"], ["e"]]})
        [('a', 'c'), ('a', 'd'), ('b', 'e')]
    """
    return [pair for _, pair in _numbered_pairs(batch)]


def queries_of(batch: Mapping[str, Any]) -> list[int]:
    """Return, for each pair of `pairs_of`, the number of its row, which is that of its query.

    Example:
        >>> from hf_compress.models.sentences import queries_of
        >>> queries_of({"query": ["a", "b"], "positive": ["c", "d"], "negatives": [["e"], ["f", "g"]]})
        [0, 1, 0, 1, 1]
    """
    return [number for number, _ in _numbered_pairs(batch)]


def _numbered_pairs(batch: Mapping[str, Any]) -> list[tuple[int, tuple[str, str]]]:
    columns = [value for value in batch.values() if isinstance(value, list) and isinstance(value[0], str | list)]
    return [
        (number, (query, text))
        for column in columns[1:]
        for number, (query, texts) in enumerate(zip(columns[0], column, strict=True))
        for text in ([texts] if isinstance(texts, str) else texts)
    ]


def around(model: nn.Module, inner: nn.Module) -> nn.Module:
    """Return a model of sentence-transformers that computes with `inner` in place of its Transformers model.

    All else is shared with `model`, which is not changed.
    """
    first, place = place_of_transformer(model).split(".")
    return _with(model, first, _with(model.get_submodule(first), place, inner))


def _with(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    made: nn.Module = object.__new__(type(module))  # `copy.copy` would build a model that FSDP shards again.
    vars(made).update(vars(module))
    vars(made)["_modules"] = {**module._modules, name: child}
    return made


def save_around(model: nn.Module, inner: PreTrainedModel, folder: Path, **options: Any) -> None:
    """Write the folder of the sentence-transformers `model`, with the weights and the configuration of `inner`.

    Args:
        model: gives everything else: its other modules, prompts, the tokenizer.
        inner: a model of its own, which this may change.
        folder: that exists and is empty.
        options: for `inner.save_pretrained`.
    """
    vars(inner)["save_pretrained"] = lambda path, **_: type(inner).save_pretrained(inner, path, **options)
    cast(Any, around(model, inner)).save_pretrained(str(folder), create_model_card=False)


def load_checkpoint(model: nn.Module, folder: str | Path, load_inner: Callable[[str, nn.Module], object]) -> None:
    """Load the training checkpoint `folder` into a model of sentence-transformers, in place.

    The library itself copies the weights of a plain model, which knows no ranges.

    Args:
        load_inner: takes the folder of the Transformers model and this model, and loads it in place.
    """
    parts = json.loads((Path(folder) / MODULES).read_text("utf-8"))
    first = place_of_transformer(model).partition(".")[0]
    for part, (name, module) in zip(parts, model.named_children(), strict=True):
        if name == first:
            load_inner(str(Path(folder) / part["path"]), transformer(model))
        elif module.state_dict():
            own = cast(Any, type(module)).load(str(folder), subfolder=part["path"], local_files_only=True)
            module.load_state_dict(own.state_dict())
