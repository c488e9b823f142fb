"""Bits per layer: how they are assigned, what is refused, and a file with several bit widths that loads as trained."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, Trainer, TrainingArguments

from hf_compress import PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.inventory import tensors
from hf_compress.layers.bits import items_of, weight_grids
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.targets import Target, quantizable
from tests.quantized import quantized

MakeBert = Callable[..., BertForSequenceClassification]
MIXED = [".=6", "word_embeddings=4", "query=2", r"layer\.1.*query=3"]


def bits_of(model: BertForSequenceClassification, *items: str, scheme: str = "int8") -> dict[str, int]:
    return {target.name: grid.bits for target, grid in weight_grids(quantizable(model), SCHEMES[scheme], items)}


def test_of_several_items_the_last_holds(tiny_bert: BertForSequenceClassification) -> None:
    bits = bits_of(tiny_bert, *MIXED)
    assert bits["bert.embeddings.word_embeddings"] == 4
    assert bits["bert.encoder.layer.0.attention.self.query"] == 2
    assert bits["bert.encoder.layer.1.attention.self.query"] == 3
    assert bits["bert.pooler.dense"] == 6
    assert set(bits_of(tiny_bert).values()) == {8}


@pytest.mark.parametrize("item", ["4", "=4", "query=", "query=1", "query=9", "query=four", "query=-4", "query=4.0"])
def test_an_item_that_gives_no_bits_is_refused(item: str) -> None:
    with pytest.raises(
        ValueError, match=r"`--quant_bits` must be items PATTERN=BITS, with BITS from 2 to 8; got"
    ) as no:
        QuantizationArguments(quant_scheme="int8", quant_bits=["embeddings=4", item])
    assert repr(item) in str(no.value)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`--quant_bits \(` is not a regular expression"):
        QuantizationArguments(quant_scheme="int8", quant_bits=["(=4"])


def test_a_pattern_that_matches_nothing_is_refused(
    tiny_bert: BertForSequenceClassification,
) -> None:
    with pytest.raises(ValueError, match=r"`--quant_bits qeury=4` matches none of the 16 layers .*word_embeddings"):
        quantize_layers(tiny_bert, SCHEMES["int8"], bits=["qeury=4"])


def test_bits_of_groups_cannot_be_chosen(tiny_bert: BertForSequenceClassification) -> None:
    assert bits_of(tiny_bert, "embeddings=3", scheme="int4-weight")["bert.embeddings.word_embeddings"] == 3
    with pytest.raises(ValueError, match=r"`--quant_bits query=3` matches .* share scales by groups of 64"):
        bits_of(tiny_bert, "query=3", scheme="int4-weight")


@given(st.lists(st.sampled_from([3, 4, 8]), min_size=16, max_size=16))
def test_items_give_the_bits_that_they_were_made_of(numbers: list[int]) -> None:
    names = [f"{place}.{block}.in" for block in (0, 1, 10, 11) for place in ("h", "h.1", "a.b", "a.bb")]
    bits, usual = dict(zip(names, numbers, strict=True)), dict.fromkeys(names, 8)
    targets = [Target(name, torch.nn.Linear(1, 1), "linear") for name in names]
    got = weight_grids(targets, SCHEMES["int8"], items_of(bits, usual))
    assert {target.name: grid.bits for target, grid in got} == bits


def test_a_file_of_several_bits_gives_the_logits_of_training(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    recipe = Recipe(
        pruning=PruningArguments(prune_sparsity=0.3, prune_every=1),
        quantization=QuantizationArguments(quant_scheme="int8", quant_bits=MIXED),
    )
    settings = TrainingArguments(
        str(tmp_path), max_steps=10, learning_rate=1e-3, save_strategy="no", report_to="none", disable_tqdm=True
    )
    model = make_bert()
    Trainer(model, settings, train_dataset=tiny_dataset, callbacks=recipe.callbacks()).train()
    folder = save_compressed(model, tmp_path / "small", recipe)
    expected = bits_of(make_bert(), *MIXED)
    assert {name: layer.weight_grid.bits for name, layer in compressed_layers(model).items()} == expected
    assert {
        fact.name.removesuffix(".weight"): fact.grid_bits for fact in tensors(folder) if fact.grid_bits
    } == expected
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
    for run in ("dense", "int8"):
        loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, quantization_config=CompressionConfig(run=run)
        )
        with torch.no_grad():
            got = loaded.eval()(input_ids=ids).logits
        # A last bit sometimes decides which of two integers a value halfway between them rounds to.
        torch.testing.assert_close(got, logits, atol=0.02 * (run == "int8"), rtol=0)
        loaded.save_pretrained(tmp_path / run)
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / run / file).read_bytes() == (folder / file).read_bytes()


def test_fewer_bits_are_fewer_bytes(make_bert: MakeBert, tmp_path: Path) -> None:
    sizes = [
        (quantized(make_bert(vocab_size=500), tmp_path / str(bits), "int8-weight", f".={bits}") / "model.safetensors")
        .stat()
        .st_size
        for bits in range(2, 9)
    ]
    assert sizes == sorted(sizes) and len(set(sizes)) == 7


def test_a_model_that_was_trained_with_other_bits_is_not_saved(
    tiny_bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    quantized(tiny_bert, tmp_path / "first", "int8", "query=4")
    other = Recipe(quantization=QuantizationArguments(quant_scheme="int8", quant_bits=["query=5"]))
    with pytest.raises(ValueError, match=r"asks for `--quant_scheme int8 --quant_bits query=5`, but 2 layers"):
        save_compressed(tiny_bert, tmp_path / "second", other)


@pytest.mark.parametrize(
    "bits", [{"bert.pooler.dense": 9}, {"elsewhere": 4}, ["bert.pooler.dense"], {"bert.pooler.dense": "4"}]
)
def test_bits_in_a_file_that_mean_nothing_are_refused(bits: object) -> None:
    with pytest.raises(
        ValueError, match=r"`quantization_config.bits` must map names in `quantized` to numbers from 2"
    ):
        CompressionConfig(asdict(SCHEMES["int8"].grids), ["bert.pooler.dense"], bits=bits)  # type: ignore[arg-type]


def test_bits_are_under_the_seal(tiny_bert: BertForSequenceClassification, tmp_path: Path) -> None:
    folder = quantized(tiny_bert, tmp_path / "small", "int8", "query=4")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('self.query": 4', 'self.query": 5', 1))
    with pytest.raises(ValueError, match="was not saved together with the other tensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_resumed_run_goes_on_with_its_bits_and_refuses_others(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    def trainer(*items: str) -> Trainer:
        settings = TrainingArguments(
            str(tmp_path), max_steps=8, learning_rate=1e-3, save_steps=4, report_to="none", disable_tqdm=True
        )
        recipe = Recipe(quantization=QuantizationArguments(quant_scheme="int8", quant_bits=list(items)))
        return Trainer(make_bert(), settings, train_dataset=tiny_dataset, callbacks=recipe.callbacks())

    whole, half = trainer(*MIXED), str(tmp_path / "checkpoint-4")
    whole.train()
    resumed = trainer(*MIXED)
    resumed.train(resume_from_checkpoint=half)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    with pytest.raises(ValueError, match=r"`--quant_bits` is query=4, but was .=6 word_embeddings=4"):
        trainer("query=4").train(resume_from_checkpoint=half)
