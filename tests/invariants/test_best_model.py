"""The best model is pruned and quantized as the recipe says, or the run fails."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_compress import PruningArguments, PruningCallback, QuantizationArguments, QuantizationCallback
from hf_compress.checkpoint.save import save_compressed
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable
from tests.invariants.harness import PRUNE, QUANT, checkpoints, make, recipe

METHODS = [(PRUNE,), (QUANT,), (PRUNE, QUANT), (QUANT, PRUNE)]
# Of 12 steps: target sparsity from step 7 on (`prune_end` 0.6), rounding from step 5 on (`quant_begin` 0.3).
FIRST = {(PRUNE,): 8, (QUANT,): 6, (PRUNE, QUANT): 8, (QUANT, PRUNE): 8}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


def scored(scores: Iterable[float]) -> Callable[[Any], dict[str, float]]:
    """Return a metric that gives the scores in turn."""
    values = iter(scores)
    return lambda _: {"score": next(values)}


def falling() -> Callable[[Any], dict[str, float]]:
    """Return a metric by which each evaluation is worse than the one before."""
    return scored(itertools.count(100.0, -1.0))


def ordered(
    folder: Path,
    methods: Sequence[str],
    *more: TrainerCallback,
    scores: Any = None,
    prune_end: float = 0.6,
    **settings: Any,
) -> Trainer:
    """Build a run with the callbacks of `methods` in that order, then `more`."""
    plan = recipe(methods)
    callbacks = {
        PRUNE: lambda: PruningCallback(dataclasses.replace(plan.pruning, prune_end=prune_end)),
        QUANT: lambda: QuantizationCallback(plan.quantization),
    }
    build = {"compute_metrics": scores or falling()}
    return make(folder, callbacks=[*(callbacks[name]() for name in methods), *more], build=build, **BEST | settings)


# Trainer deletes checkpoints by the best one, however it was chosen: all limits with one of the methods.
@pytest.mark.parametrize(
    ("methods", "limit"), [*((methods, 1) for methods in METHODS), ((PRUNE, QUANT), None), ((PRUNE, QUANT), 2)]
)
def test_the_best_model_is_one_that_the_recipe_promises(methods: Any, limit: int | None, tmp_path: Path) -> None:
    run = ordered(tmp_path, methods, save_total_limit=limit)
    run.train()
    first = FIRST[methods]
    assert run.state.best_global_step == first
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{first}")
    kept = {None: {2, 4, 6, 8, 10, 12}, 1: {first}, 2: {first, 12}}[limit]
    assert set(checkpoints(tmp_path)) == {f"checkpoint-{step}" for step in kept}
    save_compressed(run.model, tmp_path / "compressed", recipe(methods))  # Raises if the promise is not kept.
    assert bool(compressed_layers(run.model)) == (QUANT in methods)


@pytest.mark.parametrize("methods", METHODS, ids="+".join)
def test_the_best_model_by_score_keeps_the_recipes_promise(methods: Any, tmp_path: Path) -> None:
    ordered(tmp_path, methods, save_strategy="best", save_total_limit=1).train()
    assert set(checkpoints(tmp_path)) == {f"checkpoint-{FIRST[methods]}"}


@pytest.mark.parametrize("methods", METHODS, ids="+".join)
def test_patience_starts_with_the_first_model_as_promised(methods: Any, tmp_path: Path) -> None:
    stopping = EarlyStoppingCallback(early_stopping_patience=4)
    run = ordered(tmp_path, methods, stopping, prune_end=0.4, max_steps=24)
    run.train()
    assert run.state.best_global_step == (10 if PRUNE in methods else 8)
    # Evaluated every other step; models from before the target sparsity do not count.
    assert run.state.global_step == run.state.best_global_step + 4 * 2
    save_compressed(run.model, tmp_path / "compressed", recipe(methods))


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ((PRUNE,), r"stopped at step 4 of 12 .*`--prune_sparsity 0.6` is reached at step 7.*`--prune_end`"),
        ((QUANT,), r"stopped at step 4 of 12, but quantization begins after step 4.*`--quant_begin`"),
        ((PRUNE, QUANT), "stopped at step 4 of 12"),
        ((QUANT, PRUNE), "stopped at step 4 of 12"),
    ],
)
def test_a_run_that_stops_before_a_method_is_through_fails(methods: Any, said: str, tmp_path: Path) -> None:
    run = ordered(tmp_path, methods, EarlyStoppingCallback(early_stopping_patience=1))
    with pytest.raises(RuntimeError, match=said):
        run.train()


def test_pruned_but_stopped_before_quantization_fails(tmp_path: Path) -> None:
    late = QuantizationCallback(QuantizationArguments(quant_scheme="int8", quant_begin=0.8))
    early = PruningCallback(PruningArguments(prune_sparsity=0.5, prune_end=0.3, prune_every=1))
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    run = make(tmp_path, callbacks=[early, late, stopping], build={"compute_metrics": falling()}, **BEST)
    with pytest.raises(RuntimeError, match=r"stopped at step 8 of 12, but quantization begins after step 10"):
        run.train()


@pytest.mark.parametrize("methods", METHODS, ids="+".join)
def test_a_run_of_which_no_model_qualifies_fails_and_says_so(methods: Any, tmp_path: Path) -> None:
    # The only best model is from before the target; later scores are NaN, so none replaces it.
    run = ordered(tmp_path, methods, scores=scored([2.0, 1.0] + [float("nan")] * 9))
    with pytest.raises(RuntimeError, match="`--load_best_model_at_end` finds no checkpoint"):
        run.train()


@pytest.mark.parametrize("methods", METHODS, ids="+".join)
def test_a_resumed_run_keeps_the_best_model_from_before(methods: Any, tmp_path: Path) -> None:
    ordered(tmp_path, methods).train()
    run = ordered(tmp_path, methods, scores=scored([0.0] * 9))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert run.state.best_global_step == FIRST[methods]
    assert all((target.weight == 0).any() for target in prunable(run.model)) == (PRUNE in methods)
