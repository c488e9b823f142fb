"""Point 6: under other precisions, checkpointing, compilers and optimizers it trains, zeros stay and parity holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from hf_compress import save_compressed
from hf_compress.evaluation import logit_difference
from hf_compress.heads import find_head
from hf_compress.targets import prunable
from tests.invariants.harness import KD, METHODS, PRUNE, QUANT, STILL, bert, logged, recipe, same, trained

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LEARNABLE = {"max_steps": 60, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def forgotten_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """TrainingArguments leaves its choice of a compiler in the environment, for all Trainers to come."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    torch.compiler.reset()


class Zeros(TrainerCallback):
    """Checks after every step that what was zero still is."""

    def __init__(self) -> None:
        self.before: list[torch.Tensor] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        now = [target.weight.detach() == 0 for target in prunable(model)]
        for one, other in zip(self.before, now, strict=False):
            assert bool((other | ~one).all()), "a pruned weight has come back"
        self.before = now


def parity(run: Trainer, folder: Path) -> float:
    """The largest difference of a logit between the trained model and the compressed one that is loaded again."""
    save_compressed(run.model, folder, recipe(METHODS))
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
ON_GPU: dict[str, Any] = {
    "cuda": {},
    "cuda bf16": {"bf16": True},
    "cuda fp16": {"fp16": True},
    "cuda fused": {"optim": "adamw_torch_fused", "fp16": True},
}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(value | {"use_cpu": True}, id=name) for name, value in SETTINGS.items()]
    + [pytest.param(value | {"use_cpu": False}, id=name, marks=GPU) for name, value in ON_GPU.items()],
)
def test_all_methods_train_and_the_file_has_the_trained_logits(settings: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, METHODS, model=bert(**STILL), callbacks=[Zeros()], **LEARNABLE | settings)
    losses = [loss for (loss,) in logged(run, "label_loss")]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert parity(run, tmp_path / "compressed") == 0


def test_checkpointed_gradients_are_those_of_a_plain_run(tmp_path: Path) -> None:
    """The ranges see every activation twice, which changes no extreme."""
    runs = [trained(tmp_path, METHODS, **more) for more in ({}, {"activation_checkpointing": True})]
    assert same(dict(runs[0].model.state_dict()), dict(runs[1].model.state_dict()))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_teacher_teaches_the_same(in_place: bool, tmp_path: Path) -> None:
    teacher: Any = bert(seed=1)
    if in_place:
        teacher.compile(backend="eager")
    else:
        teacher = torch.compile(teacher, backend="eager")
    plain, compiled = trained(tmp_path, (KD,)), trained(tmp_path, (KD,), teacher=teacher)
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


@pytest.mark.parametrize("methods", [(PRUNE,), (PRUNE, QUANT)], ids="+".join)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_zeros_stay_zero_under_any_optimizer(optim: str, methods: Any, tmp_path: Path) -> None:
    """Adafactor moves a weight in one step further than the smallest of those that are kept."""
    run = trained(tmp_path, methods, callbacks=[Zeros()], max_steps=20, optim=optim, **OPTIMIZERS[optim])
    for target in prunable(run.model):
        assert int((target.weight == 0).sum()) == round(0.6 * target.weight.numel())


@GPU
def test_zeros_stay_zero_under_8_bit_adam(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = trained(tmp_path, (PRUNE,), callbacks=[Zeros()], max_steps=20, optim="adamw_bnb_8bit", use_cpu=False)
    for target in prunable(run.model):
        assert int((target.weight == 0).sum()) == round(0.6 * target.weight.numel())
