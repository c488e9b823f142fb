"""Quantization-aware training in a Trainer: which layers are replaced, when they round, and what their ranges depend
on."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from hf_compress.layers.compressed import CompressedEmbedding, CompressedLinear
from hf_compress.layers.grids import SCHEMES, fake_quantize_symmetric
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback
from hf_compress.quantize.ranges import RANGE_MOMENTUM

MakeBert = Callable[..., BertForSequenceClassification]


def _trainer(
    model: torch.nn.Module,
    data: Dataset,
    folder: Path,
    options: dict[str, Any],
    *more: TrainerCallback,
    **changes: Any,
) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 10,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    callbacks = [QuantizationCallback(QuantizationArguments(**options)), *more]
    return Trainer(model, TrainingArguments(**settings | changes), train_dataset=data, callbacks=callbacks)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_ranges_are_added_to_the_state_dict(scheme: str, tiny_bert: Any) -> None:
    before, keys = list(tiny_bert.parameters()), set(tiny_bert.state_dict())
    quantize_layers(tiny_bert, SCHEMES[scheme])
    assert all(one is other for one, other in zip(before, tiny_bert.parameters(), strict=True))
    added = set(tiny_bert.state_dict()) - keys
    assert keys <= set(tiny_bert.state_dict()) and all(name.endswith(".input_range") for name in added)
    activation = SCHEMES[scheme].activation
    assert bool(added) == (activation is not None and activation.per == "tensor")


def test_body_and_embeddings_are_turned_and_the_head_is_not(tiny_bert: Any) -> None:
    quantize_layers(tiny_bert, SCHEMES["int8"])
    assert isinstance(tiny_bert.bert.pooler.dense, CompressedLinear)
    assert isinstance(tiny_bert.bert.embeddings.word_embeddings, CompressedEmbedding)
    assert type(tiny_bert.classifier) is torch.nn.Linear


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_compute_as_before_until_rounding_begins(scheme: str, make_bert: MakeBert) -> None:
    inputs = {"input_ids": torch.arange(12).reshape(2, 6)}
    plain, turned = make_bert(), make_bert()
    layers = quantize_layers(turned, SCHEMES[scheme])
    assert torch.equal(plain(**inputs).logits, turned(**inputs).logits)
    for layer in layers:
        layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-4.0, 4.0]))
    assert not torch.equal(plain(**inputs).logits, turned(**inputs).logits)


def test_an_embedding_rounds_rows_as_it_would_the_table() -> None:
    embedding = torch.nn.Embedding(50, 100)
    ids, grid = torch.randint(50, (4, 7)), SCHEMES["int4-weight"].weight
    expected = fake_quantize_symmetric(embedding.weight, grid)[ids]
    embedding.__class__ = CompressedEmbedding
    embedding.weight_grid, embedding.input_grid, embedding.quantizing = grid, None, True
    assert torch.equal(embedding(ids), expected)


class _Spy(TrainerCallback):
    """Notes, at the end of every step, whether layers rounded and observed in it and the range of one of them."""

    def __init__(self) -> None:
        self.rounded: list[bool] = []
        self.observed: list[bool] = []
        self.ranges: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        layer = compressed_layers(kwargs["model"])["bert.encoder.layer.1.output.dense"]
        self.rounded.append(layer.quantizing)
        self.observed.append(layer.observing)
        self.ranges.append(layer.input_range.clone())


def test_rounding_begins_and_ranges_freeze_on_time(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    spy = _Spy()
    options = {"quant_scheme": "int8", "quant_begin": 0.3, "quant_freeze": 0.7}
    _trainer(tiny_bert, tiny_dataset, tmp_path, options, spy).train()
    assert spy.rounded == [False] * 3 + [True] * 7
    assert spy.observed == [True] * 7 + [False] * 3
    moved = [not torch.equal(a, b) for a, b in zip(spy.ranges, spy.ranges[1:], strict=False)]
    assert all(moved[:6]) and not any(moved[6:])


def test_the_first_step_only_observes(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    spy = _Spy()
    _trainer(tiny_bert, tiny_dataset, tmp_path, {"quant_scheme": "int8", "quant_begin": 0.0}, spy).train()
    assert spy.rounded == [False] + [True] * 9


def test_a_range_is_the_moving_average_of_extremes(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    layer = tiny_bert.bert.encoder.layer[1].output.dense
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(torch.stack(inputs[0].detach().aminmax())))
    options = {"quant_scheme": "int8", "quant_begin": 0.5, "quant_freeze": 1.0}
    _trainer(tiny_bert, tiny_dataset, tmp_path, options).train()
    expected = seen[0]
    for extremes in seen[1:]:
        expected = RANGE_MOMENTUM * expected + (1 - RANGE_MOMENTUM) * extremes
    assert len(seen) == 10
    torch.testing.assert_close(layer.input_range, expected)


def test_ranges_do_not_depend_on_how_a_batch_is_accumulated(
    make_bert: MakeBert, tiny_dataset: Any, tmp_path: Path
) -> None:
    ranges = []
    for size, steps in ((16, 1), (4, 4)):
        model = make_bert()
        options = {"quant_scheme": "int8"}
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "learning_rate": 0.0}
        _trainer(model, tiny_dataset, tmp_path, options, **changes).train()
        ranges.append(
            torch.stack([layer.input_range for layer in compressed_layers(model).values() if layer.has_range])
        )
    torch.testing.assert_close(ranges[0], ranges[1])


def test_evaluation_neither_observes_nor_changes_a_range(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    trainer = _trainer(tiny_bert, tiny_dataset, tmp_path, {"quant_scheme": "int8"})
    trainer.train()
    before = [layer.input_range.clone() for layer in compressed_layers(tiny_bert).values() if layer.has_range]
    trainer.evaluate(tiny_dataset)
    after = [layer.input_range for layer in compressed_layers(tiny_bert).values() if layer.has_range]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_on_the_grid_learns(scheme: str, tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    trainer = _trainer(tiny_bert, tiny_dataset, tmp_path, {"quant_scheme": scheme}, max_steps=60, learning_rate=3e-3)
    before = trainer.evaluate(tiny_dataset)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(tiny_dataset)["eval_loss"] < 0.5 * before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_resumed_run_equals_the_uninterrupted_one(
    scheme: str, make_bert: MakeBert, tiny_dataset: Any, tmp_path: Path
) -> None:
    options = {"quant_scheme": scheme, "quant_begin": 0.3}
    whole = make_bert()
    changes = {"save_strategy": "steps", "save_steps": 4}
    _trainer(whole, tiny_dataset, tmp_path, options, **changes).train()
    resumed = make_bert(seed=1)
    _trainer(resumed, tiny_dataset, tmp_path, options, **changes).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-4")
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quant_scheme": "int3"}, "`--quant_scheme` must be one of"),
        ({"quant_scheme": "int8", "quant_begin": 1.0}, "`--quant_begin` must be"),
        ({"quant_scheme": "int8", "quant_begin": -0.1}, "`--quant_begin` must be"),
        ({"quant_scheme": "int8", "quant_begin": 0.5, "quant_freeze": 0.5}, "`--quant_freeze` must be"),
        ({"quant_scheme": "int8", "quant_freeze": 1.1}, "`--quant_freeze` must be"),
        ({"quant_scheme": "int8", "quant_begin": math.nan}, "`--quant_begin` must be"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QuantizationArguments(**options)


@pytest.mark.parametrize(
    ("pattern", "said"), [("nothing", "matches none"), ("(", "not a regular expression"), (".", "no linear")]
)
def test_a_bad_exclude_pattern_is_refused_before_training(
    pattern: str, said: str, tiny_bert: Any, tiny_dataset: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        _trainer(tiny_bert, tiny_dataset, tmp_path, {"quant_scheme": "int8", "quant_exclude": [pattern]})


def test_a_run_too_short_to_quantize_is_refused(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_bert.state_dict().items()}
    trainer = _trainer(tiny_bert, tiny_dataset, tmp_path, {"quant_scheme": "int8"}, max_steps=1)
    with pytest.raises(ValueError, match="`--quant_begin 0.1` leaves none of the 1 optimizer steps"):
        trainer.train()
    assert all(torch.equal(tensor, tiny_bert.state_dict()[name]) for name, tensor in before.items())


def test_excluded_modules_stay_as_they_are(tiny_bert: Any) -> None:
    quantize_layers(tiny_bert, SCHEMES["int8"], exclude=["embeddings", r"layer\.0\."])
    turned = compressed_layers(tiny_bert)
    assert turned and not any("embeddings" in name or "layer.0." in name for name in turned)


def test_one_process_on_several_gpus_is_refused() -> None:
    callback = QuantizationCallback(QuantizationArguments(quant_scheme="int8"))
    with pytest.raises(ValueError, match=r"`--quant_scheme` cannot train one process on 2 GPUs .*torchrun"):
        callback.on_train_begin(SimpleNamespace(n_gpu=2), TrainerState(max_steps=10), TrainerControl())


def test_a_layer_keeps_its_own_forward_and_rounds_inside() -> None:
    layer = BartScaledWordEmbedding(7, 8, padding_idx=0, embed_scale=3.0)
    model = BertModel(BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    model.embeddings.word_embeddings = layer
    quantize_layers(model, SCHEMES["int8"])
    assert isinstance(layer, CompressedEmbedding) and isinstance(layer, BartScaledWordEmbedding)
    layer.quantizing = True
    expected = 3.0 * fake_quantize_symmetric(layer.weight, SCHEMES["int8"].embedding)
    assert torch.equal(layer(torch.arange(7)), expected)
    assert isinstance(copy.deepcopy(layer), CompressedEmbedding)
