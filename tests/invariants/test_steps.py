"""Fixed steps hold under what Trainer does: resuming, accumulation, processes, shards, adapters, further training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_compress import PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.goals import BudgetArguments
from hf_compress.layers.turning import compressed_layers
from tests.invariants.harness import adapted, in_two_processes, logged, make, rows, same, trained
from tests.tiny import NO_DROPOUT, bert

PLAN = Recipe(quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.5), budget=BudgetArguments(0.025))
PRUNED = Recipe(
    pruning=PruningArguments(prune_sparsity=0.6, prune_every=2),
    quantization=PLAN.quantization,
    budget=PLAN.budget,
)
CHOSEN = 6  # Of 12 steps.


def state(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def steps(model: Any) -> dict[str, Any]:
    return {name: layer.step for name, layer in compressed_layers(model).items()}


def agree(model: PreTrainedModel, folder: Path, plan: Recipe) -> PreTrainedModel:
    """Save and load the model, and check that the logits have the same bits."""
    reloaded = AutoModelForSequenceClassification.from_pretrained(save_compressed(model, folder, plan)).eval()
    inputs = {name: torch.stack([row[name] for row in rows(8)]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, reloaded(**inputs).logits)
    return reloaded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run with checkpoints before, at and after the step at which steps are chosen."""
    folder = tmp_path_factory.mktemp("whole")
    run = trained(folder, plan=PRUNED, save_strategy="steps", save_steps=3)
    agree(run.model, folder / "compressed", PRUNED)
    return folder, state(run.model)


@pytest.mark.parametrize("step", [3, CHOSEN, 9, 12])
def test_a_resumed_run_has_the_same_steps_and_weights(step: int, whole: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = whole
    run = make(folder, plan=PRUNED, model=bert(seed=2), save_strategy="no")
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert same(state(run.model), expected)


def test_a_longer_resumed_run_keeps_the_steps(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = whole
    run = make(folder, plan=PRUNED, model=bert(seed=2), max_steps=20)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-9"))
    found = {name: value for name, value in state(run.model).items() if name.endswith("weight_step")}
    assert found and same(found, {name: expected[name] for name in found})


def test_a_run_resumed_past_its_begin_chooses_steps_there(whole: tuple[Path, dict[str, Any]]) -> None:
    """A shorter run begins to round earlier: the checkpoint is past that step and has no steps yet."""
    folder, _ = whole
    run = make(folder, plan=PRUNED, model=bert(seed=2), max_steps=5)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert all(bool(step.all()) and bool(step.isfinite().all()) for step in steps(run.model).values())


def test_accumulated_batches_give_the_same_steps(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", plan=PLAN, model=bert(**NO_DROPOUT), max_steps=CHOSEN + 1, weight_decay=0.0)
    two = trained(
        tmp_path / "two",
        plan=PLAN,
        model=bert(**NO_DROPOUT),
        max_steps=CHOSEN + 1,
        weight_decay=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    for name, step in steps(one.model).items():
        assert torch.allclose(step, steps(two.model)[name], rtol=0.1)


def test_beside_an_adapter_the_steps_are_in_its_checkpoint(tmp_path: Path) -> None:
    run = trained(tmp_path, plan=PLAN, model=adapted(bert(**NO_DROPOUT)), save_strategy="steps", save_steps=9)
    resumed = make(tmp_path, plan=PLAN, model=adapted(bert(**NO_DROPOUT)), save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert same(steps(resumed.model), steps(run.model))
    assert same(state(resumed.model), state(run.model))
    reloaded = AutoModelForSequenceClassification.from_pretrained(
        save_compressed(run.model, tmp_path / "compressed", PLAN)
    )
    inputs = {name: torch.stack([row[name] for row in rows(8)]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(run.model.eval()(**inputs).logits, reloaded.eval()(**inputs).logits, atol=1e-5)


def test_the_best_model_is_one_with_steps(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    run = trained(tmp_path, plan=PLAN, eval_steps=2, save_steps=2, **best)
    assert int(run.state.best_model_checkpoint.rpartition("-")[2]) > CHOSEN
    agree(run.model, tmp_path / "compressed", PLAN)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run with steps."""
    folder = tmp_path_factory.mktemp("first")
    agree(trained(folder / "run", plan=PLAN).model, folder / "file", PLAN)
    return folder / "file"


@pytest.mark.parametrize(
    "plan",
    [
        Recipe(),
        Recipe(quantization=PLAN.quantization),
        Recipe(quantization=PLAN.quantization, budget=BudgetArguments(0.02)),
    ],
    ids=["without a recipe", "int8", "another budget"],
)
def test_further_training_keeps_steps_or_chooses_new_ones(plan: Recipe, first: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(first).eval()
    before = {name: step.clone() for name, step in steps(model).items()}
    again = trained(tmp_path / "second", plan=plan, model=model)
    after = {name: steps(again.model)[name] for name in before}
    assert same(after, before) != plan.budget.enabled
    if plan.quantization.enabled:
        agree(again.model, tmp_path / "again", plan)


def together(folder: Path, sharded: bool) -> None:
    more: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}} if sharded else {}
    run = trained(folder, plan=PLAN, model=bert(**NO_DROPOUT), per_device_train_batch_size=4, **more)
    save_compressed(run.model, folder / "compressed", PLAN)
    rank = int(torch.distributed.get_rank())
    torch.save((logged(run, "loss"), steps(run.model)), folder / f"{rank}.pt")
    if not sharded:
        torch.save(state(run.model), folder / f"weights-{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_choose_the_steps_of_one(sharded: bool, tmp_path: Path) -> None:
    one = trained(tmp_path / "one", plan=PLAN, model=bert(**NO_DROPOUT))
    two = tmp_path / "two"
    two.mkdir()
    assert in_two_processes(together, two, sharded) == [0, 0]
    (losses, first), (_, second) = (torch.load(two / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert same(first, second)
    assert torch.allclose(torch.tensor(losses), torch.tensor(logged(one, "loss")), atol=2e-3)
    for name, step in steps(one.model).items():
        assert torch.allclose(step, first[name], rtol=0.1), name
    if not sharded:
        weights = [torch.load(two / f"weights-{rank}.pt") for rank in range(2)]
        assert same(weights[0], weights[1])
    assert (two / "compressed" / "model.safetensors").stat().st_size <= PLAN.budget.bytes
