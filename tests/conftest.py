"""Set up all tests: no network, one thread, fixed seeds, checked shapes, fatal deprecations; make tiny models."""

import gc
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Set before the libraries are imported, because they read these variables at import; subprocesses inherit them.
# The cache folder is empty, so that no test passes only because of what a developer downloaded before.
_CACHE = tempfile.TemporaryDirectory(prefix="hf-compress-tests-", ignore_cleanup_errors=True)
os.environ.update(
    HF_HOME=_CACHE.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
    WANDB_DISABLED="true",
)
for inherited in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
    os.environ.pop(inherited, None)

from tests.shapes import check_shapes

check_shapes()

import numpy
import pytest
import torch
from datasets import Dataset
from hypothesis import settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

from tests.hub.local import LocalHub
from tests.tiny import NO_DROPOUT, bert

torch.set_num_threads(1)
# Hypothesis draws the same examples on every machine, and a busy machine causes no failure.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.load_profile("suite")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = ["bright", "warm", "clever", "lovely", "honest", "fresh"]
BAD = ["dull", "cold", "clumsy", "dreary", "false", "stale"]
PLAIN = ["the", "a", "film", "story", "song", "was", "is", "and", "very", "rather", "today", "again"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` on a machine without as many CUDA GPUs as it needs."""
    marker = item.get_closest_marker("gpu")
    needed = 0 if marker is None else marker.kwargs.get("count", 1)
    if torch.cuda.device_count() < needed:
        pytest.skip(f"needs CUDA GPUs: {needed}, found {torch.cuda.device_count()}")


class _Deprecations(logging.Handler):
    """Collects deprecation messages that Transformers logs; warning filters do not see them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower() or "will be removed" in message.lower():
            self.messages.append(message)


@pytest.fixture(autouse=True)
def no_logged_deprecations() -> Iterator[None]:
    """Fail a test during which Transformers logs a deprecation, because we depend on details of its Trainer."""
    handler = _Deprecations()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.messages, "Transformers deprecates what was called:\n" + "\n".join(handler.messages)


@pytest.fixture(autouse=True, scope="module")
def cheap_collections() -> None:
    """Exclude imported modules from garbage collection, which otherwise takes longer than a tiny training."""
    # Once per file, not per session: Transformers imports lazily, so later files have more to exclude. It stays
    # excluded, so that this collection visits only what the last file left.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    set_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 29 words with BERT's special tokens."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + PLAIN + GOOD + BAD)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture
def make_bert() -> Callable[..., BertForSequenceClassification]:
    """A function that builds the tiny BERT without dropout; keywords override its config.

    The same `seed` gives the same weights.
    """

    def build(seed: int = 0, **changes: object) -> BertForSequenceClassification:
        return bert(seed, **NO_DROPOUT | changes)

    return build


@pytest.fixture
def tiny_bert(make_bert: Callable[..., BertForSequenceClassification]) -> BertForSequenceClassification:
    """A new tiny BERT classifier of two classes, in evaluation mode."""
    return make_bert()


@pytest.fixture(scope="session")
def tiny_sentences() -> Dataset:
    """64 sentences with columns `sentence` and `label` (1: positive), learnable in a few steps."""
    draw = random.Random(0)
    rows = []
    for index in range(64):
        adjective = draw.choice(GOOD if index % 2 else BAD)
        words = ["the", draw.choice(["film", "story", "song"]), draw.choice(["was", "is"])]
        words += [draw.choice(["very", "rather"])] * (index % 3 == 0) + [adjective] + ["today"] * (index % 5 == 0)
        rows.append({"sentence": " ".join(words), "label": index % 2})
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_sentences: Dataset, tiny_tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """The tiny sentences, tokenized and padded to 10 tokens, with a column `labels`."""
    encoded = tiny_sentences.map(
        lambda rows: tiny_tokenizer(rows["sentence"], padding="max_length", max_length=10, truncation=True),
        batched=True,
        remove_columns=["sentence"],
    )
    return encoded.rename_column("label", "labels")


@pytest.fixture
def bench(tmp_path: Path, tiny_tokenizer: Any, tiny_sentences: Dataset) -> Any:
    """Tiny models of sentence-transformers, and trainers for them, in a folder of the test."""
    pytest.importorskip("sentence_transformers")
    from tests.sentence_bench import Bench

    return Bench(tmp_path, tiny_tokenizer, tiny_sentences["sentence"][:])


@pytest.fixture(scope="session")
def hub_server() -> Iterator[LocalHub]:
    """The server behind `local_hub`; for set-up that several tests share, start a `LocalHub` of its own instead."""
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def local_hub(hub_server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """An empty Hub on this machine; the Hub's client uses it in this process too, through LFS."""
    hub_server.reset()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_server.url)
    template = hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub_server


@pytest.fixture
def generator() -> numpy.random.Generator:
    """A seeded NumPy generator."""
    return numpy.random.default_rng(0)
