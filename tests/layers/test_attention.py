"""The products inside attention: what is rounded, by which ranges, and which models are refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.save import save_compressed
from hf_compress.export.formats import FORMATS
from hf_compress.layers.attention import (
    IMPLEMENTATION,
    RANGED,
    Operand,
    round_attention,
    rounded_attention,
)
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.probe import attention_modules
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback
from hf_compress.recipe import Recipe
from tests.quantized import quantized

NAME = "int8-attention"
SCHEME = SCHEMES[NAME]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "distilbert": {
        "vocab_size": 40,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "initializer_range": 0.3,
    },
    "roberta": SIZES,
    "modernbert": {**SIZES, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 4},
    "llama": {**SIZES, "num_key_value_heads": 1},
}
INPUTS = {"input_ids": torch.arange(2, 22).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
INPUTS["attention_mask"][1, 6:] = 0


def build(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **MODELS.get(kind, SIZES) | changes)
    auto = AutoModelForSequenceClassification if "bert" in kind or "deberta" in kind else AutoModelForCausalLM
    return auto.from_config(config, attn_implementation="eager").eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**INPUTS).logits


def operands(model: torch.nn.Module) -> dict[str, Operand]:
    return {name: layer for name, layer in compressed_layers(model).items() if isinstance(layer, Operand)}


def trained(model: PreTrainedModel, data: Any, folder: Path, scheme: str = NAME, **changes: Any) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "output_dir": str(folder / "training"),
        "max_steps": 6,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    callback = QuantizationCallback(QuantizationArguments(quant_scheme=scheme, quant_begin=0.3))
    Trainer(model, TrainingArguments(**settings | changes), train_dataset=data, callbacks=[callback]).train()
    return model.eval()


def test_operands_and_probabilities_match_torch_operators(tiny_bert: Any) -> None:
    round_attention(tiny_bert, SCHEME)
    module = tiny_bert.bert.encoder.layer[0].attention.self
    query, key, value = (3 * torch.randn(2, 2, 7, 8) for _ in RANGED)
    for operand in operands(tiny_bert).values():
        operand.quantizing = True
        if operand.has_range:
            operand.input_range.copy_(torch.tensor([-5.0, 4.0]))
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., 4:] = torch.finfo(torch.float32).min
    scale = float(torch.tensor(5.0) / 127)
    q, k, v = (torch.fake_quantize_per_tensor_affine(one, scale, 0, -128, 127) for one in (query, key, value))
    p = torch.fake_quantize_per_tensor_affine((q @ k.mT * 0.3 + mask).softmax(-1), 1 / 255, 0, 0, 255)
    result, probabilities = rounded_attention(module.eval(), query, key, value, mask, scaling=0.3, dropout=0.5)
    torch.testing.assert_close(probabilities, p, atol=1e-7, rtol=0)
    torch.testing.assert_close(result, (p @ v).transpose(1, 2))


def test_dropped_probabilities_were_rounded_before(tiny_bert: Any) -> None:
    round_attention(tiny_bert, SCHEME)
    for operand in operands(tiny_bert).values():
        operand.quantizing = True
        if operand.has_range:
            operand.input_range.copy_(torch.tensor([-3.0, 3.0]))
    module = tiny_bert.bert.encoder.layer[0].attention.self.train()
    given = (torch.randn(2, 2, 7, 8) for _ in RANGED)
    _, probabilities = rounded_attention(module, *given, None, dropout=0.5)
    steps = probabilities / 2 * 255
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert 0.3 < float((probabilities == 0).float().mean()) < 0.9


@pytest.mark.parametrize("sharing", [1, 2])
def test_without_rounding_it_is_torchs_attention(sharing: int) -> None:
    query, key, value = torch.randn(2, 4, 5, 8), *torch.randn(2, 2, 4 // sharing, 9, 8)
    mask = torch.randn(2, 1, 5, 9)
    expected = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    result, _ = rounded_attention(torch.nn.Identity(), query, key, value, mask)
    torch.testing.assert_close(result, expected.transpose(1, 2))


@pytest.mark.parametrize("kind", MODELS)
def test_models_reload_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    before = logits(model)
    found = round_attention(model, SCHEME)
    assert len(found) == 2 and all(module.config._attn_implementation == IMPLEMENTATION for module in found.values())
    torch.testing.assert_close(logits(model), before)
    folder = quantized(model, tmp_path / "compressed", NAME)
    reloaded = type(model).from_pretrained(folder, attn_implementation="sdpa")
    assert torch.equal(logits(reloaded), logits(model))
    assert {name for name, one in operands(reloaded).items() if one.has_range and one.ready} == {
        f"{name}.operands.{operand}" for name in found for operand in RANGED
    }
    for operand in operands(model).values():
        operand.quantizing = False
    assert not torch.equal(logits(model), logits(reloaded))


def test_a_range_is_that_of_the_layer_before(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    layer = tiny_bert.bert.encoder.layer[1].attention.self
    layer.key.register_forward_hook(lambda _, inputs, output: seen.append(torch.stack(output.detach().aminmax())))
    trained(tiny_bert, tiny_dataset, tmp_path, max_steps=3, per_device_train_batch_size=4)
    first, second, third = seen[1:]  # The first forward was the search for attention.
    expected = torch.lerp(torch.lerp(first, second, 0.05), third, 0.05)
    torch.testing.assert_close(layer.operands["key"].input_range, expected)


def test_neither_accumulation_nor_checkpointing_changes_a_range(
    make_bert: Callable[..., PreTrainedModel], tiny_dataset: Any, tmp_path: Path
) -> None:
    found = []
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for changes in (
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 16, "activation_checkpointing": True},
    ):
        model = trained(make_bert(**still), tiny_dataset, tmp_path, learning_rate=0.0, **changes)
        found.append(torch.stack([one.input_range for one in operands(model).values() if one.has_range]))
    torch.testing.assert_close(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_an_excluded_module_stays_in_floating_point(tiny_bert: Any, tmp_path: Path) -> None:
    names = list(attention_modules(tiny_bert))
    arguments = QuantizationArguments(quant_scheme=NAME, quant_exclude=[r"layer\.0\."])
    QuantizationCallback(arguments).on_init_end(None, None, None, model=tiny_bert)  # type: ignore[arg-type]
    for layer in compressed_layers(tiny_bert).values():
        layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-3.0, 3.0]))
    tiny_bert.eval()(**INPUTS)
    folder = save_compressed(tiny_bert, tmp_path / "compressed", Recipe(quantization=arguments))
    reloaded = type(tiny_bert).from_pretrained(folder)
    assert list(reloaded.config.quantization_config.attention) == names[1:]
    assert torch.equal(logits(reloaded), logits(tiny_bert))


def test_another_scheme_takes_the_operands_away(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    reloaded = type(tiny_bert).from_pretrained(quantized(tiny_bert, tmp_path / "compressed", NAME))
    assert operands(reloaded)
    assert not operands(trained(reloaded, tiny_dataset, tmp_path, scheme="int8"))


def test_a_model_trained_without_it_is_not_saved(tiny_bert: Any, tiny_dataset: Any, tmp_path: Path) -> None:
    trained(tiny_bert, tiny_dataset, tmp_path, scheme="int8")
    recipe = Recipe(quantization=QuantizationArguments(quant_scheme=NAME))
    with pytest.raises(ValueError, match=r"2 layers were not trained for it, for example bert\."):
        save_compressed(tiny_bert, tmp_path / "compressed", recipe)


DEBERTA = {"relative_attention": True, "position_buckets": 4, "pooler_hidden_size": 32, "type_vocab_size": 0}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("deberta-v2", DEBERTA, "DebertaV2ForSequenceClassification computes its attention without"),
        ("gemma2", {"num_key_value_heads": 1, "head_dim": 16}, "the attention of Gemma2Attention has softcap"),
        (
            "gpt_oss",
            {"num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
            "the attention of GptOssAttention has additional terms",
        ),
    ],
)
def test_attention_that_is_more_than_products_is_refused(kind: str, changes: dict[str, Any], said: str) -> None:
    model = build(kind, **changes)
    with pytest.raises(ValueError, match=rf"`--quant_scheme int8-attention`.* {said}.* `int8`\."):
        round_attention(model, SCHEME)
    assert not operands(model)


CAPPED = [("gemma2", {"attn_logit_softcapping": None}), ("gemma3_text", {})]


@pytest.mark.parametrize(("kind", "changes"), CAPPED, ids=[kind for kind, _ in CAPPED])
def test_a_term_that_a_model_does_not_give_is_no_obstacle(kind: str, changes: dict[str, Any]) -> None:
    model = build(kind, num_key_value_heads=1, head_dim=16, **changes)
    round_attention(model, SCHEME)
    assert operands(model)


def test_a_window_that_attention_looks_at_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("mistral", num_key_value_heads=1)
    home = sys.modules[type(model).__module__]
    own = home.eager_attention_forward

    def looking(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        sliding_window: Any = None,
        **kwargs: Any,
    ) -> Any:
        return own(module, query, key, value, None if sliding_window else attention_mask, **kwargs)

    monkeypatch.setattr(home, "eager_attention_forward", looking)
    with pytest.raises(ValueError, match="has additional terms"):
        round_attention(model, SCHEME)


def test_an_adapter_and_nothing_to_round_are_refused(tiny_bert: Any) -> None:
    with pytest.raises(ValueError, match=r"are all left out by `--quant_exclude` attention"):
        round_attention(tiny_bert, SCHEME, ["attention"])
    adapted = get_peft_model(tiny_bert, LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match=r"while the model has a PEFT adapter.* `model.merge_and_unload\(\)`"):
        round_attention(adapted, SCHEME)


def test_a_name_that_is_no_attention_is_refused_in_loading(tiny_bert: Any, tmp_path: Path) -> None:
    folder = quantized(tiny_bert, tmp_path / "compressed", NAME)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('bert.encoder.layer.0.attention.self"', 'bert.encoder.layer.0"'))
    with pytest.raises(ValueError, match=r"config\.json"):
        type(tiny_bert).from_pretrained(folder)
    file.write_text(file.read_text().replace('bert.encoder.layer.0"', 'bert.encoder.layer.7"'))
    with pytest.raises(
        ValueError, match=r"names bert\.encoder\.layer\.7, which BertForSequenceClassification does not"
    ):
        type(tiny_bert).from_pretrained(folder)
    with pytest.raises(ValueError, match="must name the grid of the attention"):
        CompressionConfig(attention=["bert.encoder.layer.0.attention.self"])


def test_compressed_tensors_has_no_place_for_it(tiny_bert: Any, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    folder = quantized(tiny_bert, tmp_path / "compressed", NAME)
    with pytest.raises(ValueError, match="cannot hold the ranges inside attention"):
        FORMATS["compressed-tensors"].export(folder)
    assert not (folder / "compressed-tensors").exists()


def test_a_decorated_forward_is_found(tiny_bert: Any) -> None:
    """A decorator hides the code of `forward`, but not its effect."""
    names = list(attention_modules(tiny_bert))
    module = tiny_bert.bert.encoder.layer[0].attention.self

    class Timed(type(module)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Uses(torch.nn.Module):
        """Mentions the interface and never calls it."""

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values if ALL_ATTENTION_FUNCTIONS else -values

    module.__class__ = Timed
    other = tiny_bert.bert.encoder.layer[1].attention.self
    other.forward = (lambda forward: lambda *args, **kwargs: forward(*args, **kwargs))(other.forward)
    tiny_bert.dropout = Uses()
    assert list(attention_modules(tiny_bert)) == names == list(round_attention(tiny_bert, SCHEME))


def test_finding_attention_changes_nothing(tiny_bert: Any) -> None:
    tiny_bert.train()
    tiny_bert.bert.encoder.layer[1].eval()
    training = [module.training for module in tiny_bert.modules()]
    state, implementation = torch.get_rng_state(), tiny_bert.config._attn_implementation
    attention_modules(tiny_bert)
    assert [module.training for module in tiny_bert.modules()] == training
    assert tiny_bert.config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_alone_leave_attention_as_it_is(tiny_bert: Any) -> None:
    quantize_layers(tiny_bert, SCHEMES["int8"])
    assert not round_attention(tiny_bert, SCHEMES["int8"])
    assert tiny_bert.config._attn_implementation != IMPLEMENTATION
