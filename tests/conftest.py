"""What every test stands on: no network, one thread, fixed seeds, shapes checked, deprecations fatal, tiny models."""

import gc
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator

# Read when the libraries are imported, and inherited by the processes that tests start: hence before they are.
# A cache folder of our own keeps a developer's downloads from making a test pass here that fails elsewhere.
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

from jaxtyping import install_import_hook

# The mathematics promises shapes, so its annotations are executed. The floors above take models and trainers, for
# which tests may hand in doubles that only quack.
PURE = ("models.heads", "models.sharding", "models.targets", "layers.grids", "distill.losses", "prune.criteria")
PURE += ("prune.schedules", "checkpoint.coding", "checkpoint.packed")
PURE += tuple(f"study.analysis.{name}" for name in ("panel", "reductions", "effects", "ranking", "published"))
CHECKED = [f"hf_compress.{name}" for name in PURE]
install_import_hook(CHECKED, "beartype.beartype")

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

from tests.tiny import NO_DROPOUT, bert

torch.set_num_threads(1)
# The same examples on every machine, and no failure because a machine was busy.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.load_profile("suite")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = ["bright", "warm", "clever", "lovely", "honest", "fresh"]
BAD = ["dull", "cold", "clumsy", "dreary", "false", "stale"]
PLAIN = ["the", "a", "film", "story", "song", "was", "is", "and", "very", "rather", "today", "again"]


class _Deprecations(logging.Handler):
    """Keeps what Transformers logs about deprecated use, which no warning filter sees."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower() or "will be removed" in message.lower():
            self.messages.append(message)


@pytest.fixture(autouse=True)
def no_logged_deprecations() -> Iterator[None]:
    """Fails the test during which Transformers logs a deprecation: we live on its Trainer's event order."""
    handler = _Deprecations()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.messages, "Transformers deprecates what was called:\n" + "\n".join(handler.messages)


@pytest.fixture(autouse=True, scope="module")
def cheap_collections() -> Iterator[None]:
    """Every training collects garbage, which takes longer than the training unless what is imported is left out."""
    # Once per file rather than per session: Transformers imports lazily, so that there is more to leave out by then.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    set_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over 29 words with BERT's special tokens; saves and loads like any other."""
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
    """A function that builds a tiny BERT classifier: two layers, width 32, dropout off; keywords change its config.

    The same `seed` gives the same weights.
    """

    def build(seed: int = 0, **changes: object) -> BertForSequenceClassification:
        return bert(seed, **NO_DROPOUT | changes)

    return build


@pytest.fixture
def tiny_bert(make_bert: Callable[..., BertForSequenceClassification]) -> BertForSequenceClassification:
    """A fresh tiny BERT for two classes, in evaluation mode; each test has its own."""
    return make_bert()


@pytest.fixture(scope="session")
def tiny_sentences() -> Dataset:
    """64 sentences with columns `sentence` and `label`: 1 where the adjective is kind. Learnable in a few steps."""
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
    """The tiny sentences as `Trainer` takes them: tokenized, padded to 10 tokens, with a column `labels`."""
    encoded = tiny_sentences.map(
        lambda rows: tiny_tokenizer(rows["sentence"], padding="max_length", max_length=10, truncation=True),
        batched=True,
        remove_columns=["sentence"],
    )
    return encoded.rename_column("label", "labels")


@pytest.fixture
def generator() -> numpy.random.Generator:
    """A seeded NumPy generator for data made inside a test."""
    return numpy.random.default_rng(0)
