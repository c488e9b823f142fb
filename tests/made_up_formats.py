"""Formats for tests: dense weights in a pickle, which write and read in no time, and may fail as real ones do."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_compress.export.descriptor import Format
from hf_compress.export.formats import FORMATS
from hf_compress.export.parity import load


def write(folder: Path, path: Path) -> None:
    """Write the dense weights of the checkpoint."""
    torch.save(load(folder).state_dict(), path)


def read(path: Path, reference: PreTrainedModel) -> nn.Module:
    """Return a model with the dense weights in the file."""
    config = copy.deepcopy(reference.config)
    config.quantization_config = None
    model = type(reference)(config).eval()
    model.load_state_dict(torch.load(path), strict=False)
    return model


def read_something_else(path: Path, reference: PreTrainedModel) -> nn.Module:
    """Return a model whose first layer of the head has twice the weights."""
    model = read(path, reference)
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    return model


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises `error`."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def register(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> Format:
    """Add a format to the registry, with some of its parts replaced."""
    card = f"`{name}`: PyTorch loads its dense weights."
    known: dict[str, Any] = {"write": write, "read": read, "require": lambda: None}
    format = Format(
        name=name, path=Path(name, "weights.pt"), help="a pickle", card=card, loading="import torch", **known | parts
    )
    monkeypatch.setitem(FORMATS, name, format)
    return format
