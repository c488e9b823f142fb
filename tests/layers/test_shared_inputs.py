"""Layers that receive the same tensor observe and round it once, and no bit changes."""

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from hf_compress.layers import affine, grids
from hf_compress.layers import shared_inputs as siblings
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.shared_inputs import Siblings
from hf_compress.layers.turning import quantize_layers

MakeBert = Callable[..., BertForSequenceClassification]
INPUTS = {"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.tensor([0, 1])}
EMBEDDINGS = 3
ROUNDING = {"int8": (affine, "_integers"), "int8-dynamic": (grids, "to_integers")}


def quantizing(model: BertForSequenceClassification, scheme: str) -> list[CompressedLayer]:
    """The layers of `model`, in training, observing and rounding."""
    layers = quantize_layers(model.train(), SCHEMES[scheme])
    for layer in layers:
        layer.observing = layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-1.0, 1.0]))
    return layers


@pytest.fixture
def tensors_rounded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs and rows of embeddings that were rounded, in order, while the test runs."""
    shapes: list[tuple[int, ...]] = []

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counting(values: Tensor, *arguments: Any, **more: Any) -> Tensor:
            if values.ndim == 3 and values.requires_grad:  # No weight.
                shapes.append(tuple(values.shape))
            return function(values, *arguments, **more)

        return counting

    for module, name in ROUNDING.values():
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return shapes


@pytest.mark.parametrize("scheme", ROUNDING)
def test_sharing_changes_no_bit_of_losses_gradients_and_ranges(
    scheme: str, make_bert: MakeBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for shared in (True, False):
        with monkeypatch.context() as patch:
            if not shared:
                patch.setattr(siblings, "_comparable", lambda _: False)
            model = make_bert()
            layers = quantizing(model, scheme)
            loss = model(**INPUTS).loss
            loss.backward()
            seen = [layer.step_range for layer in layers if layer.has_range]
            results.append([loss, *(weight.grad for weight in model.parameters()), *seen])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("scheme", ROUNDING)
def test_query_key_and_value_are_rounded_once(scheme: str, make_bert: MakeBert, tensors_rounded: list[Any]) -> None:
    """Besides that one a layer has three: the attention's output, and both of the feed-forward network."""
    model = make_bert(num_hidden_layers=2)
    quantizing(model, scheme)
    model(**INPUTS).loss.backward()
    assert len(tensors_rounded) == EMBEDDINGS + 2 * (1 + 3)


def test_another_range_is_another_grid(make_bert: MakeBert, tensors_rounded: list[Any]) -> None:
    model = make_bert(num_hidden_layers=1)
    quantizing(model, "int8")
    model.bert.encoder.layer[0].attention.self.key.input_range[1] = 2.0
    model(**INPUTS).loss.backward()
    assert len(tensors_rounded) == EMBEDDINGS + 3 + 3


def test_a_tensor_that_was_changed_in_place_is_another_one() -> None:
    shared, values = Siblings(), torch.tensor([1.0, 2.0])
    assert shared.extremes(values).whole.tolist() == [1, 2]
    values.mul_(3)
    assert shared.extremes(values).whole.tolist() == [3, 6]
    assert shared.extremes(values.clone()).whole.tolist() == [3, 6]


def test_no_activation_is_kept(tiny_bert: Any) -> None:
    quantizing(tiny_bert, "int8")
    kept: list[weakref.ref[Tensor]] = []
    query = tiny_bert.bert.encoder.layer[0].attention.self.query
    query.register_forward_hook(lambda layer, *_: kept.append(layer.siblings._rounded[3]))
    loss = tiny_bert(**INPUTS).loss
    assert kept[0]() is not None
    loss.backward()
    assert kept[0]() is None


def test_a_model_that_has_computed_can_be_copied_and_pickled(tiny_bert: Any) -> None:
    layers = quantizing(tiny_bert, "int8")
    tiny_bert(**INPUTS)
    pickle.dumps(layers[-1].siblings)
    copied = [layer for layer in copy.deepcopy(tiny_bert).modules() if isinstance(layer, CompressedLayer)]
    assert len({id(layer.siblings) for layer in copied}) == 1
    assert copied[0].siblings is not layers[0].siblings
