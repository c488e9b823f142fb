"""The same seed gives the same bits, in any order of callbacks, when training twice, and with `model_init`."""

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from hf_compress import DistillationTrainer, PruningCallback, QuantizationCallback, save_compressed
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable
from tests.invariants.harness import METHODS, NAMED, PRUNE, QUANT, SUBSETS, logged, make, recipe, same, trained
from tests.tiny import bert


def outcome(run: Trainer) -> dict[str, Any]:
    """Return what a finished run leaves: weights and ranges, optimizer, losses."""
    return {
        "weights": dict(run.model.state_dict()),
        "optimizer": run.optimizer.state_dict(),
        "losses": logged(run, "loss", "grad_norm"),
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], dict[str, Any]]:
    """A function that gives the outcome of a run with some methods, trained once for each."""
    return cache(lambda methods: outcome(trained(tmp_path_factory.mktemp("given"), methods)))


@pytest.mark.parametrize("methods", SUBSETS, ids=NAMED)
def test_the_same_seed_gives_the_same_bits(
    methods: Sequence[str], given: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert same(outcome(trained(tmp_path, methods)), given(methods))


def test_another_seed_gives_other_bits(tmp_path: Path) -> None:
    runs = [trained(tmp_path, METHODS, seed=seed) for seed in (1, 2)]
    assert not same(outcome(runs[0]), outcome(runs[1]))


class Bystander(TrainerCallback):
    """A user's callback."""


def test_the_order_of_callbacks_does_not_matter(tmp_path: Path) -> None:
    plan, results = recipe((PRUNE, QUANT)), []
    for order in itertools.permutations(range(3)):
        callbacks = [PruningCallback(plan.pruning), QuantizationCallback(plan.quantization), Bystander()]
        results.append(outcome(trained(tmp_path, callbacks=[callbacks[place] for place in order])))
    assert all(same(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("methods", SUBSETS, ids=NAMED)
def test_training_twice_continues_and_keeps_the_promise(methods: Sequence[str], tmp_path: Path) -> None:
    run = trained(tmp_path, methods)
    first = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    assert run.state.global_step == 12
    assert not same(dict(run.model.state_dict()), first)
    save_compressed(run.model, tmp_path / "compressed", recipe(methods))


# --- `model_init` --------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", SUBSETS, ids=NAMED)
def test_a_model_from_model_init_is_compressed_like_a_given_one(
    methods: Sequence[str], given: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    built = trained(tmp_path, methods, build={"model_init": lambda: bert()})
    assert same(given(methods), outcome(built))
    thrown_away = built.model
    built.train()
    assert built.model is not thrown_away
    assert same(given(methods), outcome(built))


def test_a_callback_added_after_the_trainer_quantizes_too(tmp_path: Path) -> None:
    before, after = trained(tmp_path, (QUANT,)), make(tmp_path)
    after.add_callback(QuantizationCallback(recipe((QUANT,)).quantization))
    after.train()
    assert same(outcome(before), outcome(after))


def test_resuming_with_ranges_that_nothing_could_load_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 6}
    trained(tmp_path, (QUANT,), build={"model_init": lambda: bert()}, **settings)
    run = make(tmp_path, (QUANT,), build={"model_init": lambda: bert()}, **settings)
    with pytest.raises(ValueError, match=r"`--quant_scheme int8` cannot resume here.*`model` instead of `model_init`"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def search(run: Trainer, trials: list[dict[str, Any]]) -> list[float]:
    """Run trials as the backends of `hyperparameter_search` do, without a backend."""
    scores = []
    for trial in trials:
        for name, value in trial.items():
            setattr(run.args, name, value)
        run.train()
        scores.append(run.evaluate()["eval_loss"])
        # Transformers does this after a trial, "to free GPU memory".
        run.model_wrapped = run.model = None
        run.accelerator.clear()
    return scores


def test_every_trial_of_a_search_starts_from_a_fresh_model(tmp_path: Path) -> None:
    run = make(tmp_path, METHODS, build={"model_init": lambda: bert()})
    scores = search(run, [{"learning_rate": rate} for rate in (5e-3, 1e-3, 5e-3)])
    assert scores[0] == scores[2] != scores[1]


def test_no_model_outlives_its_trial(tmp_path: Path) -> None:
    """A search over large models would run out of memory."""
    run = trained(tmp_path, (PRUNE, QUANT), build={"model_init": lambda: bert()}, max_steps=6)
    ours = [
        held for held in run.callback_handler.callbacks if isinstance(held, PruningCallback | QuantizationCallback)
    ]
    assert len(ours) == 2
    for callback in ours:
        assert not any(value for value in vars(callback).values() if isinstance(value, list)), vars(callback)


def test_hyperparameter_search_works(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    run = make(tmp_path, METHODS, trainer_class=DistillationTrainer, build={"model_init": lambda: bert()})
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-4, 5e-3])},
        n_trials=2,
        backend="optuna",
        direction="minimize",
    )
    assert best.hyperparameters["learning_rate"] in (1e-4, 5e-3)


def test_a_trained_model_goes_through_another_trainer(tmp_path: Path) -> None:
    model = bert()
    for _ in range(2):
        trained(tmp_path, (PRUNE, QUANT), model=model)
    save_compressed(model, tmp_path / "compressed", recipe((PRUNE, QUANT)))
    assert all(layer.ready for layer in compressed_layers(model).values())
    assert prunable(model)
