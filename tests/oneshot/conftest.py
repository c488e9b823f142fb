"""A tiny dense model in a folder, texts in files, and one compression that several tests look at."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import BertModel, PreTrainedTokenizerFast

from hf_compress import Report
from hf_compress.oneshot import Data, quantize_once
from tests.tiny import NO_DROPOUT, bert

BUDGET = 0.05  # Megabytes. The dense file has 0.31.
SIZES = NO_DROPOUT | {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a classifier of `negative` and `positive`."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    bert(**SIZES, id2label={0: "negative", 1: "positive"}).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a sentence-transformers model that pools the first token."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    body: BertModel = bert(**SIZES).bert
    body.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    parts = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": "" if number == 0 else f"{number}_{part}", "type": f"st.{part}"}
        for number, part in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, tiny_sentences: Dataset) -> Path:
    """A text file with one sentence a line, and an empty line."""
    path = tmp_path_factory.mktemp("texts") / "sentences.txt"
    path.write_text("\n".join([*tiny_sentences["sentence"][:30], "", *tiny_sentences["sentence"][30:]]) + "\n")
    return path


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, tiny_sentences: Dataset) -> Path:
    """The sentences as JSON lines, with the names of their classes in the column `label`."""
    path = tmp_path_factory.mktemp("texts") / "rows.jsonl"
    rows = [{"sentence": row["sentence"], "label": ["Negative", "Positive"][row["label"]]} for row in tiny_sentences]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory, dense: Path, labelled: Path) -> tuple[Path, Report]:
    """The classifier compressed on the labelled rows, with its report."""
    folder = tmp_path_factory.mktemp("compressed") / "small"
    card = {"license": "mit", "base_model": "someone/bert"}
    data, command = Data(str(labelled)), "hf-compress quantize"
    return folder, quantize_once(dense, data, folder, budget_mb=BUDGET, command=command, card_metadata=card)
