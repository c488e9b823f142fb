"""TRL's trainers: what compresses with them, and a small decoder that writes the same text after it is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Trainer,
    set_seed,
)

from hf_compress import (
    BudgetArguments,
    DistillationArguments,
    PruningArguments,
    QuantizationArguments,
    Recipe,
    compress,
    finish,
    save_compressed,
)
from hf_compress.launch import launcher
from hf_compress.report.report import Report
from tests.tiny import VOCABULARY

trl = pytest.importorskip("trl")
# TRL 1.16 sets it.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}
DECODERS = {"llama": LlamaConfig(**SIZES), "qwen3": Qwen3Config(**SIZES, head_dim=8)}
SETTINGS: dict[str, Any] = {
    "max_steps": 8,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
}
SELF = DistillationArguments(distill_teacher="self")
LAYERS = DistillationArguments(distill_teacher="self", distill_layer_loss=["hidden=1", "attention=1", "relations=1"])
PRUNED, INT8 = PruningArguments(prune_sparsity=0.6, prune_every=1), QuantizationArguments("int8", quant_begin=0.3)
# The whole of the methods, and each of the others alone.
RECIPES: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "all": (Recipe(LAYERS, PRUNED, INT8), {}),
    "packed": (Recipe(SELF, quantization=INT8), {"packing": True, "max_length": 16}),
    "dft": (Recipe(pruning=PRUNED, quantization=INT8), {"loss_type": "dft"}),
    "attention": (Recipe(quantization=QuantizationArguments("int8-attention", quant_begin=0.3)), {}),
    "budget": (Recipe(budget=BudgetArguments(compress_budget_mb=0.012)), {}),
    "layers": (Recipe(pruning=PruningArguments(prune_layers=1)), {}),
    "sparsegpt": (
        Recipe(pruning=PruningArguments(prune_sparsity=0.6, prune_every=4, prune_criterion="sparsegpt")),
        {},
    ),
}
CASES = [("qwen3", "all"), *(pytest.param("llama", name, marks=pytest.mark.slow) for name in RECIPES)]


def decoder(name: str = "qwen3") -> PreTrainedModel:
    set_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(DECODERS[name])
    return model.eval()


@pytest.fixture
def texts(tiny_sentences: Dataset) -> Dataset:
    return tiny_sentences.rename_column("sentence", "text").remove_columns("label").select(range(32))


def supervised(
    folder: Path, texts: Dataset, tokenizer: PreTrainedTokenizerFast, name: str = "qwen3", **settings: Any
) -> Trainer:
    build = {key: settings.pop(key) for key in ("peft_config",) if key in settings}
    trainer: Trainer = trl.SFTTrainer(
        model=decoder(name),
        args=trl.SFTConfig(str(folder), eos_token="[SEP]", **SETTINGS | settings),
        train_dataset=texts,
        eval_dataset=texts.select(range(8)),
        processing_class=tokenizer,
        **build,
    )
    return trainer


def written(model: PreTrainedModel) -> Tensor:
    """Return the tokens that `model` writes after two beginnings."""
    ids = torch.tensor([[5, 7, 10], [6, 9, 13]])
    return model.eval().generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )


@pytest.mark.parametrize(("name", "methods"), CASES)
def test_a_decoder_writes_the_same_after_it_is_loaded(
    name: str, methods: str, texts: Dataset, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    recipe, settings = RECIPES[methods]
    trainer = compress(supervised(tmp_path / "out", texts, tiny_tokenizer, name, **settings), recipe)
    before = written(trainer.model)
    trainer.train()
    report = finish(trainer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "compressed")
    ours = written(trainer.model)
    assert torch.equal(ours, written(loaded)) and not torch.equal(ours, before)
    assert report is not None and report.compressed.keys() >= {"loss", "mean_token_accuracy"}


@pytest.mark.slow
def test_structure_goes_from_a_decoder(texts: Dataset, tiny_tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_every=1, prune_pattern="neurons+heads"))
    trainer = compress(supervised(tmp_path / "out", texts, tiny_tokenizer), recipe)
    trainer.train()
    loaded = AutoModelForCausalLM.from_pretrained(save_compressed(trainer.model, tmp_path / "compressed", recipe))
    assert loaded.model.layers[0].mlp.down_proj.in_features == 24
    assert loaded.model.layers[0].self_attn.k_proj.out_features == 8
    assert torch.equal(written(trainer.model), written(loaded))


@pytest.mark.slow
def test_a_run_of_trl_resumes_to_the_bit(texts: Dataset, tiny_tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(SELF, PRUNED, INT8)
    whole = compress(supervised(tmp_path / "one", texts, tiny_tokenizer, save_strategy="steps", save_steps=4), recipe)
    whole.train()
    resumed = compress(supervised(tmp_path / "two", texts, tiny_tokenizer), recipe)
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-4"))
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_a_script_of_trl_goes_through_the_launcher(tiny_tokenizer: Any, tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path / "start")
    tiny_tokenizer.save_pretrained(tmp_path / "start")
    script = [str(ROOT / "tests/launched/train_chat.py"), str(tmp_path / "start"), str(tmp_path / "out")]
    flags = "--distill_teacher self --prune_sparsity 0.5 --prune_every 1 --quant_scheme int8"
    assert launcher.main([*script, *flags.split()]) == 0
    report = Report.load(tmp_path / "out" / "compressed")
    assert report.compressed["mean_token_accuracy"] > 0.1 and {*report.sparsity.values()} == {0.5}
    assert written(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "compressed")).shape == (2, 15)


def test_a_student_is_cut_before_trl_replaces_its_forward(texts: Dataset, tiny_tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(DistillationArguments(distill_teacher="self", distill_student_layers="1"))
    with pytest.raises(ValueError, match=r"whose `forward` was replaced.*`hf_compress.student_from` before"):
        compress(supervised(tmp_path, texts, tiny_tokenizer), recipe)


def rewarding(folder: Path, texts: Dataset, tokenizer: Any) -> Trainer:
    """A trainer of rewards, whose rows are two answers without labels."""
    set_seed(0)
    config = Qwen3Config(**SIZES, head_dim=8, num_labels=1)
    answers = Dataset.from_dict({"chosen": texts["text"][:], "rejected": texts["text"][::-1]})
    trainer: Trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_config(config),
        args=trl.RewardConfig(str(folder), eos_token="[SEP]", **SETTINGS),
        train_dataset=answers,
        processing_class=tokenizer,
    )
    return trainer


def test_a_teacher_needs_the_labels_of_sft(texts: Dataset, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TRL's RewardTrainer has none.*`SFTTrainer`.*TRL's `GKDTrainer`"):
        compress(rewarding(tmp_path, texts, tiny_tokenizer), Recipe(SELF))


@pytest.mark.slow
def test_other_trainers_of_trl_prune_and_quantize(texts: Dataset, tiny_tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(pruning=PRUNED, quantization=INT8)
    trainer = compress(rewarding(tmp_path / "out", texts, tiny_tokenizer), recipe)
    trainer.train()
    folder = save_compressed(trainer.model, tmp_path / "compressed", recipe)
    loaded, ids = AutoModelForSequenceClassification.from_pretrained(folder), torch.tensor([[5, 7, 10, 3]])
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(ids).logits, loaded(ids).logits)
