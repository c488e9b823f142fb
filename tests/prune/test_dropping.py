"""Layers dropped in training: when and which, what is refused before the first step, and what fails at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback

from hf_compress import (
    BudgetArguments,
    DistillationArguments,
    LayerDroppingCallback,
    PruningArguments,
    QuantizationArguments,
    Recipe,
    SpeedArguments,
    save_compressed,
)
from hf_compress.cut.depth import Depth
from hf_compress.models.skipping import skipped_layers
from hf_compress.models.stacks import layers_of
from tests.cut.test_students import SEQ2SEQ, deep
from tests.invariants.harness import logged, make, trained
from tests.tiny import NO_DROPOUT, bert

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 5}


def plan(layers: int = 3, **options: Any) -> Recipe:
    return Recipe(pruning=PruningArguments(prune_layers=layers, prune_every=1, **options))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"prune_schedule": "linear"}, [4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2]),
        ({}, [4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2]),
        ({"layers": 1}, [4] * 12),
        ({"prune_end": 0.2}, [4, 2] + [2] * 10),
    ],
)
def test_layers_go_on_schedule(options: dict[str, Any], left: list[int], tmp_path: Path) -> None:
    run = trained(tmp_path, model=bert(**SMALL), plan=plan(**options))
    assert [layers for (layers,) in logged(run, "layers")] == left


def test_the_layer_goes_that_changes_nothing(tmp_path: Path) -> None:
    """A layer whose norms give what they read changes its inputs least."""
    model = bert(**SMALL | NO_DROPOUT)
    idle = layers_of(model)[2]
    with torch.no_grad():
        for name, weight in idle.named_parameters():
            if name.endswith("output.dense.weight"):
                weight.zero_()
    run = trained(tmp_path, model=model, plan=plan(1), learning_rate=1e-6)
    assert skipped_layers(run.model) == [2]


def test_a_model_that_lost_layers_before_loses_the_rest_only(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", model=bert(**SMALL), plan=plan(2))
    folder = save_compressed(first.model, tmp_path / "once", plan(2))
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    again = trained(tmp_path / "again", model=loaded, plan=plan(3))
    assert len(skipped_layers(again.model)) == 1
    depth = Depth.of(AutoModelForSequenceClassification.from_pretrained(folder).config)
    assert depth == Depth(5, skipped_layers(first.model))
    save_compressed(again.model, tmp_path / "twice", plan(3))
    with pytest.raises(ValueError, match="The recipe asks for `--prune_layers 4`, but 3 layers were dropped"):
        save_compressed(again.model, tmp_path / "more", plan(4))


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
BEST |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


def test_the_best_model_is_one_with_all_layers_dropped(tmp_path: Path) -> None:
    run = make(tmp_path, model=bert(**SMALL), plan=plan(), build={"compute_metrics": rising()}, **BEST | RISING)
    run.train()
    assert run.state.best_global_step == 8, "the first that was evaluated after step 7"


RISING = {"metric_for_best_model": "score", "greater_is_better": False}


def rising() -> Any:
    """Return metrics that are worse whenever they are asked for."""
    scores = iter(range(100))
    return lambda _: {"score": next(scores)}


def test_a_run_that_stops_early_fails_and_says_so(tmp_path: Path) -> None:
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    build = {"compute_metrics": rising()}
    run = make(tmp_path, model=bert(**SMALL), plan=plan(), build=build, callbacks=[stopping], **BEST | RISING)
    with pytest.raises(RuntimeError, match=r"stopped at step . of 12 with . of 3 layers dropped.*`--prune_end`"):
        run.train()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (lambda: PruningArguments(prune_layers=-1), "must be a number of layers to drop"),
        (lambda: plan(prune_sparsity=0.5, prune_scope="global"), "`--prune_scope` must be layer"),
        (lambda: plan(prune_pattern="heads", prune_keep=["a=1"]), "`--prune_keep` and `--compress_speedup` say"),
        (lambda: Recipe(pruning=plan().pruning, speed=SpeedArguments(2.0)), "`--prune_keep` and `--compress_speedup`"),
        (
            lambda: Recipe(pruning=plan().pruning, budget=BudgetArguments(3.0)),
            "after `--compress_budget_mb` has spent",
        ),
        (
            lambda: Recipe(DistillationArguments("self", distill_layer_loss=["hidden=1"]), plan().pruning),
            "drops layers that `--distill_layer_loss` compares",
        ),
        (
            lambda: Recipe(pruning=plan().pruning, quantization=QuantizationArguments("int8", quant_freeze=0.5)),
            "Give a `--quant_freeze` of 0.6 or more",
        ),
        (lambda: LayerDroppingCallback(PruningArguments()), "must be at least 1"),
    ],
)
def test_what_does_not_go_with_dropped_layers_is_refused(recipe: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe()


def excluding(**options: Any) -> Recipe:
    return Recipe(pruning=plan().pruning, quantization=QuantizationArguments("int8", **options))


@pytest.mark.parametrize(
    ("recipe", "model", "said"),
    [
        (plan(5), bert, r"must be from 0 to 4 for this BertForSequenceClassification with 5 layers"),
        (plan(1), lambda **_: deep("t5", SEQ2SEQ), "two stacks of layers.*`--distill_student_layers`"),
        (excluding(quant_exclude=["layer.4"]), bert, "`--quant_exclude` layer.4 matches in some layers"),
        (excluding(quant_bits=["layer.[01].*=4"]), bert, "`--quant_bits` .* matches in some layers"),
        (plan(prune_sparsity=0.5, prune_exclude=["layer.0"]), bert, "`--prune_exclude` layer.0 matches in some"),
    ],
)
def test_models_and_patterns_that_do_not_fit_are_refused(
    recipe: Recipe, model: Any, said: str, tmp_path: Path
) -> None:
    run = make(tmp_path, model=model(**SMALL), plan=recipe)
    with pytest.raises(ValueError, match=said):
        run.train()
    assert run.state.global_step == 0


def test_a_trainer_without_rows_for_its_callbacks_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path, model=bert(**SMALL))
    with pytest.raises(ValueError, match="gives its callbacks no `train_dataloader`"):
        LayerDroppingCallback(plan().pruning).on_train_begin(run.args, run.state, run.control, model=run.model)


def test_names_say_what_is_dropped() -> None:
    assert plan(2, prune_sparsity=0.6).name == "mp60+drop2"
    with pytest.warns(UserWarning, match="`--prune_scope` has no effect without `--prune_sparsity`"):
        assert plan(2, prune_begin=0.2, prune_scope="global").name == "drop2"
