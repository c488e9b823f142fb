"""Other precisions and optimizers train: zeros stay zero, and the file has the trained logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from hf_compress import save_compressed
from hf_compress.models.heads import find_head
from hf_compress.models.targets import prunable
from hf_compress.report.evaluation import logit_difference
from tests.invariants.harness import KD, METHODS, PRUNE, QUANT, logged, recipe, same, trained
from tests.tiny import NO_DROPOUT, bert

LEARNABLE = {"max_steps": 40, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def forgotten_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the compiler that TrainingArguments leaves in the environment for all later Trainers."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    torch.compiler.reset()


class Zeros(TrainerCallback):
    """Checks after every step that zeros stay zero."""

    def __init__(self) -> None:
        self.before: list[torch.Tensor] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        now = [target.weight.detach() == 0 for target in prunable(model)]
        for one, other in zip(self.before, now, strict=False):
            assert bool((other | ~one).all()), "a pruned weight has come back"
        self.before = now


def parity(run: Trainer, folder: Path, methods: Sequence[str] = METHODS) -> float:
    """Return the largest difference of a logit between the trained model and the reloaded compressed one."""
    save_compressed(run.model, folder, recipe(methods))
    reloaded = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation=run.model.config._attn_implementation
    ).to(run.args.device)
    difference, rows = logit_difference(run, reloaded, find_head(reloaded))
    assert rows == 16
    return difference


SETTINGS: dict[str, Any] = {
    "float32": {},
    "bf16 autocast": {"bf16": True},
    "gradient checkpointing": {"activation_checkpointing": True},
    "bf16 autocast and gradient checkpointing": {"bf16": True, "activation_checkpointing": True},
}
SOME = {name: [pytest.mark.slow] if len(value) == 1 else [] for name, value in SETTINGS.items()}
ON_GPU: dict[str, Any] = {
    "cuda": {},
    "cuda bf16": {"bf16": True},
    "cuda fp16": {"fp16": True},
    "cuda fused": {"optim": "adamw_torch_fused", "fp16": True},
}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(value | {"use_cpu": True}, id=name, marks=SOME[name]) for name, value in SETTINGS.items()]
    + [pytest.param(value | {"use_cpu": False}, id=name, marks=pytest.mark.gpu) for name, value in ON_GPU.items()],
)
def test_all_methods_train_and_the_file_has_the_trained_logits(settings: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, METHODS, model=bert(**NO_DROPOUT), callbacks=[Zeros()], **LEARNABLE | settings)
    losses = [loss for (loss,) in logged(run, "label_loss")]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert parity(run, tmp_path / "compressed") == 0


def test_checkpointed_gradients_are_those_of_a_plain_run(tmp_path: Path) -> None:
    """Ranges see every activation twice, which changes no extreme."""
    runs = [trained(tmp_path, METHODS, **more) for more in ({}, {"activation_checkpointing": True})]
    assert same(dict(runs[0].model.state_dict()), dict(runs[1].model.state_dict()))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_teacher_teaches_the_same(in_place: bool, tmp_path: Path) -> None:
    teacher: Any = bert(seed=1, num_hidden_layers=1)
    plain = trained(tmp_path, (KD,), teacher=teacher)
    if in_place:
        teacher.compile(backend="eager")
    else:
        teacher = torch.compile(teacher, backend="eager")
    compiled = trained(tmp_path, (KD,), teacher=teacher)
    assert logged(plain, "distill_loss") == logged(compiled, "distill_loss")
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


OPTIMIZERS = {
    "adamw_torch": {},
    "adamw_torch_fused": {},
    "sgd": {"optim_args": "momentum=0.9,nesterov=True", "learning_rate": 0.05},
    "adagrad": {"learning_rate": 0.05},
    "rmsprop": {"optim_args": "momentum=0.9,centered=True"},
    "adafactor": {},
}


# Rounding moves no weight: beside it, the usual optimizer and the one with the largest steps.
@pytest.mark.parametrize(
    ("optim", "methods"),
    [*((optim, (PRUNE,)) for optim in OPTIMIZERS), ("adamw_torch", (PRUNE, QUANT)), ("adafactor", (PRUNE, QUANT))],
)
def test_zeros_stay_zero_under_any_optimizer(optim: str, methods: Any, tmp_path: Path) -> None:
    """Adafactor moves a weight in one step by more than the smallest kept weight."""
    run = trained(tmp_path, methods, callbacks=[Zeros()], optim=optim, **OPTIMIZERS[optim])
    for target in prunable(run.model):
        assert int((target.weight == 0).sum()) == round(0.6 * target.weight.numel())


# Optimizers with low-bit moments that run on a CPU, by package (extra `optimizers`).
LOW_BITS = {
    "adamw_torch_8bit": "torchao",
    "adamw_torch_4bit": "torchao",
    "adamw_bnb_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "lion_8bit": "bitsandbytes",
    "ademamix_8bit": "bitsandbytes",
    "rmsprop_bnb_8bit": "bitsandbytes",
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("optim", LOW_BITS)
def test_zeros_stay_zero_under_optimizers_of_few_bits(optim: str, device: str, tmp_path: Path) -> None:
    """Weights of fewer than 4096 numbers have 32-bit moments, so the model is larger."""
    pytest.importorskip(LOW_BITS[optim])
    wide = bert(hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its steps, which takes minutes.
        run = trained(
            tmp_path, (PRUNE,), model=wide, callbacks=[Zeros()], max_steps=10, optim=optim, use_cpu=device == "cpu"
        )
    for target in prunable(run.model):
        assert int((target.weight == 0).sum()) == round(0.6 * target.weight.numel())
        state = run.optimizer.optimizer.state[target.weight]
        few = [
            getattr(moment, "dtype", None) == torch.uint8 or "OptimState" in repr(type(moment))
            for moment in state.values()
        ]
        assert any(few)


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"])
def test_only_pruning_refuses_an_optimizer_that_averages_weights(optim: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`--prune_sparsity` cannot train with \w+ScheduleFree"):
        trained(tmp_path, (PRUNE,), optim=optim, lr_scheduler_type="constant")
    run = trained(tmp_path / "int8", (QUANT,), optim=optim, lr_scheduler_type="constant")
    assert parity(run, tmp_path / "compressed", (QUANT,)) == 0
