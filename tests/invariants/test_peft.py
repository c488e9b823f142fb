"""Compression beside a LoRA adapter: the merged weight is what counts, at every step and in the file."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification, TrainingArguments

from hf_compress import (
    DistillationArguments,
    DistillationTrainer,
    PruningArguments,
    QuantizationArguments,
    Recipe,
    compress,
    save_compressed,
)
from hf_compress.distill.teacher import load_teacher, own_teacher
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.lora import current_weight, merge_in_forward
from hf_compress.layers.turning import quantize_layers
from hf_compress.models.heads import bare, find_head
from hf_compress.models.targets import prunable, quantizable

# PEFT asks every model for it.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

STEPS = 8
QUERY = "bert.encoder.layer.0.attention.self.query"  # adapted
KEY = "bert.encoder.layer.0.attention.self.key"  # frozen
PRUNING = PruningArguments(prune_sparsity=0.5, prune_every=2, prune_end=0.5)
QUANTIZATION = QuantizationArguments(quant_scheme="int8")
RECIPES = {
    "pruned": Recipe(pruning=PRUNING),
    "quantized": Recipe(quantization=QUANTIZATION),
    "both": Recipe(pruning=PRUNING, quantization=QUANTIZATION),
    "global, half excluded": Recipe(
        pruning=PruningArguments(prune_sparsity=0.5, prune_every=2, prune_end=0.5, prune_scope="global"),
        quantization=QuantizationArguments(quant_scheme="int4-weight", quant_exclude=["query", "key"]),
    ),
}

MakeBert = Callable[..., BertForSequenceClassification]


def adapted(base: torch.nn.Module, **changes: object) -> PeftModel:
    """A PeftModel of `base` whose adapter sits on the queries and values, with the same numbers every time."""
    settings: dict[str, object] = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(base, LoraConfig(**settings | changes))


def make(model: torch.nn.Module, rows: Dataset, folder: Path, recipe: Recipe, **more: object) -> DistillationTrainer:
    arguments = more.pop("arguments", {})
    settings: dict[str, object] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DistillationTrainer(
        model=model,
        args=TrainingArguments(str(folder), **settings | arguments),
        train_dataset=rows,
        eval_dataset=rows.select(range(16)),
        callbacks=recipe.callbacks(),
        distillation=recipe.distillation,
        **more,
    )


def logits(model: torch.nn.Module, rows: Dataset) -> torch.Tensor:
    batch = {name: torch.tensor(rows[name][:16]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**batch).logits


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- what is compressed ----------------------------------------------------------------------------------------------


def test_targets_are_named_as_in_the_merged_model(make_bert: MakeBert) -> None:
    model = adapted(make_bert(), target_modules="all-linear")
    for select in (prunable, quantizable):
        for exclude in ([], ["query$", r"layer\.1\."]):
            names = [target.name for target in select(model, exclude)]
            assert names == [target.name for target in select(make_bert(), exclude)]


def test_one_merged_weight_acts_like_the_two_paths(make_bert: MakeBert, tiny_dataset: Dataset) -> None:
    plain = adapted(make_bert(), init_lora_weights=False)
    merged = copy.deepcopy(plain)
    quantize_layers(merged, SCHEMES["int8"])  # still switched off
    merge_in_forward(merged)
    for model in (plain, merged):
        batch = {name: torch.tensor(tiny_dataset[name][:8]) for name in ("input_ids", "labels")}
        model.train()(**batch).loss.backward()
    assert torch.allclose(logits(plain, tiny_dataset), logits(merged, tiny_dataset), atol=1e-5)
    wanted = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in merged.named_parameters() if weight.grad is not None}
    assert wanted.keys() == found.keys()
    assert len(wanted) == 2 * 2 * 2 + 2, "A and B of two layers in two blocks, and the head"
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, found[name], atol=1e-5), name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_file_has_the_merged_weights_and_trained_logits(
    recipe: Recipe, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    base = make_bert()
    model = adapted(make_bert())
    trainer = make(model, tiny_dataset, tmp_path, recipe)
    trainer.train()
    trained = logits(model, tiny_dataset)
    assert not torch.equal(trained, logits(base, tiny_dataset))
    assert state(bare(model))[f"{QUERY}.base_layer.weight"].equal(state(base)[f"{QUERY}.weight"])
    assert state(bare(model))[f"{KEY}.weight"].equal(state(base)[f"{KEY}.weight"]), "the base stays as it was"

    folder = save_compressed(model, tmp_path / "compressed", recipe)
    assert isinstance(model, PeftModel), "saving merges a copy"
    reloaded = BertForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(reloaded, tiny_dataset), trained)
    if recipe.pruning.enabled:
        weights = [target.weight for target in prunable(reloaded)]
        assert sum(int((weight == 0).sum()) for weight in weights) >= 0.5 * sum(weight.numel() for weight in weights)
        if recipe.pruning.prune_scope == "layer":
            assert all((weight == 0).float().mean() >= 0.5 for weight in weights)

    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, tiny_dataset), trained)
    assert type(merged) is BertForSequenceClassification
    if recipe.pruning.enabled:
        zeros = [int((target.weight == 0).sum()) for target in prunable(merged)]
        assert sum(zeros) >= 0.5 * sum(target.weight.numel() for target in prunable(merged))
    again = save_compressed(merged, tmp_path / "again", recipe)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_masks_follow_the_merged_weight_and_stay(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = adapted(make_bert(), init_lora_weights=False)
    seen: list[torch.Tensor] = []
    trainer = make(model, tiny_dataset, tmp_path, RECIPES["pruned"])
    layer = next(target.module for target in prunable(model) if target.name == QUERY)
    unmasked: list[torch.Tensor] = []
    pruning = next(callback for callback in trainer.callback_handler.callbacks if hasattr(callback, "_choose"))
    choose = pruning._choose

    def watched(step: int, **kwargs: Any) -> None:
        if layer.mask is None:
            unmasked.append(current_weight(layer).detach().clone())
        choose(step, **kwargs)
        if layer.mask is not None:
            seen.append(layer.mask.clone())

    pruning._choose = watched  # type: ignore[method-assign]
    trainer.train()
    first, weight = seen[0], unmasked[-1].abs()
    assert weight[~first].max() <= weight[first].min()
    assert all((earlier | ~later).all() for earlier, later in itertools.pairwise(seen))
    assert not torch.equal(first, seen[-1])


def test_the_adapter_switched_off_is_the_dense_base_model(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = adapted(make_bert())
    make(model, tiny_dataset, tmp_path, RECIPES["both"]).train()
    with model.disable_adapter():
        assert torch.equal(logits(model, tiny_dataset), logits(make_bert(), tiny_dataset))


def test_autocast_keeps_the_merged_weight_float32_and_exact(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = adapted(make_bert())
    model.enable_input_require_grads()
    make(
        model, tiny_dataset, tmp_path, RECIPES["both"], arguments={"bf16": True, "activation_checkpointing": True}
    ).train()
    reloaded = BertForSequenceClassification.from_pretrained(
        save_compressed(model, tmp_path / "compressed", RECIPES["both"])
    )
    # The Trainer leaves its autocast around the trained model's forward.
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(reloaded, tiny_dataset), logits(model, tiny_dataset))


def test_conv1d_layers_are_merged_and_compressed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=0)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = adapted(GPT2ForSequenceClassification(config), target_modules=["c_attn"], fan_in_fan_out=True)
    make(model, tiny_dataset, tmp_path, RECIPES["both"]).train()
    folder = save_compressed(model, tmp_path / "compressed", RECIPES["both"])
    reloaded = GPT2ForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(reloaded, tiny_dataset), logits(model, tiny_dataset))


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_resumed_from_adapters_alone_has_the_same_bits(
    recipe: Recipe, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = adapted(make_bert())
    make(whole, tiny_dataset, tmp_path, recipe, arguments=saving).train()
    files = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    resumed = adapted(make_bert())
    make(resumed, tiny_dataset, tmp_path, recipe, arguments=saving).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    assert_same(state(whole), state(resumed))
    assert torch.equal(logits(whole, tiny_dataset), logits(resumed, tiny_dataset))


def test_the_best_model_is_loaded_with_its_masks_and_ranges(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make(adapted(make_bert()), tiny_dataset, tmp_path, RECIPES["both"], arguments=arguments)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric


# -- the teacher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [Recipe(), RECIPES["both"]], ids=["alone", "both"])
def test_the_base_model_teaches_its_adapter_as_a_copy_would(
    recipe: Recipe, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    drops = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    own, other = adapted(make_bert(**drops)), adapted(make_bert(**drops))
    for model in (own, other):
        model.base_model.model.bert.encoder.layer[0].attention.self.query.lora_A.requires_grad_(False)
    frozen = {name for name, weight in own.named_parameters() if not weight.requires_grad}
    recipe = Recipe(DistillationArguments(distill_teacher="self"), recipe.pruning, recipe.quantization)
    shared = make(own, tiny_dataset, tmp_path, recipe)
    assert shared.teacher is bare(own)
    shared.train()

    copied = Recipe(pruning=recipe.pruning, quantization=recipe.quantization)
    make(other, tiny_dataset, tmp_path, copied, teacher=make_bert(**drops)).train()
    assert_same(state(own), state(other))
    assert {name for name, weight in own.named_parameters() if not weight.requires_grad} == frozen
    assert own.training
    with shared.teaching() as teacher:
        assert torch.equal(logits(teacher, tiny_dataset), logits(make_bert(), tiny_dataset))


def test_a_student_that_has_left_its_base_is_copied(make_bert: MakeBert) -> None:
    fresh, begun = adapted(make_bert()), adapted(make_bert(), init_lora_weights=False)
    assert own_teacher(fresh) == (bare(fresh), fresh)
    teacher, student = own_teacher(begun)
    assert student is None
    assert not {id(weight) for weight in teacher.parameters()} & {id(weight) for weight in begun.parameters()}
    bare(fresh).bert.embeddings.word_embeddings.requires_grad_(True)
    assert own_teacher(fresh)[1] is None, "the base model would change"
    headed = adapted(make_bert())
    torch.nn.init.zeros_(bare(headed).classifier.modules_to_save["default"].weight)
    assert own_teacher(headed)[1] is None, "its head is another"


def test_an_adapter_folder_teaches_with_the_head_that_it_brings(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    make_bert(num_labels=3).bert.save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    model = adapted(base, init_lora_weights=False)
    model.save_pretrained(tmp_path / "adapter")
    teacher = load_teacher(str(tmp_path / "adapter"), find_head(make_bert(num_labels=3)))
    assert type(teacher) is BertForSequenceClassification
    assert torch.allclose(logits(teacher, tiny_dataset), logits(model, tiny_dataset), atol=1e-6)


def test_an_adapter_folder_that_cannot_teach_is_refused(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    head = find_head(make_bert())
    make_bert().bert.save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    headless = get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))
    headless.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"no weights for classifier\.bias.*so its head would be random"):
        load_teacher(str(tmp_path / "headless"), head)
    base.config._name_or_path = base.name_or_path = str(tmp_path / "gone")
    adapted(base).save_pretrained(tmp_path / "orphan")
    with pytest.raises(ValueError, match="the base model .*gone of that adapter failed"):
        load_teacher(str(tmp_path / "orphan"), head)
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    trainer = make(adapted(base), tiny_dataset, tmp_path, RECIPES["both"])
    trainer.train()
    trainer.save_model(str(tmp_path / "course"))
    with pytest.raises(ValueError, match="a training checkpoint of a compression.*`save_compressed`"):
        load_teacher(str(tmp_path / "course"), head)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pruned", "quantized"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_dropout": 0.1},
            r"drops inputs.*layer\.0\.attention\.self\.query.*`lora_dropout=0.1`.*lora_dropout=0`",
        ),
        ({"use_dora": True}, "Dora.*plain LoRA"),
        ({"lora_bias": True}, "trains a bias.*`lora_bias=False`"),
        ({"target_modules": ["word_embeddings"]}, "Embedding at bert.embeddings.word_embeddings.*linear layers"),
        ({"modules_to_save": ["pooler", "classifier"]}, "a copy of bert.pooler.*Leave it out of `modules_to_save`"),
    ],
)
def test_adapters_that_do_not_amount_to_one_weight_are_refused(
    name: str, changes: dict[str, object], message: str, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make(adapted(make_bert(), **changes), tiny_dataset, tmp_path, RECIPES[name])


def test_other_methods_of_peft_and_several_adapters_are_refused(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_bert(), IA3Config(target_modules=["key"], feedforward_modules=[]))
    with pytest.raises(ValueError, match=r"peft\.tuners\.ia3.*Use LoRA"):
        make(model, tiny_dataset, tmp_path, RECIPES["pruned"])
    model = get_peft_model(make_bert(), LoraConfig(r=2, target_modules=["query"]))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["query"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="default, second active at once.*`set_adapter`"):
        make(model, tiny_dataset, tmp_path, RECIPES["pruned"])


@pytest.mark.parametrize("name", ["pruned", "quantized"])
def test_an_adapter_without_a_peft_model_is_refused(
    name: str, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = make_bert()
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    run = make(model, tiny_dataset, tmp_path, RECIPES[name])
    for begin in (run.train, lambda: compress(make(model, tiny_dataset, tmp_path, Recipe()), RECIPES[name])):
        with pytest.raises(ValueError, match=r"adapter of its own \(`add_adapter`\).*`peft\.get_peft_model"):
            begin()
    assert run.state.global_step == 0
