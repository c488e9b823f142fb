"""The criterion `platon`: scores against a loop over the steps, its memory through checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_compress import PruningArguments, Recipe
from hf_compress.models.targets import prunable
from hf_compress.prune import CRITERIA, Evidence
from hf_compress.prune.state_file import STATE_FILE
from tests.invariants.harness import make
from tests.tiny import bert

PLATON = CRITERIA["platon"]


def pruned(folder: Path, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    """Build a Trainer that prunes half of a tiny model by `platon`, in steps 5 to 24 of 26."""
    pruning = {"prune_sparsity": 0.5, "prune_begin": 0.2, "prune_end": 0.9, "prune_every": 6} | more.pop("pruning", {})
    plan = Recipe(pruning=PruningArguments(prune_criterion="platon", **pruning))
    given = {"max_steps": 26, "trainer_class": Trainer, "gradient_accumulation_steps": 2} | more
    return make(folder, plan=plan, callbacks=callbacks, **given)


def loop(seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the scores of one weight after steps with these weights and gradients, as the paper says it."""
    mean, uncertainty, window, whole = 0.0, 0.0, [], False
    for weight, gradient in seen:
        window.append((weight * gradient).abs())
        if len(window) == 10:
            sensitivity, window, whole = torch.stack(window).mean(0), [], True
            mean = 0.85 * mean + 0.15 * sensitivity
            uncertainty = 0.95 * uncertainty + 0.05 * (sensitivity - mean).abs()
    return mean * uncertainty if whole else torch.stack(window).mean(0)


class Watch(TrainerCallback):
    """Records weights and gradients before each optimizer step, and zeros after it."""

    def __init__(self) -> None:
        self.before: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        found = {one.name: (one.weight.detach().double(), one.weight.grad.double()) for one in prunable(model)}
        self.before.append(found)

    def on_step_end(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        self.after.append({target.name: target.weight.detach() == 0 for target in prunable(model)})


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20, 27])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_those_of_a_loop_over_the_steps(dtype: torch.dtype, steps: int) -> None:
    seen = [(torch.randn(5, 6).to(dtype), torch.randn(5, 6).to(dtype) * 1e-3) for _ in range(steps)]
    memory: dict[str, Tensor] = {}
    for step, (weight, gradient) in enumerate(seen, 1):
        evidence = Evidence(weight, gradient, step=step, memory=memory)
        PLATON.observe(evidence)
    expected = loop([(weight.double(), gradient.double()) for weight, gradient in seen])
    found = PLATON.scores(evidence)
    # Before the end of a window the scores are a sum in place of a mean, which ranks alike.
    scale = 1.0 if steps >= 10 else steps
    torch.testing.assert_close(found.double(), expected * scale, rtol=1e-4, atol=0)


@pytest.fixture(scope="module", params=["layer", "global"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trainer, Watch]]:
    """A run with a checkpoint of every step, and what was seen."""
    folder, watch = tmp_path_factory.mktemp("run"), Watch()
    whole = pruned(folder, watch, save_strategy="steps", save_steps=1, pruning={"prune_scope": request.param})
    whole.train()
    return whole, watch


def test_choices_are_those_of_the_loop(run: tuple[Trainer, Watch]) -> None:
    _, watch = run
    for choice in (5, 11, 17, 23):
        before = watch.after[choice - 2]
        for layer, found in watch.after[choice - 1].items():
            scores = loop([seen[layer] for seen in watch.before[:choice]])
            new = found & ~before[layer]
            if new.any() and not found.all():
                assert scores[new].max() <= scores[~found].min() * (1 + 1e-4), (choice, layer)


def test_masks_nest_and_end_at_the_exact_count(run: tuple[Trainer, Watch]) -> None:
    trainer, watch = run
    for less, more in zip(watch.after[:-1], watch.after[1:], strict=True):
        assert all((more[layer] >= less[layer]).all() for layer in less)
    targets = prunable(trainer.model)
    assert not any(found.any() for found in watch.after[3].values())
    zeros = sum(int(found.sum()) for found in watch.after[-1].values())
    assert abs(zeros - 0.5 * sum(target.weight.numel() for target in targets)) <= len(targets)


@pytest.mark.parametrize("step", [3, 10, 13, 20])
def test_a_resumed_run_equals_the_uninterrupted_one(step: int, run: tuple[Trainer, Watch], tmp_path: Path) -> None:
    """Within a window, at its end, before and after the first choice."""
    whole, _ = run
    folder = Path(whole.args.output_dir)
    scope = whole.state.stateful_callbacks["hf_compress"]["pruning"]["prune_scope"]
    resumed = pruned(tmp_path, model=bert(seed=1), pruning={"prune_scope": scope})
    resumed.args.resume_from_checkpoint = str(folder / f"checkpoint-{step}")
    resumed.train(resume_from_checkpoint=resumed.args.resume_from_checkpoint)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_memory_takes_twelve_bytes_per_weight(run: tuple[Trainer, Watch]) -> None:
    whole, _ = run
    tensors = load_file(Path(whole.args.output_dir) / "checkpoint-13" / STATE_FILE)
    memory = sum(tensor.nbytes for name, tensor in tensors.items() if ".memory." in name)
    assert memory == 12 * sum(target.weight.numel() for target in prunable(whole.model))


def test_the_memory_survives_sixteen_bit_autocast(tmp_path: Path) -> None:
    trainer = pruned(tmp_path, bf16=True, save_strategy="steps", save_steps=13)
    trainer.train()
    assert all(int((one.weight == 0).sum()) == round(0.5 * one.weight.numel()) for one in prunable(trainer.model))
    tensors = load_file(tmp_path / "checkpoint-13" / STATE_FILE)
    assert {tensor.dtype for name, tensor in tensors.items() if ".memory." in name} == {torch.float32}
