"""Layers that are dropped in training: chosen alike everywhere, gone from the file, the same after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification

from hf_compress import (
    DistillationArguments,
    LayerDroppingCallback,
    PruningArguments,
    QuantizationArguments,
    Recipe,
    save_compressed,
)
from hf_compress.cut.depth import Depth
from hf_compress.models.skipping import skipped_layers
from hf_compress.models.targets import transformer, unadapted
from tests.invariants.harness import KD, adapted, in_two_processes, logged, make, rows, same
from tests.tiny import NO_DROPOUT, bert

pytestmark = pytest.mark.filterwarnings("ignore:.*corrects the weights")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
INT8 = {"quant_scheme": "int8", "quant_begin": 0.3}
# Dropped layers beside every method that they go with: options of pruning, of quantization, and an adapter.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "alone": ({}, {}, False),
    "all": ({"prune_sparsity": 0.6}, INT8, False),
    "groups": ({"prune_sparsity": 0.5, "prune_pattern": "neurons+heads", "prune_criterion": "adam"}, {}, False),
    "uniform": ({"prune_sparsity": 0.5, "prune_pattern": "neurons", "prune_uniform": True}, {}, False),
    "corrected": ({"prune_sparsity": 0.5, "prune_criterion": "sparsegpt"}, {}, False),
    "remembered": ({"prune_sparsity": 0.5, "prune_criterion": "platon"}, {}, False),
    "attention": ({}, INT8 | {"quant_scheme": "int8-attention"}, False),
    "groups of inputs": ({}, INT8 | {"quant_scheme": "int4-weight", "quant_exclude": ["attention"]}, False),
    "lora": ({"prune_sparsity": 0.6}, INT8, True),
}

# Those that say what others say, too.
DEAR = ("uniform", "corrected", "remembered", "attention", "groups of inputs")


def recipe(pruning: dict[str, Any], quantization: dict[str, Any]) -> Recipe:
    options = PruningArguments(prune_layers=2, prune_every=2, **pruning)
    return Recipe(pruning=options, quantization=QuantizationArguments(**quantization))


def run(
    folder: Path, case: str, seed: int = 0, dtype: Any = torch.float32, resumes: int | None = None, **settings: Any
) -> Any:
    """Return the trainer of a case after training; resumed from the checkpoint of step `resumes` if given."""
    pruning, quantization, lora = CASES[case]
    model = bert(seed, **SMALL | NO_DROPOUT).to(dtype)
    trainer = make(
        folder,
        (KD,),
        model=adapted(model) if lora else model,
        teacher=bert(1, **SMALL | NO_DROPOUT).to(dtype),
        plan=recipe(pruning, quantization),
        **{"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 5} | settings,
    )
    trainer.train(resume_from_checkpoint=None if resumes is None else str(folder / f"checkpoint-{resumes}"))
    return trainer


def gone(trainer: Any) -> list[int]:
    return skipped_layers(unadapted(transformer(trainer.model)))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    batch = rows(8)
    inputs = {name: torch.stack([row[name] for row in batch]) for name in ("input_ids", "attention_mask")}
    return model.eval()(**inputs).logits


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name in DEAR else ()) for name in CASES]
)
def test_dropped_layers_leave_the_file_and_runs_resume(case: str, tmp_path: Path) -> None:
    """Resumed between the two drops: the same layers, the same bits; and the file holds the other layers only."""
    pruning, quantization, lora = CASES[case]
    whole = run(tmp_path / "run", case)
    left = [layers for (layers,) in logged(whole, "layers")]
    assert left == [3] * 6 + [2] * 6 and len(gone(whole)) == 2
    resumed = run(tmp_path / "run", case, seed=0 if lora else 2, resumes=5)  # An adapter's checkpoint has no base.
    assert gone(resumed) == gone(whole)
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    folder = save_compressed(whole.model, tmp_path / "compressed", recipe(pruning, quantization))
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert Depth.of(reloaded.config) == Depth(4, gone(whole)) and len(reloaded.bert.encoder.layer) == 2
    assert reloaded.config.num_hidden_layers == 2 and reloaded.config.uncut_layers == {"num_hidden_layers": 4}
    assert whole.model.config.num_hidden_layers == 4 and len(gone(whole)) == 2, "saving changes nothing"
    if lora or case == "groups":  # What is merged or smaller is summed in another order.
        assert torch.allclose(logits(reloaded), logits(whole.model), atol=1e-6)
    else:
        assert torch.equal(logits(reloaded), logits(whole.model))


def test_beside_an_adapter_the_teacher_keeps_its_layers(tmp_path: Path) -> None:
    """With `self` the teacher is the base model, whose layers are those of the student."""
    base = bert(**SMALL | NO_DROPOUT)
    before = logits(base)
    student, options = adapted(base), DistillationArguments("self")
    plan = Recipe(options, PruningArguments(prune_layers=2, prune_every=2))
    trainer = make(tmp_path, model=student, plan=plan, build={"distillation": options})
    assert trainer.teacher is base
    trainer.train()
    assert len(gone(trainer)) == 2
    with student.disable_adapter():
        assert torch.equal(logits(base), before)


def test_accumulated_batches_drop_the_layers_of_one(tmp_path: Path) -> None:
    # In float32, another order of summation would change scores that are nearly equal.
    settings = {"dtype": torch.float64, "max_steps": 6, "save_strategy": "no"}
    once = run(tmp_path, "all", per_device_train_batch_size=16, **settings)
    fourfold = run(tmp_path, "all", per_device_train_batch_size=4, gradient_accumulation_steps=4, **settings)
    assert gone(once) == gone(fourfold) and len(gone(once)) == 2
    for one, four in zip(logged(once, "loss", "layers"), logged(fourfold, "loss", "layers"), strict=True):
        assert four == pytest.approx(one, rel=1e-5)


def work(folder: Path) -> None:
    """Train in one of two processes, on half the rows of a step each."""
    trainer = run(folder / "two", "all", dtype=torch.float64)
    found = {"gone": gone(trainer), "losses": logged(trainer, "loss"), "weights": dict(trainer.model.state_dict())}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    said = "nothing"
    try:
        run(folder / "waits", "alone", ddp_find_unused_parameters=False)
    except ValueError as error:
        said = str(error)
    (folder / f"said-{torch.distributed.get_rank()}").write_text(said)
    sharded = bert(**SMALL)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    callback = LayerDroppingCallback(PruningArguments(prune_layers=1))
    with pytest.raises(ValueError, match="FSDP2 shards the weights. Train under DDP"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=sharded, train_dataloader=[])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_drop_the_layers_of_one(tmp_path: Path) -> None:
    assert in_two_processes(work, tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same(first, second)
    one = run(tmp_path / "one", "all", dtype=torch.float64, per_device_train_batch_size=16)
    assert first["gone"] == gone(one)
    for (ours,), (theirs,) in zip(first["losses"], logged(one, "loss"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for rank in range(2):
        assert "`--ddp_find_unused_parameters true`" in (tmp_path / f"said-{rank}").read_text()
