"""Layerwise losses are the same however the rows of a step are divided, and leave both models as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_compress import DistillationArguments, DistillationTrainer
from hf_compress.distill import LAYER_LOSSES
from hf_compress.models.sharding import gathered
from hf_compress.models.stacks import attention_dropout, layers_of
from tests.invariants import test_heads as heads
from tests.invariants import test_models as models
from tests.invariants.harness import (
    KD,
    METHODS,
    SETTINGS,
    adapted,
    fsdp,
    in_a_process,
    logged,
    make,
    persuade,
    rows,
    same,
)
from tests.tiny import NO_DROPOUT, bert

ALL = [f"{name}=0.5" for name in LAYER_LOSSES]
TERMS = [loss.term for loss in LAYER_LOSSES.values()]
# A teacher of another depth and width, so that there are projections.
WIDE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": fsdp(state_dict_type="SHARDED_STATE_DICT")}


def learn(
    folder: Path, *, methods: Any = (KD,), losses: Any = ALL, dtype: Any = torch.float64, **more: Any
) -> Trainer:
    """Train with layerwise losses, by default in float64 and on 54 rows: the last step of an epoch has 6 of 16."""
    options = DistillationArguments(distill_layer_loss=list(losses))
    build = {"distillation": options} | more.pop("build", {})
    given = {"model": bert(**NO_DROPOUT).to(dtype), "teacher": bert(seed=1, **NO_DROPOUT | WIDE).to(dtype)} | more
    resumes = given.pop("resumes", None)
    run = make(folder, methods, build=build, **{"data": rows(54), "max_steps": 8, "learning_rate": 1e-3} | given)
    run.train(resume_from_checkpoint=resumes)
    return run


def outcome(folder: Path, **settings: Any) -> dict[str, Any]:
    run = learn(folder, **settings)
    return {
        "sharded": isinstance(run.model, FSDPModule),
        "processes": run.accelerator.num_processes,
        "losses": logged(run, "loss", "grad_norm", "distill_loss", "label_loss", *TERMS),
        "weights": {name: gathered(weight).detach() for name, weight in run.model.named_parameters()},
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process leaves."""
    return outcome(tmp_path_factory.mktemp("one"), per_device_train_batch_size=16)


def test_layer_losses_of_accumulated_batches_are_those_of_one(one: dict[str, Any], tmp_path: Path) -> None:
    found = outcome(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for four, whole in zip(found["losses"], one["losses"], strict=True):
        assert four == pytest.approx(whole, rel=1e-6)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=1e-7)


def work(folder: Path) -> None:
    """Train in one of two processes, whole and sharded, and resume."""
    dist.init_process_group("gloo")
    AcceleratorState.__init__ = persuade(AcceleratorState.__init__)
    for way, settings in WAYS.items():
        place = folder / way
        saved = {"save_strategy": "steps", "save_steps": 3} | settings
        for resumes in (None, str(place / "checkpoint-3")):
            found = outcome(place, resumes=resumes, **saved)
            torch.save(found, folder / f"{way}-{resumes is not None}-{dist.get_rank()}.pt")
        AcceleratorState._reset_state()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_have_the_layer_losses_of_one(way: str, one: dict[str, Any], two: Path) -> None:
    for rank in range(2):
        found = torch.load(two / f"{way}-False-{rank}.pt", weights_only=True)
        assert (found["sharded"], found["processes"]) == (way == "fsdp", 2)
        for ours, theirs in zip(found["losses"], one["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
        assert found["weights"].keys() == one["weights"].keys(), "the projections are gone"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_with_projections_resume_to_the_bit(way: str, two: Path) -> None:
    for rank in range(2):
        whole, resumed = (torch.load(two / f"{way}-{again}-{rank}.pt", weights_only=True) for again in (False, True))
        assert same(whole["weights"], resumed["weights"])


def test_a_run_with_projections_resumes_to_the_bit(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 4, "dtype": torch.float32}
    with_dropout = {"teacher": bert(seed=1, **WIDE)} | saved
    whole = learn(tmp_path, methods=METHODS, model=bert(), **with_dropout)
    resumed = learn(
        tmp_path, methods=METHODS, model=bert(seed=3), resumes=str(tmp_path / "checkpoint-4"), **with_dropout
    )
    assert same(logged(whole, *TERMS), logged(resumed, *TERMS))
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert not any("distill" in name for name in whole.model.state_dict())


PRECISIONS: dict[str, tuple[dict[str, Any], float]] = {
    "gradient checkpointing": ({"activation_checkpointing": True}, 0),
    "bf16 autocast": ({"bf16": True}, 2e-2),
    "bf16 autocast and gradient checkpointing": ({"bf16": True, "activation_checkpointing": True}, 2e-2),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_layer_losses_are_those_of_plain_training(name: str, tmp_path: Path) -> None:
    settings, tolerance = PRECISIONS[name]
    small = {"max_steps": 3, "dtype": torch.float32}
    plain, other = (learn(tmp_path, **small | more) for more in ({}, settings))
    for ours, theirs in zip(logged(other, *TERMS), logged(plain, *TERMS), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)


def test_recomputed_layers_that_hide_attention_are_refused(tmp_path: Path) -> None:
    reentrant = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="`--distill_layer_loss relations` trains nothing: .*`use_reentrant=True`"):
        learn(tmp_path, losses=["relations=1"], **reentrant)


def test_a_lora_student_starts_at_its_own_teacher(tmp_path: Path) -> None:
    options = DistillationArguments(
        distill_teacher="self", distill_layer_loss=["hidden=1", "attention=1", "relations=1"]
    )
    run = make(tmp_path, model=adapted(bert(**NO_DROPOUT)), build={"distillation": options}, max_steps=4)
    run.train()
    first, *_, last = logged(run, "hidden_loss", "attention_loss", "relations_loss")
    assert first == pytest.approx([0, 0, 0], abs=1e-9)
    assert all(loss > 0 for loss in last), "the labels move it away"


def check_compiled(folder: Path, losses: list[str]) -> None:
    """A compiled run has the losses of a plain one, and hardly more graphs than one without layerwise losses."""
    from torch._dynamo.utils import counters

    compiler, graphs = {"torch_compile_backend": "aot_eager"}, [0]
    plain = learn(folder, losses=losses, dtype=torch.float32)
    for chosen in ([], losses):
        torch.compiler.reset()
        compiled = learn(folder, losses=chosen, dtype=torch.float32, **compiler)
        graphs.append(counters["stats"]["unique_graphs"] - sum(graphs))
    assert not counters["graph_break"], dict(counters["graph_break"])
    # The hook on the whole model is a graph of its own, for each of the two sizes of batches.
    assert 0 < graphs[2] <= graphs[1] + 2, graphs
    assert same(dict(compiled.model.state_dict()), dict(plain.model.state_dict()))
    assert same(logged(compiled, *TERMS[: len(losses)]), logged(plain, *TERMS[: len(losses)]))


@pytest.mark.slow
def test_a_compiled_run_has_the_layer_losses_of_a_plain_one(tmp_path: Path) -> None:
    assert in_a_process(check_compiled, tmp_path, ALL) == 0


ENCODERS = {
    f"{case.config} {case.auto_class.__name__}": (case.auto_class, models.CONFIGS[case.config](**case.changes), case)
    for case in models.CASES
    if case.auto_class is not models.SEQ2SEQ
}
OTHERS = {
    f"{case.config.model_type} {case.name}": (case.auto_class, case.config, case)
    for case in heads.CASES
    if case.config.model_type in ("bert", "vit", "wav2vec2")
}


@pytest.mark.parametrize("name", [*ENCODERS, *OTHERS])
def test_every_encoder_learns_from_layers_and_stays_as_it_was(name: str, tmp_path: Path) -> None:
    auto_class, config, case = (ENCODERS | OTHERS)[name]
    config.layerdrop = 0.0
    data = heads.rows_for(case) if isinstance(case, heads.Case) else models.rows_for(auto_class)
    student, teacher = (auto_class.from_config(config) for _ in range(2))
    before = state(student), state(teacher)
    run = DistillationTrainer(
        student,
        TrainingArguments(str(tmp_path), **SETTINGS | {"max_steps": 2}),
        teacher=teacher,
        distillation=DistillationArguments(distill_layer_loss=ALL),
        train_dataset=data,
    )
    run.train()
    for line in logged(run, *TERMS):
        assert all(0 < value < 10 for value in line)
    assert (state(student), state(teacher)) == before


def state(model: PreTrainedModel) -> Any:
    """Return what hooks, projections, maps and switched-off dropout would change."""
    hooks = [
        hook for one in model.modules() for hook in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())
    ]
    ours = [hook for hook in hooks if hook.__module__.startswith("hf_compress")]
    dropout = [getattr(*place) for layer in layers_of(model) for place in attention_dropout(layer)]
    return ours, dropout, model.config._attn_implementation, list(model.state_dict())
