"""A site with the example, and a compressed classifier in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_compress.export.formats import write_formats
from tests.browser.pieces import word_pieces
from tests.browser.site import Site
from tests.quantized import quantized


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def folder(site: Site) -> Path:
    """A compressed classifier with a tokenizer and the format `web`, in the site."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    labels: dict[str, Any] = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    tokenizer = word_pieces()
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes, **labels))
    folder = quantized(model, site.folder / "model", "int8", "embeddings=4")
    tokenizer.save_pretrained(folder)
    write_formats(folder, ["web"])
    return folder
