"""Unused words taken out: the flag, and a model and its tokenizer with the tokens of some texts alone."""

import copy
import inspect
import itertools
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_compress.cut.tokenizer import kept_tokens, rewritten
from hf_compress.models.heads import find_head

# The entry of `config.json` that says how many tokens there were before.
WHOLE = "uncut_vocab_size"
BATCH = 1000
CHECKED, CHECKED_TOKENS = 8, 16


@dataclass
class VocabularyArguments:
    """Options of taking unused words out of the vocabulary; off by default."""

    compress_vocabulary: bool = field(
        default=False,
        metadata={
            "help": "Take the tokens that no training text has out of embeddings and tokenizer. Training stays as it "
            "is; a word that it never saw is read in smaller pieces afterwards, and means less to the model. The "
            "script has to do it before it tokenizes (`hf_compress.cut_vocabulary`)."
        },
    )

    @property
    def enabled(self) -> bool:
        return self.compress_vocabulary


@dataclass(frozen=True)
class VocabularyFacts:
    """How many tokens a model has kept of how many."""

    kept: int
    whole: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "VocabularyFacts | None":
        """The facts in the configuration of a model; None if it has its whole vocabulary."""
        whole = getattr(config, WHOLE, None)
        return None if whole is None else cls(config.get_text_config().vocab_size, whole)


def cut_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A copy of `model` and a tokenizer that know the tokens of `texts`, and what any other text is spelled with.

    Do this before anything is tokenized, and before there is a Trainer. Every one of `texts` is cut into the same
    tokens as before, only numbered anew, and the model's logits for it are the same bit for bit; training is what it
    would be. In any other text a word whose token is gone is read in smaller pieces, down to single characters
    (`pieces`). How many tokens there were is `uncut_vocab_size` in the configuration.

    Args:
        texts: those to be trained on. Of pairs of sentences, both.

    Raises:
        ValueError: the model predicts tokens, which must not go; its tokenizer is none of the library tokenizers, or
            of a kind that cannot spell; or model and tokenizer do not belong together.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"`--compress_vocabulary` cuts a Transformers model, not a {type(model).__name__}. Cut the model inside "
            "before anything is put around it."
        )
    head = find_head(model)
    if head.descriptor.predicts_tokens:
        raise ValueError(
            f"`--compress_vocabulary` cannot cut a {type(model).__name__}, which does {head.name}: what is taken out "
            "it could never say. Leave the flag out."
        )
    if not head.takes_text:
        raise ValueError(
            f"`--compress_vocabulary` cuts models that read text; {type(model).__name__} reads `{head.main_input}`. "
            "Leave the flag out."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            "`--compress_vocabulary` rewrites the tokenizer.json of the library tokenizers, and "
            f"{type(tokenizer).__name__} has none. Convert it, or leave the flag out."
        )
    remaining = iter(texts)
    first = list(itertools.islice(remaining, BATCH))
    seen = {*tokenizer.all_special_ids, *_special_ids(model)}
    for batch in itertools.chain([first], iter(lambda: list(itertools.islice(remaining, BATCH)), [])):
        seen.update(itertools.chain.from_iterable(_numbers(tokenizer, batch)))
    kept = kept_tokens(json.loads(tokenizer.backend_tokenizer.to_str()), seen)
    cut, smaller = keep_tokens(copy.deepcopy(model), kept), _without(tokenizer, kept)
    _check_same(model, tokenizer, cut, smaller, kept, first)
    return cut, smaller


@torch.no_grad()
def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """The same `model`, in whose embeddings and configuration there are only the tokens `kept`, numbered anew."""
    numbers = {old: new for new, old in enumerate(kept)}
    weight = cast(nn.Parameter, model.get_input_embeddings().weight)
    if kept[-1] >= len(weight):
        raise ValueError(
            f"The tokenizer has tokens up to number {kept[-1]}, the embeddings of {type(model).__name__} have "
            f"{len(weight)} rows. Give the model's own tokenizer."
        )
    smaller = nn.Parameter(weight[list(kept)].clone(), requires_grad=weight.requires_grad)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight is weight:  # Under all the names that it is tied to.
            module.weight, module.num_embeddings = smaller, len(kept)
            if module.padding_idx is not None:
                module.padding_idx = numbers.get(module.padding_idx)
    config, text = model.config, model.config.get_text_config()
    if not hasattr(config, WHOLE):
        setattr(config, WHOLE, text.vocab_size)
    for settings in {id(config): config, id(text): text}.values():
        for name, value in _special(settings).items():
            several = [numbers[number] for number in value if number in numbers] if isinstance(value, list) else None
            setattr(settings, name, numbers.get(value) if isinstance(value, int) else several)
    text.vocab_size = len(kept)
    return model


def _special(config: PreTrainedConfig) -> dict[str, int | list[int]]:
    """What a configuration says of special tokens: their numbers, or lists of them, by name."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name.endswith(("_token_id", "_token_ids"))
        and (
            (isinstance(value, int) and 0 <= value < config.vocab_size)
            or (isinstance(value, list) and value and all(isinstance(number, int) for number in value))
        )
    }


def _special_ids(model: PreTrainedModel) -> set[int]:
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for value in _special(config).values():
            found.update(value if isinstance(value, list) else [value])
    return found


def _numbers(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, all of it, by their numbers."""
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return cast(list[list[int]], found)


def _without(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens `kept` alone, read back from the file that describes it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder, "tokenizer.json")
        description = rewritten(json.loads(file.read_text("utf-8")), kept)
        file.write_text(json.dumps(description, ensure_ascii=False), "utf-8")
        smaller = type(tokenizer).from_pretrained(folder)
    smaller.name_or_path = tokenizer.name_or_path
    return cast(PreTrainedTokenizerBase, smaller)


@torch.no_grad()
def _check_same(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cut: PreTrainedModel,
    smaller: PreTrainedTokenizerBase,
    kept: Sequence[int],
    texts: list[str],
) -> None:
    """Refuses what was cut if it reads any of `texts` in another way, or computes something else from the first."""
    before, after = _numbers(tokenizer, texts), _numbers(smaller, texts)
    if before != [[kept[number] for number in numbers] for numbers in after] or len(smaller) != len(kept):
        raise ValueError(
            f"`--compress_vocabulary` would make {type(tokenizer).__name__} read the training texts in another way. "
            "Leave the flag out, and please report it."
        )
    if not texts:
        return
    with torch.random.fork_rng(devices=[]):  # As loading builds it: RoBERTa's positions begin at its padding token.
        loaded = type(cut)(copy.deepcopy(cut.config))
    loaded.to(cut.device).load_state_dict(cut.state_dict(), assign=True)
    loaded.tie_weights()
    ours, theirs = (_logits(*pair, texts[:CHECKED]) for pair in ((loaded, smaller), (model, tokenizer)))
    if not all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"`--compress_vocabulary` would make {type(model).__name__} compute something else from the training "
            "texts, where its special tokens get other numbers. Leave the flag out."
        )


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, ...]:
    head, training = find_head(model), model.training
    padded, known = tokenizer.pad_token is not None, inspect.signature(model.forward).parameters
    encoded = tokenizer(
        texts if padded else texts[:1], padding=padded, truncation=True, max_length=CHECKED_TOKENS, return_tensors="pt"
    ).to(model.device)
    inputs = {name: value for name, value in encoded.items() if name in known}
    if head.descriptor.has_choices:
        inputs = {name: value.unsqueeze(1) for name, value in inputs.items()}
    model.eval()
    try:
        return head.logits(model(**inputs))
    finally:
        model.train(training)
