"""The criterion `adam`: scores against a loop, every Adam of PyTorch, and sentences for other optimizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Adafactor, PreTrainedModel, Trainer, TrainerCallback

from hf_compress import PruningArguments, Recipe, save_compressed
from hf_compress.models.targets import prunable
from hf_compress.prune import CRITERIA, Evidence
from tests.invariants.harness import adapted, make
from tests.tiny import bert

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
ADAMS: dict[str, Make] = {
    "foreach": lambda given: torch.optim.AdamW(given, lr=1e-2, foreach=True),
    "fused": lambda given: torch.optim.AdamW(given, lr=1e-2, fused=True),
    "one by one": lambda given: torch.optim.AdamW(given, lr=1e-2, foreach=False),
    "amsgrad": lambda given: torch.optim.Adam(given, lr=1e-2, amsgrad=True, weight_decay=0.1),
    "nadam": lambda given: torch.optim.NAdam(given, lr=1e-2),
    "radam": lambda given: torch.optim.RAdam(given, lr=1e-2),
}


class Lion(torch.optim.Optimizer):
    """An optimizer that has `betas` and one moment (Chen et al., 2023), as those of other packages do."""

    def __init__(self, given: list[nn.Parameter]) -> None:
        super().__init__(given, {"lr": 1e-3, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, *_: Any) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                moment = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                moment.lerp_(parameter.grad, 0.01)
                parameter.add_(moment.sign(), alpha=-1e-3)


class Silent(Lion):
    """An optimizer that keeps its state where nobody sees it."""

    @torch.no_grad()
    def step(self, *_: Any) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.add_(parameter.grad.sign(), alpha=-1e-3)


class Coarse(torch.optim.AdamW):
    """An AdamW that keeps its moments in 8 bits, with a scale per tensor."""

    @torch.no_grad()
    def step(self, *_: Any) -> None:
        super().step()
        for state in self.state.values():
            state["exp_avg_sq"] = state["exp_avg_sq"].mul(255).to(torch.uint8)


def pruned(folder: Path, optimizer: Make | None = None, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    """Build a Trainer that prunes half of a tiny model by `adam`."""
    pruning = {"prune_sparsity": 0.5, "prune_criterion": "adam", "prune_every": 3} | more.pop("pruning", {})
    model = more.pop("model", None) or bert()
    build = {"optimizers": (optimizer(list(model.parameters())), None)} if optimizer else {}
    plan = Recipe(pruning=PruningArguments(**pruning))
    return make(folder, model=model, plan=plan, build=build, trainer_class=Trainer, callbacks=callbacks, **more)


def loop(weight: Tensor, state: dict[str, Any], beta: float) -> Tensor:
    """Return the scores of the issue, value by value."""
    scores = torch.empty_like(weight)
    for place in range(weight.numel()):
        value, moment = float(weight.flatten()[place]), float(state["exp_avg_sq"].flatten()[place])
        scores.view(-1)[place] = value * value * moment / (1 - beta ** int(state["step"]))
    return scores


class Watch(TrainerCallback):
    """Records weights and state as the choice of a step finds them, and the zeros that it leaves."""

    def __init__(self) -> None:
        self.before: list[dict[str, tuple[Tensor, dict[str, Any]]]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_optimizer_step(self, *_: Any, model: PreTrainedModel, optimizer: Any, **__: Any) -> None:
        found = {}
        for target in prunable(model):
            state = {name: torch.as_tensor(one).clone() for name, one in optimizer.state[target.weight].items()}
            found[target.name] = target.weight.detach().clone(), state
        self.before.append(found)

    def on_step_end(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        self.after.append({target.name: target.weight.detach() == 0 for target in prunable(model)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_are_those_of_a_loop(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 9).to(dtype)
    state = {"exp_avg_sq": torch.rand(7, 9).to(dtype), "step": torch.tensor(3.0)}
    scores = CRITERIA["adam"].scores(Evidence(weight, None, state, {"betas": (0.9, 0.98)}))
    expected = loop(weight.double(), state, 0.98)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)


def test_tiny_moments_of_sixteen_bits_still_rank() -> None:
    weight = torch.full((4,), 1e-3, dtype=torch.float16)
    state = {"exp_avg_sq": torch.tensor([4e-7, 1e-7, 3e-7, 2e-7], dtype=torch.float16), "step": 1}
    scores = CRITERIA["adam"].scores(Evidence(weight, None, state, {"betas": (0.9, 0.999)}))
    assert scores.argsort().tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("name", ADAMS)
def test_every_adam_of_pytorch_prunes_by_its_second_moment(name: str, tmp_path: Path) -> None:
    watch = Watch()
    pruning = {"prune_begin": 0.0, "prune_initial_sparsity": 0.3, "prune_end": 1.0, "prune_every": 5}
    pruned(tmp_path, ADAMS[name], watch, pruning=pruning, gradient_accumulation_steps=2).train()
    # The first choice comes after the first step: moments of one batch.
    for layer, (weight, state) in watch.before[0].items():
        scores = loop(weight, state, 0.999).flatten()
        expected = torch.zeros_like(scores, dtype=torch.bool)
        expected[scores.sort(stable=True).indices[: round(0.3 * scores.numel())]] = True
        assert torch.equal(watch.after[0][layer], expected.view(weight.shape)), layer
    for less, more in zip(watch.after[:-1], watch.after[1:], strict=True):
        assert all((more[layer] >= less[layer]).all() for layer in less)
    assert all(int(found.sum()) == round(0.5 * found.numel()) for found in watch.after[-1].values())


@pytest.fixture(scope="module", params=["layer", "global"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trainer]:
    """A scope, and a run with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("run")
    whole = pruned(folder, save_strategy="steps", save_steps=1, pruning={"prune_scope": request.param})
    whole.train()
    return request.param, whole


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_resumed_run_equals_the_uninterrupted_one(step: int, run: tuple[str, Trainer], tmp_path: Path) -> None:
    scope, whole = run
    resumed = pruned(tmp_path, model=bert(seed=1), pruning={"prune_scope": scope})
    resumed.args.resume_from_checkpoint = str(Path(whole.args.output_dir) / f"checkpoint-{step}")
    resumed.train(resume_from_checkpoint=resumed.args.resume_from_checkpoint)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
        states = whole.optimizer.state[one], resumed.optimizer.state[other]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    found = [int((target.weight == 0).sum()) for target in prunable(whole.model)]
    assert sum(found) == round(0.5 * sum(target.weight.numel() for target in prunable(whole.model)))


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9), "SGD"),
        (lambda given: torch.optim.RMSprop(given), "RMSprop"),
        (
            lambda given: Adafactor(given, lr=1e-3, relative_step=False),
            "Adafactor",
        ),
    ],
    ids=["sgd", "rmsprop", "adafactor"],
)
def test_optimizers_without_moments_are_refused_at_once(optimizer: Make, name: str, tmp_path: Path) -> None:
    run = pruned(tmp_path, optimizer)
    said = f"optimizer {name}: for .* keeps no average of squared .*such as `adamw_torch`, or"
    with pytest.raises(ValueError, match=f"`--prune_criterion adam` cannot .* {said}"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (Lion, "Lion: for .* it keeps `exp_avg`, but no plain `exp_avg_sq` and `step`"),
        (
            lambda given: torch.optim.Adamax(given),
            "Adamax: for .* it keeps `step`, `exp_avg`, `exp_inf`, but",
        ),
        (Coarse, "Coarse: for .* but no plain `exp_avg_sq`"),
        (Silent, "Silent: it shows no state for any layer after a step"),
    ],
    ids=["lion", "adamax", "8-bit", "silent"],
)
def test_other_optimizers_are_refused_after_their_first_step(optimizer: Make, said: str, tmp_path: Path) -> None:
    run = pruned(tmp_path, optimizer)
    with pytest.raises(ValueError, match=f"`--prune_criterion adam` cannot .* {said}"):
        run.train()
    assert run.state.global_step == 0  # Trainer counts a step after its callbacks.


def frozen() -> PreTrainedModel:
    model = bert()
    model.bert.pooler.dense.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: adapted(bert()), "the weights beside an adapter have none. Merge it first"),
        (frozen, r"bert\.pooler\.dense is frozen. Train it, or leave it out"),
    ],
    ids=["lora", "frozen"],
)
def test_weights_without_moments_are_refused_at_once(
    model: Callable[[], nn.Module], said: str, tmp_path: Path
) -> None:
    run = pruned(tmp_path, model=model())
    with pytest.raises(ValueError, match=f"`--prune_criterion adam` needs the gradients or the optimizer .* {said}"):
        run.train()
    assert run.state.global_step == 0


def test_a_layer_without_gradients_is_pruned_first(tmp_path: Path) -> None:
    model = bert()
    model.bert.pooler.spare = nn.Linear(32, 32)
    run = pruned(tmp_path, model=model, pruning={"prune_scope": "global", "prune_sparsity": 0.05})
    run.train()
    zeros = {target.name: float((target.weight == 0).float().mean()) for target in prunable(model)}
    assert zeros["bert.pooler.spare"] == pytest.approx(max(zeros.values()))
    assert zeros["bert.pooler.spare"] > 0.5


def test_more_sparsity_starts_from_the_zeros_of_a_file(tmp_path: Path) -> None:
    plan = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_criterion="adam"))
    first = pruned(tmp_path)
    first.train()
    folder = save_compressed(first.model, tmp_path / "compressed", plan)
    model = type(first.model).from_pretrained(folder)
    before, watch = {target.name: target.weight.detach() == 0 for target in prunable(model)}, Watch()
    pruned(tmp_path, None, watch, model=model, pruning={"prune_sparsity": 0.7}).train()
    assert all(torch.equal(watch.after[0][layer], zeros) for layer, zeros in before.items())
    assert all(int(found.sum()) == round(0.7 * found.numel()) for found in watch.after[-1].values())
