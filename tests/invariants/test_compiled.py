"""`torch_compile` changes neither masks nor ranges, and compiles a few times, not at every step.

Every run is in a process of its own: the shape checks of the test suite would stop the compiler.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification, Trainer, default_data_collator

from hf_compress import save_compressed
from hf_compress.layers.attention import round_attention
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.lora import current_weight
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.heads import find_head
from hf_compress.models.targets import prunable
from hf_compress.report.evaluation import logit_difference
from tests.invariants.harness import (
    KD,
    METHODS,
    PRUNE,
    QUANT,
    adapted,
    in_a_process,
    logged,
    recipe,
    rows,
    same,
    trained,
)
from tests.tiny import NO_DROPOUT, bert

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


def trimmed(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collate rows and cut tokens that are padding in all rows, so that batches differ in length."""
    whole = default_data_collator(batch)
    length = int(whole["attention_mask"].sum(1).max())
    return {name: value[:, :length].contiguous() if value.ndim == 2 else value for name, value in whole.items()}


UNEVEN: dict[str, Any] = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "build": {"data_collator": trimmed},
}
# The settings of a run, and how many graphs it may take. Transformers needs two: a model's first call settles its
# `problem_type`. Rounding begins, and ranges freeze; shapes become dynamic, and a LoRA layer has its first mask.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "all methods": ({}, 4),
    "uneven batches and accumulation": (UNEVEN, 6),
    "bf16": ({"bf16": True}, 4),
    "lora": ({"lora": True}, 5),
}


def run(folder: Path, backend: str | None, *, lora: bool = False, **settings: Any) -> Trainer:
    model: Any = bert(num_hidden_layers=1, **NO_DROPOUT)
    compiler = {} if backend is None else {"torch_compile_backend": backend}
    return trained(folder, METHODS, model=adapted(model) if lora else model, max_steps=16, **compiler | settings)


def check(folder: Path, backend: str, settings: dict[str, Any], graphs: int) -> None:
    """A compiled run has the weights, masks, ranges and losses of a plain one; its file has its logits."""
    plain, compiled = run(folder, None, **settings), run(folder, backend, **settings)
    assert not counters["graph_break"]
    assert 0 < counters["stats"]["unique_graphs"] <= graphs
    ours, theirs = dict(compiled.model.state_dict()), dict(plain.model.state_dict())
    for one, other in zip(prunable(compiled.model), prunable(plain.model), strict=True):
        zero = current_weight(one.module) == 0
        assert int(zero.sum()) == round(0.6 * zero.numel())
        assert torch.equal(zero, current_weight(other.module) == 0)
    if backend == "inductor":  # Inductor sums in another order.
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(value.float(), theirs[name].float(), atol=1e-4) for name, value in ours.items())
    else:
        assert same(ours, theirs)
        assert same(logged(compiled, "loss"), logged(plain, "loss"))
    check_file(compiled, folder)


def check_file(compiled: Trainer, folder: Path) -> None:
    save_compressed(compiled.model, folder / "compressed", recipe(METHODS))
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder / "compressed", attn_implementation="sdpa")
    assert logit_difference(compiled, reloaded.to(compiled.args.device), find_head(reloaded)) == (0, 16)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_run_has_plain_bits_and_compiles_a_few_times(case: str, tmp_path: Path) -> None:
    assert in_a_process(check, tmp_path, "aot_eager", *CASES[case]) == 0


@COMPILER
@pytest.mark.slow
def test_inductor_has_the_masks_of_a_plain_run(tmp_path: Path) -> None:
    assert in_a_process(check, tmp_path, "inductor", *CASES["all methods"]) == 0


@pytest.mark.gpu
@pytest.mark.slow
def test_inductor_on_a_gpu_saves_the_trained_logits(tmp_path: Path) -> None:
    assert in_a_process(check_gpu, tmp_path) == 0


def check_gpu(folder: Path) -> None:
    compiled = run(folder, "inductor", use_cpu=False, bf16=True)
    assert not counters["graph_break"]
    check_file(compiled, folder)


def check_schemes() -> None:
    inputs = default_data_collator(rows(4))
    for scheme in SCHEMES.values():
        torch.compiler.reset()
        model = bert(num_hidden_layers=1, **NO_DROPOUT)
        quantize_layers(model, scheme)
        round_attention(model, scheme)
        for layer in compressed_layers(model).values():
            layer.quantizing, layer.step_range = True, torch.tensor([-1.0, 1.0])
            if layer.has_range:
                layer.input_range.copy_(torch.tensor([-1.0, 2.0]))
        plain = gradients(model, model, inputs)
        assert same(gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True), inputs), plain)


def gradients(model: torch.nn.Module, forward: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    forward(**inputs).loss.backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.slow
def test_every_scheme_is_one_graph_with_the_same_gradients() -> None:
    assert in_a_process(check_schemes) == 0


def check_teacher(folder: Path) -> None:
    student = {"model": bert(num_hidden_layers=1, **NO_DROPOUT)}
    teacher: Any = torch.compile(bert(seed=1, num_hidden_layers=1), backend="aot_eager")
    taught = trained(folder, (KD, PRUNE, QUANT), teacher=teacher, torch_compile_backend="aot_eager", **student)
    student = {"model": bert(num_hidden_layers=1, **NO_DROPOUT)}
    plain = trained(folder, (KD, PRUNE, QUANT), teacher=bert(seed=1, num_hidden_layers=1), **student)
    assert same(dict(taught.model.state_dict()), dict(plain.model.state_dict()))
    assert same(logged(taught, "distill_loss", "label_loss"), logged(plain, "distill_loss", "label_loss"))


@pytest.mark.slow
def test_a_compiled_teacher_teaches_a_compiled_student_the_same(tmp_path: Path) -> None:
    assert in_a_process(check_teacher, tmp_path) == 0
