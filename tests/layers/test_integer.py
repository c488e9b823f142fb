"""A model loaded with `run="int8"` holds a quarter of the bytes and computes what the dense one does."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers import integer
from hf_compress.layers.attention import round_attention
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.integer import Integer, IntegerLinear
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.targets import prunable
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.spending import spend
from hf_compress.recipe import Recipe

WIDTH = 64
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=128)),
    "masked lm with a tied head": lambda: BertForMaskedLM(BertConfig(**SMALL, intermediate_size=128)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    ),
    "albert": lambda: AlbertForSequenceClassification(
        AlbertConfig(**SMALL, intermediate_size=128, embedding_size=32)
    ),
    "bart": lambda: BartForSequenceClassification(
        BartConfig(
            vocab_size=64, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
            encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32, scale_embedding=True,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=WIDTH, d_kv=32, d_ff=128, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
}  # fmt: skip

# Constants of fixed steps. Classifiers that were not trained are hardly sensitive to their weights.
STEPS = dict.fromkeys(MODELS, 1e-4) | dict.fromkeys(("masked lm with a tied head", "gpt2", "t5"), 1e-2)


@pytest.fixture(params=[False, True], ids=["dequantized", "multiplied as integers"])
def multiplied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether layers multiply integers, regardless of this machine's speed: exact sums need VNNI."""
    if request.param and not integer.multiplies_fast(torch.device("cpu")):
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr(integer, "multiplies_fast", lambda device: request.param)
    return request.param


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2  # Bart classifies at the last end of a sentence.
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return given | ({"decoder_input_ids": ids} if isinstance(model, T5ForConditionalGeneration) else {})


def saved(model: PreTrainedModel, scheme: str, folder: Path, step: float | None = None) -> Path:
    """The folder that `model` was saved to, after a forward with everything rounded, as at the end of training.

    `step` is the constant of fixed steps, if there are any.
    """
    quantize_layers(model.eval(), SCHEMES[scheme], steps=step is not None)
    round_attention(model, SCHEMES[scheme])
    if step is not None:
        spend(model, [inputs(model)], None, constant=step)
    for layer in compressed_layers(model).values():
        layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-2.0, 3.0]))
    with torch.no_grad():
        model(**inputs(model))
    options = QuantizationArguments(quant_scheme=scheme, quant_step=step)
    return save_compressed(model, folder, Recipe(quantization=options))


def loaded(model: PreTrainedModel, folder: Path, run: str, **settings: Any) -> PreTrainedModel:
    with pytest.warns(UserWarning, match="loading attributes"):
        return type(model).from_pretrained(folder, quantization_config=CompressionConfig(run=run), **settings)


def storage(layers: Iterable[nn.Module]) -> int:
    """The bytes that the weights of `layers`, their scales and their sums take together; a shared one counts once."""
    names = ("weight", "weight_scale", "row_sums")
    tensors = [getattr(layer, name) for layer in layers for name in names if getattr(layer, name, None) is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**inputs(model)).logits


@pytest.mark.parametrize(("scheme", "steps"), [*((scheme, False) for scheme in SCHEMES), ("int8", True)])
@pytest.mark.parametrize("name", MODELS)
def test_integers_give_the_logits_of_the_dense_model(
    name: str, scheme: str, steps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Exact sums of integers need VNNI, and inputs in floating point are never multiplied as integers.
    fast = integer.multiplies_fast(torch.device("cpu")) and SCHEMES[scheme].activation is not None
    model = MODELS[name]()
    folder = saved(model, scheme, tmp_path / "small", STEPS[name] if steps else None)
    expected = logits(loaded(model, folder, "dense"))
    for multiplied in (False, True) if fast else (False,):
        monkeypatch.setattr(integer, "multiplies_fast", lambda device, multiplied=multiplied: multiplied)
        small = loaded(model, folder, "int8")
        assert sum(isinstance(module, Integer) for module in small.modules()) >= len(
            small.hf_quantizer.quantization_config.quantized
        )
        got = logits(small)
        if multiplied:
            # A last bit sometimes decides which of two integers a value halfway between them rounds to.
            assert (got - expected).abs().max() <= 0.02 * expected.abs().max()
        else:
            assert torch.equal(got, expected)


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_again_is_the_same_file(name: str, steps: bool, tmp_path: Path) -> None:
    model = MODELS[name]()
    folder = saved(model, "int8", tmp_path / "small", STEPS[name] if steps else None)
    loaded(model, folder, "int8").save_pretrained(tmp_path / "again")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_weights_take_a_quarter_of_the_memory(tmp_path: Path) -> None:
    model = BertForMaskedLM(BertConfig(**SMALL | {"vocab_size": 512, "hidden_size": 256}, intermediate_size=1024))
    folder = saved(model, "int8", tmp_path / "small")
    small = loaded(model, folder, "int8")
    dense = loaded(model, folder, "dense")
    names = [name for name, module in small.named_modules() if isinstance(module, Integer)]
    assert len(names) == 16  # Three tables, two layers of six, and the head that is tied.
    integers, floats = (storage(m.get_submodule(name) for name in names) for m in (small, dense))
    assert 0.25 < integers / floats < 0.26
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_a_product_of_integers_is_exact_but_for_its_rounding(scheme: str, tmp_path: Path, multiplied: bool) -> None:
    model = MODELS["bert"]()
    small = loaded(model, saved(model, scheme, tmp_path / "small"), "int8")
    layer = small.bert.encoder.layer[0].intermediate.dense
    assert isinstance(layer, IntegerLinear)
    values = torch.randn(integer.BLOCK + 3, WIDTH) * 4  # Some beyond the range, and more than one block.
    assert layer.multiplies(values) == multiplied
    rounded, weight = layer.rounded_input(values).double(), layer.dense_weight(torch.float64)
    exact = rounded @ weight.t() + layer.bias
    error = (layer(values) - exact).abs() / (rounded.abs() @ weight.t().abs() + layer.bias.abs())
    assert error.max() < 1e-6


def test_zeros_of_pruned_weights_are_zero_integers(tiny_bert: BertForSequenceClassification, tmp_path: Path) -> None:
    with torch.no_grad():
        for target in prunable(tiny_bert):
            target.weight.view(-1)[::2] = 0
    layers = quantize_layers(tiny_bert, SCHEMES["int8-weight"])
    for layer in layers:
        layer.quantizing = True
    logits_of = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        tiny_bert(**logits_of)
    recipe = Recipe(
        pruning=PruningArguments(prune_sparsity=0.5), quantization=QuantizationArguments(quant_scheme="int8-weight")
    )
    small = loaded(tiny_bert, save_compressed(tiny_bert, tmp_path / "small", recipe), "int8")
    for target in prunable(small):
        assert target.weight.dtype is torch.int8
        assert (target.weight.view(-1)[::2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integers_match_the_dense_model_in_half_precision(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer, "multiplies_fast", lambda device: False)
    model = MODELS["bert"]()
    folder = saved(model, "int8", tmp_path / "small")
    small = loaded(model, folder, "int8", dtype=dtype)
    assert small.dtype is dtype
    assert torch.equal(logits(small), logits(loaded(model, folder, "dense", dtype=dtype)))
    assert torch.equal(logits(small), logits(loaded(model, folder, "int8", device_map="cpu").to(dtype)))


def test_half_precision_does_not_touch_scales(tmp_path: Path) -> None:
    model = MODELS["bert"]()
    small = loaded(model, saved(model, "int8", tmp_path / "small"), "int8")
    table = small.get_input_embeddings()
    scale = table.weight_scale.clone()
    small.to(torch.float16).to(torch.float32)
    assert torch.equal(table.weight_scale, scale)


def test_training_is_refused_and_evaluation_is_not(tmp_path: Path) -> None:
    model = MODELS["bert"]()
    small = loaded(model, saved(model, "int8", tmp_path / "small"), "int8")
    rows = [{"input_ids": [2, 5, 6], "attention_mask": [1, 1, 1], "labels": 0}] * 4
    arguments = TrainingArguments(tmp_path / "run", max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = Trainer(small, arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match='run="int8".*cannot be trained.*run="dense"'):
        trainer.train()


def test_gradients_reach_inputs_that_ask_for_them(tmp_path: Path) -> None:
    model = MODELS["bert"]()
    small = loaded(model, saved(model, "int8", tmp_path / "small"), "int8")
    values = torch.randn(1, 4, WIDTH, requires_grad=True)
    small(inputs_embeds=values).logits.sum().backward()
    assert values.grad is not None
    assert values.grad.abs().sum() > 0


def test_pipelines_run_on_integers(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = MODELS["bert"]()
    folder = saved(model, "int8", tmp_path / "small")
    tiny_tokenizer.save_pretrained(folder)
    settings = {"quantization_config": CompressionConfig(run="int8")}
    with pytest.warns(UserWarning, match="loading attributes"):
        classify = pipeline("text-classification", model=str(folder), model_kwargs=settings)
    assert isinstance(classify.model.get_input_embeddings(), Integer)
    assert 0 < classify("the film was warm")[0]["score"] <= 1


def test_a_file_without_integers_cannot_be_run_on_them(
    tiny_bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.5))
    with torch.no_grad():
        for parameter in tiny_bert.bert.parameters():
            parameter.zero_()
    folder = save_compressed(tiny_bert, tmp_path / "pruned", recipe)
    with pytest.raises(ValueError, match="are floating point"):
        loaded(tiny_bert, folder, "int8")


@pytest.mark.parametrize("places", [{"bert": "cpu", "classifier": "disk"}, {"": "disk"}], ids=["some", "all"])
def test_integers_on_several_devices_are_refused(places: dict[str, str], tmp_path: Path) -> None:
    model = MODELS["bert"]()
    folder = saved(model, "int8", tmp_path / "small")
    with pytest.raises(ValueError, match='`run="int8"` needs the whole model on one device; .* disk'):
        loaded(model, folder, "int8", device_map=places, offload_folder=tmp_path / "offload")


def test_there_are_two_ways_to_run() -> None:
    with pytest.raises(ValueError, match="`run` must be one of dense, int8; got 'int4'"):
        CompressionConfig(run="int4")  # type: ignore[arg-type]
