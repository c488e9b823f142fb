"""The model to compress: loaded as what it was saved as, in float32, with its tokenizer and its small files."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_compress.documents import read_document
from hf_compress.extras import extra
from hf_compress.failures import failures, reason
from hf_compress.folders import MODEL_FILES, local_folder
from hf_compress.models.examples import longest_text
from hf_compress.models.heads import Head, find_outputs
from hf_compress.models.kinds import EMBEDDING
from hf_compress.models.sentences import MODULES, OPTIONS, kind_of_folder
from hf_compress.models.targets import model_class
from hf_compress.rate import Pooling, embedding
from hf_compress.report import provenance

# How sentence-transformers names the parts of a model, and the files that it reads beside them.
EMBEDDER, POOLING, NORMALIZE = "SentenceTransformer", "Pooling", "Normalize"
SENTENCE_FILES = (OPTIONS, "sentence_bert_config.json")
COSINE = "cosine"
# Ways to pool that `hf_compress.rate` computes itself, as files say them.
KNOWN_POOLINGS = ({"mean"}, {"cls"}, {"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"})

Embed = Callable[[Tensor, Tensor | None], Tensor]
# Texts are cut here unless the model allows less.
LENGTH = 128


@dataclass(frozen=True)
class Source:
    """A dense model in a folder.

    Args:
        given: its name or path, as the user gave it.
        folder: that holds it.
    """

    given: str
    folder: Path

    @classmethod
    def of(cls, model: str | Path, *, revision: str | None = None, token: str | None = None) -> "Source":
        """Return the model of a folder or of the Hub.

        Raises:
            ValueError: there is no such model, or its weights are compressed already.
        """
        folder = local_folder(model, revision=revision, token=token, only=[*MODEL_FILES, "*/config.json", "README.md"])
        source = cls(str(model), folder)
        path = source.weights / "config.json"
        if not path.is_file() and (folder / "adapter_config.json").is_file():
            raise ValueError(f"{model} is an adapter. Merge it into its model (`merge_and_unload`) and save that.")
        if not path.is_file():
            raise ValueError(f"{model} holds no model: there is no `config.json`. Give a folder or a Hub id of one.")
        if isinstance(config := read_document(path), dict) and config.get("quantization_config"):
            raise ValueError(f"{model} is quantized already. Give the dense model that it was made from.")
        return source

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """The parts that sentence-transformers runs one after the other; none for other models."""
        path = self.folder / MODULES
        found = read_document(path) if path.is_file() else []
        valid = isinstance(found, list) and all(
            isinstance(part, dict) and {"path", "type"} <= set(part) for part in found
        )
        if not valid:
            raise ValueError(f"{path} is not what sentence-transformers writes. Repair it, or remove it.")
        return cast(list[dict[str, Any]], found)

    @property
    def weights(self) -> Path:
        """The folder of the Transformers model: sentence-transformers may keep it in one of its own."""
        return self.folder / self.modules[0]["path"] if self.modules else self.folder

    @property
    def _embeds(self) -> bool:
        """Whether it is an embedder of sentence-transformers, whose encoder is saved without a head."""
        return bool(self.modules) and kind_of_folder(self.folder) == EMBEDDER

    @property
    def pooling(self) -> Pooling:
        """How the hidden states become an embedding."""
        return "first" if self._poolings & {"cls", "pooling_mode_cls_token"} else "mean"

    @cached_property
    def _poolings(self) -> set[str]:
        """The ways of pooling that the files name; none for a bare encoder."""
        folders = [self.folder / part["path"] for part in self.modules if _kind(part) == POOLING]
        found: set[str] = set()
        for path in [folder / "config.json" for folder in folders]:
            options = read_document(path) if path.is_file() else {}
            if isinstance(options, dict):
                named = options.get("pooling_mode") or ()
                found |= {
                    name for name, value in options.items() if name.startswith("pooling_mode_") and value is True
                }
                found |= {named} if isinstance(named, str) else {*named}
        return found

    @property
    def similarity(self) -> str:
        """How users of the model compare embeddings, by the name that sentence-transformers has for it."""
        path = self.folder / OPTIONS
        options = read_document(path) if self.modules and path.is_file() else {}
        return str((isinstance(options, dict) and options.get("similarity_fn_name")) or COSINE)

    @cached_property
    def embed(self) -> Embed:
        """The function from last hidden states and attention mask to normalized embeddings, as the whole model makes.

        Raises:
            MissingExtraError: modules behind the encoder need sentence-transformers, which is not installed.
        """
        kinds = [_kind(part) for part in self.modules[1:]]
        if not self._embeds or ({*kinds} <= {POOLING, NORMALIZE} and self._poolings in KNOWN_POOLINGS):
            return partial(embedding, pooling=self.pooling)
        with extra("sentences", f"An embedding by {', '.join(kinds)}"):
            from sentence_transformers import SentenceTransformer
        parts = [*SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)][1:]

        def embed(hidden: Tensor, mask: Tensor | None) -> Tensor:
            mask = torch.ones(hidden.shape[:2], dtype=torch.long) if mask is None else mask
            features: dict[str, Any] = {"token_embeddings": hidden, "attention_mask": mask}
            for part in parts:
                features = part(features)
            return torch.nn.functional.normalize(features["sentence_embedding"], dim=-1)

        return embed

    @property
    def commit(self) -> str | None:
        """The commit of a model of the Hub."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @property
    def hub_id(self) -> str | None:
        """The id of a model of the Hub."""
        return provenance.hub_id(self.given.partition("@")[0]) or (
            self.given.partition("@")[0] if self.commit else None
        )

    def load(self) -> PreTrainedModel:
        """Return the model in float32 and evaluation mode.

        Raises:
            ValueError: it cannot be loaded, or it reads something else than text.
        """
        kind = AutoModel if self._embeds else model_class(self.weights)
        try:
            model = kind.from_pretrained(self.weights, dtype=torch.float32, local_files_only=True)
        except failures() as error:
            raise ValueError(f"{self.given} cannot be loaded: {reason(error)}") from error
        return cast(PreTrainedModel, model.eval())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer.

        Raises:
            ValueError: there is none.
        """
        try:
            found = AutoTokenizer.from_pretrained(self.weights, local_files_only=True)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{self.given} has no tokenizer that can be loaded. Save it into the folder.") from error
        if set(found.get_vocab()) <= {*found.all_special_tokens}:
            # Without files of a tokenizer, Transformers makes an empty one by the kind of the model.
            raise ValueError(f"{self.given} has no tokenizer. Save it into the folder (`tokenizer.save_pretrained`).")
        return cast(PreTrainedTokenizerBase, found)

    def head(self, model: PreTrainedModel) -> Head:
        """Return what the model computes.

        Raises:
            ValueError: that is nothing known, or the model reads something else than one text or two.
        """
        head = find_outputs(model)
        if not head.takes_text or head.descriptor.decodes or head.descriptor.has_choices:
            raise ValueError(
                f"{self.given} is a model for {head.name}, which this command cannot feed with texts. Give an encoder "
                "with or without a head, or compress in a training (`hf-compress run`)."
            )
        return head

    def length(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None = None) -> int:
        """Return the number of tokens that texts are cut to: `wanted`, or by default up to `LENGTH`.

        Raises:
            ValueError: the model takes fewer than `wanted`.
        """
        most = longest_text(model)
        if wanted is not None and wanted > (most or wanted):
            raise ValueError(f"`--max_length` must be at most {most}, the positions of {self.given}; got {wanted}.")
        return wanted or min(LENGTH, most or LENGTH, tokenizer.model_max_length)

    def copy_small_files(self, target: Path) -> None:
        """Copy what sentence-transformers needs beside the model, so that it loads `target` as it loads the source."""
        if not self.modules:
            return
        parts = [{**part, "path": part["path"] if number else ""} for number, part in enumerate(self.modules)]
        (target / MODULES).write_text(json.dumps(parts, indent=2) + "\n", "utf-8")
        for name in SENTENCE_FILES:
            for folder in dict.fromkeys((self.folder, self.weights)):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, target / name)
        for part in self.modules[1:]:
            if (self.folder / part["path"]).is_dir():
                shutil.copytree(self.folder / part["path"], target / part["path"], ignore=_hidden)


def _kind(part: dict[str, Any]) -> str:
    return str(part["type"]).rpartition(".")[2]


def _hidden(folder: str, names: Sequence[str]) -> set[str]:
    return {name for name in names if name.startswith(".")}


def is_encoder(head: Head) -> bool:
    """Return whether a model has no head, so that its embeddings are what counts."""
    return head.kind == EMBEDDING
