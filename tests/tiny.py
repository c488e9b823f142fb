"""The tiny BERT that tests train: one definition, for fixtures and for processes that tests start."""

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 29  # The words of the fixture `tiny_tokenizer`.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(seed: int = 0, **changes: Any) -> BertForSequenceClassification:
    """A BERT classifier of two classes, in evaluation mode; `changes` override its config.

    The same `seed` gives the same weights. Dropout is on, as in a BERT of the Hub, unless `changes` switch it off.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**SIZES | {"num_labels": 2} | changes)).eval()
