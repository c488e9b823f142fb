"""A run resumed with more steps undoes nothing; and logs are complete for every reporter, in every order."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainerState

from hf_compress.layers.turning import compressed_layers
from tests.invariants.harness import PRUNE, QUANT, make, recipe, trained


class Watch(TrainerCallback):
    """Records, after each step, the share of pruned weights and whether layers round."""

    def __init__(self) -> None:
        self.rounds: list[bool] = []

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, model: Any, **__: Any) -> None:
        self.rounds.append(any(layer.quantizing for layer in compressed_layers(model).values()))


@pytest.mark.parametrize(("epochs", "saved"), [(4, 12), (5, 6), (5, 8)])
def test_sparsity_never_falls_and_rounding_never_ends(saved: int, epochs: int, tmp_path: Path) -> None:
    methods, settings = (PRUNE, QUANT), {"max_steps": -1, "save_strategy": "steps", "save_steps": 2}
    plan = recipe(methods)
    plan.quantization.quant_begin = 0.45
    trained(tmp_path, methods, plan=plan, num_train_epochs=1.5, **settings)
    watch = Watch()
    resumed = make(tmp_path, methods, plan=plan, num_train_epochs=epochs, callbacks=[watch], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}"))
    sparsity = [line["sparsity"] for line in resumed.state.log_history if "loss" in line]
    assert sparsity == sorted(sparsity) and sparsity[-1] == pytest.approx(0.6, abs=1e-3)
    assert watch.rounds == sorted(watch.rounds) and watch.rounds[0] == (saved > 5)


class Reporter(TrainerCallback):
    """Keeps the logs as an integration such as TensorBoard's is given them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.names |= logs.keys()


@pytest.mark.parametrize("where", ["in front", "behind", "added later", "ours added later"])
def test_every_reporter_sees_our_values(where: str, tmp_path: Path) -> None:
    reporter, plan = Reporter(), recipe((PRUNE, QUANT))
    ours = plan.callbacks()
    given = {"in front": [reporter, *ours], "behind": [*ours, reporter], "added later": ours}.get(where, [reporter])
    run = make(tmp_path, trainer_class=Trainer, callbacks=given)
    for late in {"added later": [reporter], "ours added later": ours}.get(where, []):
        run.add_callback(late)
    run.train()
    assert {"sparsity", "quant_range_mean", "quant_range_max"} <= reporter.names
    run.train()
    assert [type(one).__name__ for one in run.callback_handler.callbacks].count("LogsFirst") == 2
