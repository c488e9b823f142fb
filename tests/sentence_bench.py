"""Tiny models of sentence-transformers and trainers for them. Import it behind `pytest.importorskip`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentence_transformers as library
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor
from transformers import BertModel, Trainer

from tests.invariants.harness import SETTINGS
from tests.tiny import NO_DROPOUT, bert


class Bench:
    """Builds tiny models of sentence-transformers, and trainers for them, in one folder."""

    def __init__(self, folder: Path, tokenizer: Any, sentences: list[str]) -> None:
        self.folder, self.tokenizer, self.sentences = folder, tokenizer, sentences
        half = len(sentences) // 2
        self.texts = sentences[:half], sentences[half:]
        self.pairs = Dataset.from_dict({"anchor": self.texts[0], "positive": self.texts[1]})
        self.scored = self.pairs.add_column("score", [float(number % 2) for number in range(half)])

    def folder_of(self, name: str, kind: type, **changes: Any) -> str:
        """Return the folder of a model of Transformers with its tokenizer; the same weights for the same name."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(name))
            kind(bert(**NO_DROPOUT, **changes).config).save_pretrained(self.folder / name)
        self.tokenizer.save_pretrained(self.folder / name)
        return str(self.folder / name)

    def embedder(self) -> Any:
        """Return an embedder with all kinds of modules behind the Transformers model; always the same."""
        torch.manual_seed(0)
        parts = list(library.SentenceTransformer(self.folder_of("plain", BertModel), device="cpu"))
        return library.SentenceTransformer(modules=[*parts, Dense(32, 16), Normalize()], device="cpu")

    def trainer(
        self,
        run: str,
        model: Any = None,
        loss: Callable[[Any], Any] = losses.MultipleNegativesRankingLoss,
        **more: Any,
    ) -> Trainer:
        """Return a trainer that is not compressing yet; `more` are its arguments, or fields of `SETTINGS`."""
        model = self.embedder() if model is None else model
        own = {name: more.pop(name) for name in ("train_dataset", "evaluator") if name in more}
        name = type(model).__name__
        arguments = getattr(library, f"{name}TrainingArguments")(str(self.folder / run), **SETTINGS | more)
        built: Trainer = getattr(library, f"{name}Trainer")(
            model=model, args=arguments, loss=loss(model), **{"train_dataset": self.pairs} | own
        )
        return built


def answers(bench: Bench, model: Any) -> Tensor:
    if type(model).__name__ == "CrossEncoder":
        return model.predict(list(zip(*bench.texts, strict=True)), convert_to_tensor=True)
    return model.encode(bench.sentences, convert_to_tensor=True, show_progress_bar=False).to_dense()
