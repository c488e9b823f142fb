"""Digests of what a teacher's answers depend on: the teacher itself and the rows that it is asked about."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_compress.models.heads import bare

# Parts of the names of weights that belong to an adapter, not to its base model.
ADAPTED = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}
ROWS = 4096


def identity(teacher: nn.Module, processing_class: Any, adapter_off: bool = False) -> str:
    """Return a digest of a teacher: its class, configuration and weights, and the tokenizer.

    Args:
        adapter_off: whether the teacher is the base model of an adapter, whose weights are then left out.
    """
    model = bare(teacher)
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    facts: dict[str, Any] = {"class": type(model).__name__, "config": repr(sorted(config.items()))}
    facts["attention"] = model.config._attn_implementation
    if isinstance(teacher, PeftModel):
        facts["adapter"] = repr(teacher.peft_config)
    if isinstance(processing_class, PreTrainedTokenizerBase):
        facts |= vocabulary_facts(processing_class)
    weights = teacher.state_dict()
    if adapter_off:
        weights = {name: value for name, value in weights.items() if not ADAPTED & set(name.split("."))}
    return digest([*facts.items(), *weights.items()])


def vocabulary_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what tells one tokenizer from another: its tokens, special tokens and side of padding."""
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    vocabulary = sorted(tokenizer.get_vocab().items())
    return {"vocabulary": repr(vocabulary), "special": repr(special), "side": tokenizer.padding_side}


def content(dataset: Any, columns: Sequence[str]) -> str:
    """Return a digest of the values in `columns` of a `datasets.Dataset`, row by row.

    The fingerprint of a data set does not tell its content: a file that was edited keeps it, and the same rows made
    twice may have two.
    """
    hashed, arrow = hashlib.sha256(repr(list(columns)).encode()), dataset.with_format("arrow", columns=list(columns))
    for start in range(0, len(dataset), ROWS):
        for batch in arrow[start : start + ROWS].select(columns).combine_chunks().to_batches():
            hashed.update(batch.serialize())
    return hashed.hexdigest()[:32]


def digest(items: Iterable[tuple[str, Any]]) -> str:
    """Return a digest of named values; for tensors it covers dtype, shape and every byte."""
    hashed = hashlib.sha256()
    for name, value in items:
        if isinstance(value, Tensor):
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            hashed.update(f"{name} {value!s} ".encode())
    return hashed.hexdigest()[:32]
