"""Compressed checkpoints load what was trained, bit for bit; all others are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_compress.checkpoint.inventory import tensors
from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers.grids import SCHEMES
from hf_compress.packing.packed import Packed
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from tests.tiny import NO_DROPOUT, bert

SUBSETS = {
    "pruned": Recipe(pruning=PruningArguments(prune_sparsity=0.6, prune_every=1)),
    **{scheme: Recipe(quantization=QuantizationArguments(quant_scheme=scheme)) for scheme in SCHEMES},
    "pruned int8": Recipe(
        pruning=PruningArguments(prune_sparsity=0.6, prune_every=1),
        quantization=QuantizationArguments(quant_scheme="int8"),
    ),
    "dense": Recipe(),
}


def _train(model: PreTrainedModel, recipe: Recipe, data: Any, folder: Path) -> PreTrainedModel:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=10,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    if not hasattr(model, "classifier"):
        data = data.remove_columns("labels").map(lambda row: {"labels": row["input_ids"]})
    Trainer(model, arguments, train_dataset=data, callbacks=recipe.callbacks()).train()
    return model.eval()


@pytest.fixture
def train(tiny_dataset: Any, tmp_path: Path) -> Callable[[PreTrainedModel, Recipe], PreTrainedModel]:
    """A function that trains a model by a recipe for a few steps."""
    return lambda model, recipe: _train(model, recipe, tiny_dataset, tmp_path / "training")


INPUTS = {"input_ids": torch.arange(20).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**INPUTS).logits


@pytest.mark.parametrize("subset", SUBSETS)
def test_reloaded_logits_equal_the_trained_ones_bit_for_bit(
    subset: str, tiny_bert: Any, train: Any, tmp_path: Path
) -> None:
    model = train(tiny_bert, SUBSETS[subset])
    folder = save_compressed(model, tmp_path / "compressed", SUBSETS[subset])
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(_logits(reloaded), _logits(model))


@pytest.mark.parametrize("subset", SUBSETS)
def test_saving_a_reloaded_model_writes_the_same_bytes(
    subset: str, tiny_bert: Any, train: Any, tmp_path: Path
) -> None:
    folder = save_compressed(train(tiny_bert, SUBSETS[subset]), tmp_path / "compressed", SUBSETS[subset])
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(_logits(again), _logits(AutoModelForSequenceClassification.from_pretrained(folder)))


def test_saving_leaves_the_model_as_it_was(tiny_bert: Any, train: Any, tmp_path: Path) -> None:
    model = train(tiny_bert, SUBSETS["pruned int8"])
    before, config = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.config.to_dict()
    save_compressed(model, tmp_path / "compressed", SUBSETS["pruned int8"])
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("subset", ["int8", "int4-weight", "pruned int8"])
def test_a_masked_lm_stores_tied_embeddings_once(tied: bool, subset: str, train: Any, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=29, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config.tie_word_embeddings = tied
    model = train(AutoModelForMaskedLM.from_config(config), SUBSETS[subset])
    folder = save_compressed(model, tmp_path / "compressed", SUBSETS[subset])
    assert torch.equal(_logits(AutoModelForMaskedLM.from_pretrained(folder)), _logits(model))
    decoders = [facts.name for facts in tensors(folder) if facts.name.endswith("decoder.weight")]
    assert len(decoders) == (0 if tied else 1)


@pytest.mark.parametrize("subset", SUBSETS)
def test_gpt2_with_transposed_layers_keeps_its_logits(subset: str, train: Any, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=29, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = train(AutoModelForCausalLM.from_config(config), SUBSETS[subset])
    folder = save_compressed(model, tmp_path / "compressed", SUBSETS[subset])
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(folder)), _logits(model))


@pytest.mark.parametrize("subset", ["int8", "pruned"])
def test_a_bfloat16_model_is_stored_and_reloaded_in_bfloat16(
    subset: str, tiny_bert: Any, train: Any, tmp_path: Path
) -> None:
    model = train(tiny_bert.to(torch.bfloat16), SUBSETS[subset])
    folder = save_compressed(model, tmp_path / "compressed", SUBSETS[subset])
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(_logits(reloaded), _logits(model))


def test_a_pipeline_loads_the_folder_by_its_path(
    tiny_bert: Any, train: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = train(tiny_bert, SUBSETS["pruned int8"])
    folder = save_compressed(model, tmp_path / "compressed", SUBSETS["pruned int8"], processing_class=tiny_tokenizer)
    scores = pipeline("text-classification", str(folder), top_k=None)(["the film was very warm today"])[0]
    with torch.no_grad():
        expected = model(**tiny_tokenizer("the film was very warm today", return_tensors="pt")).logits.softmax(-1)
    assert max(score["score"] for score in scores) == pytest.approx(expected.max().item(), abs=1e-6)


def test_a_reloaded_model_can_be_trained_further(tiny_bert: Any, train: Any, tmp_path: Path) -> None:
    recipe = SUBSETS["pruned int8"]
    first = save_compressed(train(tiny_bert, recipe), tmp_path / "first", recipe)
    again = train(AutoModelForSequenceClassification.from_pretrained(first), recipe)
    second = save_compressed(again, tmp_path / "second", recipe)
    assert torch.equal(_logits(AutoModelForSequenceClassification.from_pretrained(second)), _logits(again))


def test_zeros_are_stored_as_bits_and_not_as_floats(make_bert: Any, train: Any, tmp_path: Path) -> None:
    recipe = SUBSETS["pruned"]
    model = train(make_bert(hidden_size=128, intermediate_size=512), recipe)
    folder = save_compressed(model, tmp_path / "compressed", recipe)
    for facts in tensors(folder):
        if facts.codec == "mask planes":
            assert facts.stored_bytes <= facts.numel / 8 + 4 * (facts.numel - facts.zeros) + 100
    assert any(facts.codec == "mask planes" for facts in tensors(folder))


def test_facts_of_the_tensors_add_up_to_the_file(tiny_bert: Any, train: Any, tmp_path: Path) -> None:
    model = train(tiny_bert, SUBSETS["pruned int8"])
    folder = save_compressed(model, tmp_path / "compressed", SUBSETS["pruned int8"])
    facts = tensors(folder)
    file = folder / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert sum(tensor.stored_bytes for tensor in facts) == file.stat().st_size - header
    weights = sum(tensor.numel for tensor in facts if not tensor.name.endswith("input_range"))
    assert weights == sum(parameter.numel() for parameter in model.parameters())
    assert {tensor.part for tensor in facts} == {"embeddings", "encoder", "head"}
    query = next(tensor for tensor in facts if tensor.name.endswith("layer.0.attention.self.query.weight"))
    assert query.sparsity >= 0.599 and query.bits_per_weight < 10 and query.entropy_bytes <= query.stored_bytes


def test_the_folder_holds_no_pickle_and_the_recipe_that_made_it(tiny_bert: Any, train: Any, tmp_path: Path) -> None:
    recipe = SUBSETS["pruned int8"]
    folder = save_compressed(train(tiny_bert, recipe), tmp_path / "compressed", recipe)
    files = {"config.json", "hf_compress_loading.py", "model.safetensors", "recipe.json"}
    assert {path.name for path in folder.iterdir()} == files
    assert Recipe.load(folder / "recipe.json") == recipe
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "hf_compress" and config["version"] == 5


def test_a_folder_that_holds_something_is_not_overwritten(tiny_bert: Any, tmp_path: Path) -> None:
    (tmp_path / "compressed").mkdir()
    (tmp_path / "compressed" / "precious").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        save_compressed(tiny_bert, tmp_path / "compressed", Recipe())
    assert (tmp_path / "compressed" / "precious").read_text() == "mine"


def test_saving_that_fails_leaves_no_folder(tiny_bert: Any, train: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model = train(tiny_bert, SUBSETS["int8"])

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Recipe, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_compressed(model, tmp_path / "compressed", SUBSETS["int8"])
    assert not (tmp_path / "compressed").exists()


@pytest.mark.parametrize(("subset", "said"), [("pruned", "`--prune_sparsity 0.6`"), ("int8", "`--quant_scheme int8`")])
def test_a_model_that_is_not_what_its_recipe_says_is_refused(
    subset: str, said: str, tiny_bert: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        save_compressed(tiny_bert, tmp_path / "compressed", SUBSETS[subset])
    assert not (tmp_path / "compressed").exists()


@pytest.fixture(scope="module")
def saved(tiny_dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed folder, trained once for all tests of this file."""
    work, recipe = tmp_path_factory.mktemp("saved"), SUBSETS["pruned int8"]
    model = _train(bert(**NO_DROPOUT), recipe, tiny_dataset, work / "training")
    return save_compressed(model, work / "compressed", recipe)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` that a test may damage."""
    return shutil.copytree(saved, tmp_path / "compressed")


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _flip(state: dict[str, torch.Tensor]) -> None:
    state[QUERY][40] ^= 1


def _shorten(state: dict[str, torch.Tensor]) -> None:
    state[QUERY] = state[QUERY][:-5].clone()


def _swap(state: dict[str, torch.Tensor]) -> None:
    other = QUERY.replace("attention.self.query", "intermediate.dense")
    state[QUERY], state[other] = state[other], state[QUERY]


def _exchange(state: dict[str, torch.Tensor]) -> None:
    other = QUERY.replace("query", "key")
    state[QUERY], state[other] = state[other], state[QUERY]


def _take_out(state: dict[str, torch.Tensor]) -> None:
    del state[QUERY]


def _unpack(state: dict[str, torch.Tensor]) -> None:
    state[QUERY] = torch.zeros(32, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_flip, "checksum"),
        (_shorten, "checksum"),
        (_swap, "needs shape"),
        (_exchange, "checksum"),
        (_take_out, "was not saved together with the other tensors"),
        (_unpack, "row of bytes, this is float32"),
    ],
)
def test_a_damaged_tensor_is_refused_by_name(change: Any, said: str, folder: Path) -> None:
    _rewrite(folder, change)
    with pytest.raises(ValueError, match=said) as raised:
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert "bert." in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "version` must be 5; got 99"),
        ({"scheme": None}, "scheme` must name the grids"),
        ({"scheme": {"weight": "int8"}}, "must be a scheme of hf_compress"),
        ({"scheme": ["int8"]}, "must be a scheme of hf_compress"),
        ({"quantized": "all"}, "quantized` must be a list of names; got 'all'"),
        ({"pruned": [1]}, "pruned` must be a list of names"),
        ({"pruned": []}, "was not saved together"),
        ({"quantized": ["bert.nowhere"]}, "names the layer bert.nowhere"),
        ({"quantized": ["bert.encoder"]}, "names bert.encoder, a layer that hf_compress cannot pack"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, Any], said: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_packed_weight_read_by_hand_is_what_the_format_says(folder: Path) -> None:
    """The format needs no hf_compress model: integers times the scale of their row."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        packed = Packed.open(file.get_tensor(QUERY), QUERY)
    expected = AutoModelForSequenceClassification.from_pretrained(folder).get_parameter(packed.key)
    assert torch.equal(packed.values().float() * packed.scale(), expected)


def test_a_moved_folder_still_loads(folder: Path, tmp_path: Path) -> None:
    before = _logits(AutoModelForSequenceClassification.from_pretrained(folder))
    shutil.move(folder, tmp_path / "elsewhere")
    assert torch.equal(_logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "elsewhere")), before)


def test_a_truncated_file_is_refused_by_every_door(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is not an intact safetensors file"):
        tensors(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is not an intact safetensors file"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_missed_sparsity_is_refused_or_saved_with_a_warning(
    tiny_bert: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, inputs = SUBSETS["pruned"], torch.arange(5, 13)[None]
    with pytest.raises(ValueError, match=r"`--prune_sparsity 0\.6`, but only 0\.0\d* of the weights"):
        save_compressed(tiny_bert, tmp_path / "refused", recipe)
    assert not (tmp_path / "refused").exists()
    folder = save_compressed(tiny_bert, tmp_path / "kept", recipe, strict=False)
    assert "`--prune_sparsity 0.6`, but only 0.0" in caplog.text
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(loaded(inputs).logits, tiny_bert(inputs).logits)
