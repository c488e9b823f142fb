"""A small model and a small data set, made up on the spot, to fill a local Hub."""

import io
import random
import tempfile
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from tests.hub.local import LocalHub

MODEL, DATA = "me/tiny-bert", "me/tiny-films"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = ["bright", "warm", "clever", "lovely", "honest", "fresh"]
BAD = ["dull", "cold", "clumsy", "dreary", "false", "stale"]
OTHERS = ["the", "a", "film", "story", "song", "was", "is", "and", "very", "rather", "today", "again"]
DATA_CARD = """---
license: mit
language: en
task_categories: [text-classification]
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: validation, path: data/validation-*}
---
# Sentences about films, made up
"""
MODEL_CARD = "---\nlicense: mit\nlanguage: en\n---\n# A tiny BERT that knows kind words\n"


def sentences(count: int, seed: int) -> Dataset:
    """Sentences with a label, which is positive for a good word; learnable in a few steps."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        words = ["the", draw.choice(["film", "story", "song"]), draw.choice(["was", "is"])]
        words += [draw.choice(["very", "rather"])] * draw.randrange(2) + [draw.choice(GOOD if index % 2 else BAD)]
        rows.append({"sentence": " ".join(words + ["today"] * draw.randrange(2)), "label": index % 2})
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    return Dataset.from_list(rows, features=features)


def parquet(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    data.to_parquet(buffer)
    return buffer.getvalue()


def add_data(hub: LocalHub, repo_id: str = DATA, *, train: int = 64, validation: int = 32) -> None:
    """Add a data set with two splits, so that `load_dataset(repo_id)` works."""
    files = {
        "README.md": DATA_CARD.encode(),
        "data/train-00000-of-00001.parquet": parquet(sentences(train, 0)),
        "data/validation-00000-of-00001.parquet": parquet(sentences(validation, 1)),
    }
    hub.add(repo_id, files, "dataset")


def add_glue(hub: LocalHub) -> None:
    """Add `nyu-mll/glue` with one task, sst2, of made-up sentences in the columns of the real one."""
    card = "---\nlicense: other\nconfigs:\n- config_name: sst2\n  data_files:\n"
    files = {}
    for split, count, seed in (("train", 64, 0), ("validation", 32, 1), ("test", 8, 2)):
        path = f"sst2/{split}-00000-of-00001.parquet"
        rows = sentences(count, seed)
        files[path] = parquet(rows.add_column("idx", list(range(count))))
        card += f"  - {{split: {split}, path: {path}}}\n"
    hub.add("nyu-mll/glue", {"README.md": f"{card}---\n".encode(), **files}, "dataset")


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the words of `sentences`."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + OTHERS + GOOD + BAD)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    marks = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]  # As a BERT tokenizer returns.
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, model_input_names=inputs, **named)


def config(words: int) -> BertConfig:
    """The configuration of a BERT of two layers that classifies into "negative" and "positive"."""
    return BertConfig(
        vocab_size=words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )


def classifier(words: PreTrainedTokenizerFast, steps: int = 60) -> BertForSequenceClassification:
    """A small classifier, trained until it knows the words of `sentences`."""
    set_seed(0)
    model = BertForSequenceClassification(config(len(words)))
    data = sentences(64, 0)
    inputs = words(list(data["sentence"]), padding=True, return_tensors="pt")
    labels = torch.tensor(data["label"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def add_model(hub: LocalHub, repo_id: str = MODEL) -> None:
    """Add a small BERT classifier and its tokenizer."""
    words = tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        classifier(words).save_pretrained(folder)
        words.save_pretrained(folder)
        Path(folder, "README.md").write_text(MODEL_CARD)
        hub.add(repo_id, Path(folder))
