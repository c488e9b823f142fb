"""Remove unused tokens from a model and its tokenizer."""

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
from hf_compress.models.widths import resize, widths_of

# The entry of `config.json` that says how many tokens there were before.
WHOLE = "uncut_vocab_size"
BATCH = 1000
CHECKED, CHECKED_TOKENS = 8, 16


@dataclass
class VocabularyArguments:
    """Options of removing unused tokens from the vocabulary; off by default.

    Example:
        >>> from hf_compress.cut import VocabularyArguments
        >>> VocabularyArguments().enabled
        False
    """

    compress_vocabulary: bool = field(
        default=False,
        metadata={
            "help": "Remove the tokens that occur in no training text from embeddings and tokenizer. Training does "
            "not change; words that it never saw are split into smaller pieces afterwards. Only scripts that call "
            "`hf_compress.cut_vocabulary` before they tokenize support it."
        },
    )

    @property
    def enabled(self) -> bool:
        """Whether tokens are removed."""
        return self.compress_vocabulary


@dataclass(frozen=True)
class VocabularyFacts:
    """The number of tokens that a model kept, and the number before the cut."""

    kept: int
    whole: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "VocabularyFacts | None":
        """Return the facts in a model's configuration, or None if its vocabulary was not cut."""
        whole = getattr(config, WHOLE, None)
        return None if whole is None else cls(config.get_text_config().vocab_size, whole)


def cut_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return copies of `model` and `tokenizer` that keep only the tokens of `texts` and those that spell other texts.

    Call it before you tokenize and before you build a Trainer. Each of `texts` is split into the same tokens as before
    with new numbers, and the model's logits for it are equal bit for bit, so training does not change. In other texts,
    a word whose token is gone is split into smaller pieces, down to single characters (`tokenizer`). The configuration
    records the former number of tokens as `uncut_vocab_size`.

    Args:
        texts: the training texts; for pairs of sentences, both.

    Raises:
        ValueError: the model does not read text or predicts tokens; the tokenizer is not a fast one of a known kind;
            or model and tokenizer do not belong together.

    Example:
        >>> from hf_compress import cut_vocabulary
        >>> model, tokenizer = cut_vocabulary(model, tokenizer, data["train"]["sentence"])  # doctest: +SKIP
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"`--compress_vocabulary` can only cut a Transformers model; got a {type(model).__name__}. Cut the model "
            "inside before you wrap it."
        )
    head = find_head(model)
    if head.descriptor.predicts_tokens:
        raise ValueError(
            f"`--compress_vocabulary` cannot cut a {type(model).__name__}, which does {head.name}: it could no longer "
            "predict the removed tokens. Leave the flag out."
        )
    if not head.takes_text:
        raise ValueError(
            f"`--compress_vocabulary` can only cut a model that reads text; {type(model).__name__} reads "
            f"`{head.main_input}`. Leave the flag out."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            "`--compress_vocabulary` rewrites `tokenizer.json`, which only fast tokenizers have; got a "
            f"{type(tokenizer).__name__}. Convert it, or leave the flag out."
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
    """Remove all tokens but `kept` from the embeddings and configuration of `model`, in place, and return it."""
    numbers = {old: new for new, old in enumerate(kept)}
    weight = cast(nn.Parameter, model.get_input_embeddings().weight)
    if kept[-1] >= len(weight):
        raise ValueError(
            f"The tokenizer has token numbers up to {kept[-1]}, but the embeddings of {type(model).__name__} have "
            f"{len(weight)} rows. Use the model's own tokenizer."
        )
    smaller = nn.Parameter(weight[list(kept)].clone(), requires_grad=weight.requires_grad)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight is weight:  # Also under the names that it is tied to.
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
    """Return the entries of a configuration that hold token numbers or lists of them, by name."""
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
    """Return the token numbers of each text, without special tokens or truncation."""
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return cast(list[list[int]], found)


def _without(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """Return a tokenizer with only the tokens `kept`, loaded from a rewritten `tokenizer.json`."""
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
    """Check that the cut model and tokenizer read `texts` as before and compute the same from the first ones.

    Raises:
        ValueError: they do not.
    """
    before, after = _numbers(tokenizer, texts), _numbers(smaller, texts)
    if before != [[kept[number] for number in numbers] for numbers in after] or len(smaller) != len(kept):
        raise ValueError(
            f"`--compress_vocabulary` would make {type(tokenizer).__name__} split the training texts in another way. "
            "Leave the flag out, and please report it."
        )
    if not texts:
        return
    with torch.random.fork_rng(
        devices=[]
    ):  # Built as loading builds it: RoBERTa's positions start at its padding token.
        loaded = type(cut)(copy.deepcopy(cut.config))
    resize(loaded, widths_of(cut))
    loaded.to(cut.device).load_state_dict(cut.state_dict(), assign=True)
    loaded.tie_weights()
    ours, theirs = (_logits(*pair, texts[:CHECKED]) for pair in ((loaded, smaller), (model, tokenizer)))
    if not all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"`--compress_vocabulary` would change the logits of {type(model).__name__} for the training texts, "
            "because its special tokens get other numbers. Leave the flag out."
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
