"""Pruning inside a real Trainer: exact zeros on schedule, through momentum, resuming and best models."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, multiprocessing, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2ForSequenceClassification,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from hf_compress.models.targets import prunable
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.callback import PruningCallback
from hf_compress.prune.schedules import SCHEDULES

GRADUAL = {"prune_sparsity": 0.6, "prune_begin": 0.1, "prune_end": 0.6, "prune_every": 1}


def trainer(
    model: PreTrainedModel,
    dataset: Dataset,
    folder: Path,
    pruning: dict[str, Any] | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    compute_metrics: Callable[..., dict[str, float]] | None = None,
    **settings: Any,
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 10,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 0,
        }
        | settings,
    )
    return Trainer(
        model,
        arguments,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(8)),
        callbacks=[*callbacks, PruningCallback(PruningArguments(**GRADUAL | (pruning or {})))],
        optimizers=(optimizer(list(model.parameters())) if optimizer else None, None),
        compute_metrics=compute_metrics,
    )


def zeros(model: PreTrainedModel) -> dict[str, int]:
    return {target.name: int((target.weight == 0).sum()) for target in prunable(model)}


def sizes(model: PreTrainedModel) -> dict[str, int]:
    return {target.name: target.weight.numel() for target in prunable(model)}


class Watcher(TrainerCallback):
    """Records sparsity and zeros after every step."""

    def __init__(self) -> None:
        self.sparsity: list[float] = []
        self.pruned: list[dict[str, Tensor]] = []

    def on_step_end(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        self.pruned.append({target.name: target.weight == 0 for target in prunable(model)})
        self.sparsity.append(sum(zeros(model).values()) / sum(sizes(model).values()))


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


def test_every_layer_ends_at_exactly_the_target(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_sparsity": 0.37}).train()
    assert zeros(tiny_bert) == {name: round(0.37 * size) for name, size in sizes(tiny_bert).items()}


def test_the_whole_model_ends_at_exactly_the_target(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_sparsity": 0.37, "prune_scope": "global"}).train()
    assert sum(zeros(tiny_bert).values()) == round(0.37 * sum(sizes(tiny_bert).values()))
    assert len({zeros(tiny_bert)[name] / size for name, size in sizes(tiny_bert).items()}) > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sparsity_follows_the_schedule_step_by_step(
    schedule: str, tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    watcher = Watcher()
    settings = {"prune_schedule": schedule, "prune_initial_sparsity": 0.1, "prune_begin": 0.2, "prune_every": 3}
    run = trainer(tiny_bert, tiny_dataset, tmp_path, settings | {"prune_end": 0.9}, (watcher,))
    run.train()
    # Chosen at steps 2, 5, 8, and at 9, the last.
    progress = [None, 0.0, 0.0, 0.0, 3 / 7, 3 / 7, 3 / 7, 6 / 7, 1.0, 1.0]
    expected = [0.0 if share is None else SCHEDULES[schedule](share, 0.1, 0.6) for share in progress]
    assert watcher.sparsity == pytest.approx(expected, abs=1e-3)
    logged = [entry["sparsity"] for entry in run.state.log_history if "loss" in entry]
    assert logged == watcher.sparsity


def test_initial_sparsity_holds_at_once_if_pruning_begins_at_0(
    tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    watcher = Watcher()
    trainer(
        tiny_bert,
        tiny_dataset,
        tmp_path,
        {"prune_begin": 0.0, "prune_end": 1.0, "prune_initial_sparsity": 0.3},
        (watcher,),
    ).train()
    assert watcher.sparsity[0] == pytest.approx(0.3, abs=1e-3)
    assert watcher.sparsity[-1] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    ],
    ids=["adamw", "sgd"],
)
def test_pruned_weights_stay_zero_and_the_others_learn(
    optimizer: Callable, tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    watcher = Watcher()
    run = trainer(
        tiny_bert, tiny_dataset, tmp_path, {"prune_every": 4, "prune_end": 0.5}, (watcher,), optimizer, max_steps=16
    )
    parameters = dict(tiny_bert.named_parameters())
    at_target: dict[str, Tensor] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, *_: Any, model: PreTrainedModel, **__: Any) -> None:
            if state.global_step == 8:
                at_target.update({target.name: target.weight.detach().clone() for target in prunable(model)})

    run.add_callback(Keep())
    run.train()
    for before, after in zip(watcher.pruned[:-1], watcher.pruned[1:], strict=True):
        assert all((after[name] >= before[name]).all() for name in before)
    for name, parameter in tiny_bert.named_parameters():
        assert parameter is parameters[name]
        assert run.optimizer.state[parameter], "the optimizer trains a ghost"
    for target in prunable(tiny_bert):
        kept = target.weight != 0
        assert (target.weight[kept] != at_target[target.name][kept]).float().mean() > 0.5


class Leaps(torch.optim.SGD):
    """An optimizer that moves every zero weight beyond the largest other weight."""

    @torch.no_grad()
    def step(self, *_: Any) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter[parameter == 0] = 100.0


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruned_weights_stay_zero_under_any_optimizer_step(
    scope: str, tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Also in steps in which weights are chosen: there it must not compete with those that are kept."""
    watcher = Watcher()
    trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_scope": scope}, (watcher,), Leaps).train()
    for before, after in zip(watcher.pruned[:-1], watcher.pruned[1:], strict=True):
        assert all((after[name] >= before[name]).all() for name in before)
    assert watcher.sparsity[0] < watcher.sparsity[2] < watcher.sparsity[-1] == pytest.approx(0.6, abs=1e-3)


def test_pruned_weights_are_positive_zeros(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(tiny_bert, tiny_dataset, tmp_path).train()
    for target in prunable(tiny_bert):
        assert not torch.signbit(target.weight[target.weight == 0]).any()


def test_embeddings_and_head_stay_dense(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_sparsity": 0.9}).train()
    pruned = {f"{name}.weight" for name in zeros(tiny_bert)}
    dense = {name: tensor for name, tensor in tiny_bert.named_parameters() if name not in pruned and tensor.ndim == 2}
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= set(dense)
    padding = tiny_bert.config.pad_token_id
    for name, tensor in dense.items():
        tensor = tensor.detach().clone()
        if name.endswith("word_embeddings.weight"):
            tensor = torch.cat([tensor[:padding], tensor[padding + 1 :]])  # Zero from the start.
        assert (tensor != 0).all(), name
    assert all((tensor != 0).any() for name, tensor in tiny_bert.named_parameters() if name.endswith("bias"))


def test_excluded_layers_stay_dense(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_exclude": ["pooler", r"layer\.0\..*query"]}).train()
    dense = {name for name, count in zeros(tiny_bert).items() if count == 0}
    assert dense == {"bert.pooler.dense", "bert.encoder.layer.0.attention.self.query"}


def test_shared_layers_are_counted_once(tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = AlbertForSequenceClassification(
        AlbertConfig(
            vocab_size=40,
            embedding_size=8,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    trainer(model, tiny_dataset, tmp_path, {"prune_scope": "global"}).train()
    assert sum(zeros(model).values()) == round(0.6 * sum(sizes(model).values()))


def test_a_layer_that_a_common_threshold_empties_is_named(
    tiny_bert: PreTrainedModel, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    small = prunable(tiny_bert)[-1]
    with torch.no_grad():
        small.weight.mul_(1e-3)
    run = trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_scope": "global"})
    with pytest.warns(UserWarning, match=f"`--prune_scope global`.*1 of .*--prune_exclude {small.name}"):
        run.train()


def test_two_layers_with_one_weight_are_counted_once(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    layers = tiny_bert.bert.encoder.layer
    layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
    run = trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_scope": "global"})
    run.train()
    total = sum(tiny_bert.get_parameter(f"{name}.weight").numel() for name in sizes(tiny_bert)) - 32 * 32
    unique = {id(target.weight): target.weight for target in prunable(tiny_bert)}.values()
    assert sum(int((weight == 0).sum()) for weight in unique) == round(0.6 * total)


def test_conv1d_layers_are_pruned(tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model = GPT2ForSequenceClassification(config)
    trainer(model, tiny_dataset, tmp_path).train()
    assert zeros(model) == {name: round(0.6 * size) for name, size in sizes(model).items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_any_width_are_pruned(dtype: torch.dtype, tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(tiny_bert.to(dtype), tiny_dataset, tmp_path).train()
    found = zeros(tiny_bert)
    assert all(0 <= found[name] - round(0.6 * size) <= 2 for name, size in sizes(tiny_bert).items())


def test_masks_take_one_byte_per_prunable_weight(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    taken = []

    class Measure(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            taken.append(sum(mask.nbytes for mask in callback._masking.masks or []))

    run = trainer(tiny_bert, tiny_dataset, tmp_path, callbacks=(Measure(),))
    callback = next(known for known in run.callback_handler.callbacks if isinstance(known, PruningCallback))
    run.train()
    assert max(taken) == sum(sizes(tiny_bert).values())
    assert callback._masking is None, "masks are kept after training"


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_resumed_run_equals_the_uninterrupted_one(
    scope: str, make_bert: Callable, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    pruning = {"prune_every": 3, "prune_begin": 0.2, "prune_scope": scope}
    whole = trainer(make_bert(), tiny_dataset, tmp_path, pruning, **settings)
    whole.train()
    for step in (8, 6, 4, 3, 1):  # Each run writes the checkpoints behind its own anew.
        resumed = trainer(make_bert(seed=1), tiny_dataset, tmp_path, pruning, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(parameter, other), (step, name)
            states = whole.optimizer.state[parameter], resumed.optimizer.state[other]
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), (step, name)
        history = [[entry.get("sparsity") for entry in run.state.log_history] for run in (whole, resumed)]
        assert history[0] == history[1], step


def test_a_kept_weight_that_becomes_zero_does_not_break_resume(
    make_bert: Callable, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Zeros do not show whether they were pruned, so saving derives the masks again too."""

    class Strike(TrainerCallback):
        """Sets a kept weight before all pruned ones to zero, as an optimizer might by accident."""

        def on_optimizer_step(
            self, args: Any, state: TrainerState, *_: Any, model: PreTrainedModel, **__: Any
        ) -> None:
            if state.global_step == 7:
                weight = prunable(model)[0].weight.detach().view(-1)
                weight[weight.nonzero()[0]] = 0

    settings = {"save_strategy": "steps", "save_steps": 8}
    whole = trainer(make_bert(), tiny_dataset, tmp_path, {}, (Strike(),), **settings)
    whole.train()
    resumed = trainer(make_bert(seed=1), tiny_dataset, tmp_path, {}, (Strike(),), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert zeros(whole.model) == {name: round(0.6 * size) for name, size in sizes(whole.model).items()}
    for parameter, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_checkpoints_hold_nothing_of_ours(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    keys = set(tiny_bert.state_dict())
    run = trainer(tiny_bert, tiny_dataset, tmp_path)
    run.train()
    assert set(tiny_bert.state_dict()) == keys
    assert "PruningCallback" not in run.state.stateful_callbacks


def test_training_twice_works(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = trainer(tiny_bert, tiny_dataset, tmp_path)
    run.train()
    run.train()
    assert zeros(tiny_bert) == {name: round(0.6 * size) for name, size in sizes(tiny_bert).items()}


def test_evaluation_reports_no_sparsity_of_its_own(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = trainer(tiny_bert, tiny_dataset, tmp_path)
    run.train()
    assert "sparsity" not in run.evaluate()


def falling() -> Callable[..., dict[str, float]]:
    """Return a metric that is best at the first evaluation and worse at each later one."""
    values = iter(range(100, 0, -1))
    return lambda _: {"score": float(next(values))}


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_the_best_model_is_never_one_short_of_the_target(
    limit: int | None, tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = trainer(tiny_bert, tiny_dataset, tmp_path, compute_metrics=falling(), **BEST | {"save_total_limit": limit})
    run.train()
    # The target is reached at step 6, and the score falls: the first that qualifies is the best.
    assert run.state.best_global_step == 6
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-6"
    assert zeros(tiny_bert) == {name: round(0.6 * size) for name, size in sizes(tiny_bert).items()}
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {None: {f"checkpoint-{step}" for step in (2, 4, 6, 8, 10)}, 1: {"checkpoint-6"}}.get(
        limit, {"checkpoint-6", "checkpoint-10"}
    )


def test_save_strategy_best_keeps_only_models_at_the_target(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    settings = BEST | {"save_strategy": "best", "save_total_limit": 1}
    run = trainer(tiny_bert, tiny_dataset, tmp_path, compute_metrics=falling(), **settings)
    run.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_resumed_run_keeps_the_best_model_from_before(
    make_bert: Callable, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    trainer(make_bert(), tiny_dataset, tmp_path, compute_metrics=falling(), **BEST).train()
    run = trainer(make_bert(), tiny_dataset, tmp_path, compute_metrics=lambda _: {"score": 0.0}, **BEST)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert run.state.best_global_step == 6


def test_early_stopping_counts_afresh_from_the_target(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    stopping = EarlyStoppingCallback(early_stopping_patience=3)
    settings = BEST | {"max_steps": 20}
    run = trainer(
        tiny_bert, tiny_dataset, tmp_path, {"prune_end": 0.4}, (stopping,), compute_metrics=falling(), **settings
    )
    run.train()
    assert run.state.global_step == 8 + 3 * 2
    assert zeros(tiny_bert) == {name: round(0.6 * size) for name, size in sizes(tiny_bert).items()}


def test_a_run_that_stops_short_of_its_target_fails(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    run = trainer(tiny_bert, tiny_dataset, tmp_path, callbacks=(stopping,), compute_metrics=falling(), **BEST)
    with pytest.raises(RuntimeError, match=r"stopped at step 4 of 10 .*reached at step 6.*`--prune_end`"):
        run.train()


def test_an_abandoned_trial_does_not_fail_the_search(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Trainer calls `on_train_end` in the middle of such a trial, before it raises `TrialPruned`."""
    run = trainer(tiny_bert, tiny_dataset, tmp_path, callbacks=(Stop(4),))
    with pytest.raises(RuntimeError, match="stopped at step 4"):
        run.train()
    run.state.is_hyper_param_search, run.control.should_training_stop = True, False
    run.callback_handler.on_train_end(run.args, run.state, run.control)


def test_a_run_without_a_qualified_checkpoint_fails(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    scores = iter([2.0, 1.0] + [float("nan")] * 3)  # There is a best model, but from before the target.
    metrics = lambda _: {"score": next(scores)}  # noqa: E731
    run = trainer(tiny_bert, tiny_dataset, tmp_path, compute_metrics=metrics, **BEST)
    with pytest.raises(RuntimeError, match="`--load_best_model_at_end` finds no checkpoint"):
        run.train()


@pytest.mark.parametrize(("scope", "where"), [("layer", r"encoder\.layer\.1\..*query"), ("global", "the whole model")])
def test_a_model_that_lost_its_zeros_at_the_end_fails(
    scope: str, where: str, tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    class Revive(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, *_: Any, model: PreTrainedModel, **__: Any) -> None:
            if state.global_step == 10:
                nn.init.normal_(model.bert.encoder.layer[1].attention.self.query.weight)

    run = trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_scope": scope}, (Revive(),))
    with pytest.raises(RuntimeError, match=rf"reached and lost again.*{where}"):
        run.train()


def test_a_diverged_run_says_so(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    class Diverge(TrainerCallback):
        def on_step_begin(self, args: Any, state: TrainerState, *_: Any, model: PreTrainedModel, **__: Any) -> None:
            if state.global_step == 4:
                model.bert.pooler.dense.weight.data[0, 0] = float("nan")

    with pytest.raises(ValueError, match="holds NaN"):
        trainer(tiny_bert, tiny_dataset, tmp_path, callbacks=(Diverge(),)).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_sparsity": 1.0}, r"`--prune_sparsity` must .*\[0, 1\); got 1.0\. Give"),
        ({"prune_sparsity": -0.1}, r"`--prune_sparsity` must .*\[0, 1\); got -0.1\. Give"),
        ({"prune_sparsity": float("nan")}, r"`--prune_sparsity` must .*got nan"),
        ({"prune_schedule": "exponential"}, r"`--prune_schedule` must be one of cubic, linear; got 'exponential'\. C"),
        ({"prune_initial_sparsity": 0.7}, r"`--prune_initial_sparsity` must .*\[0, 0.6\]; got 0.7\. Lower"),
        ({"prune_initial_sparsity": -0.1}, r"`--prune_initial_sparsity` must .*\[0, 0.6\]; got -0.1\."),
        ({"prune_begin": -0.1}, r"`--prune_begin` must .*\[0, 1\]; got -0.1\. Give"),
        ({"prune_begin": 1.1}, r"`--prune_begin` must .*\[0, 1\]; got 1.1\. Give"),
        ({"prune_begin": 0.6}, r"`--prune_end` must .*\(0.6, 1\]; got 0.6\. Raise"),
        ({"prune_end": 0.05}, r"`--prune_end` must .*\(0.1, 1\]; got 0.05\. Raise"),
        ({"prune_end": 1.5}, r"`--prune_end` must .*\(0.1, 1\]; got 1.5\. Raise"),
        ({"prune_every": 0}, r"`--prune_every` must be at least 1 .*; got 0\. Give"),
        ({"prune_scope": "row"}, r"`--prune_scope` must be one of layer, global; got 'row'\. Choose"),
        ({"prune_criterion": "luck"}, r"`--prune_criterion` must be one of magnitude, .*; got 'luck'\. Choose"),
        ({"prune_pattern": "1:9"}, r"`--prune_pattern` must be one of unstructured, .*; got '1:9'\. Choose"),
    ],
)
def test_options_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningArguments(**GRADUAL | settings)


def test_nothing_is_pruned_by_default() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not PruningArguments().enabled
        assert PruningArguments(prune_sparsity=0.6).enabled


def test_every_option_can_be_given_on_the_command_line() -> None:
    line = "--prune_sparsity 0.5 --prune_scope global --prune_exclude pooler query --prune_every 3"
    (arguments,) = HfArgumentParser(PruningArguments).parse_args_into_dataclasses(line.split())
    assert arguments == PruningArguments(
        prune_sparsity=0.5, prune_scope="global", prune_exclude=["pooler", "query"], prune_every=3
    )
    assert len(fields(arguments)) == 13


def test_a_callback_without_a_sparsity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`--prune_sparsity` must be in \(0, 1\).*got 0.0"):
        PruningCallback(PruningArguments())


def test_a_run_too_short_for_its_schedule_is_refused(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    watcher = Watcher()
    run = trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_end": 0.12}, (watcher,))
    with pytest.raises(ValueError, match=r"leave no step to prune in: of 10 .*begin at 1 and end at 1\. Train longer"):
        run.train()
    assert not watcher.sparsity


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prune_every": 10}, "only 5 of 10 steps .* Lower it, or train longer"),
        (
            {"prune_every": 1, "prune_end": 0.2},
            r"only 1 of 10 steps are between `--prune_begin` and `--prune_end`\. Train",
        ),
    ],
)
def test_pruning_in_one_leap_warns(
    options: dict[str, Any], said: str, tiny_bert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=f"`--prune_every {options['prune_every']}` prunes in one leap: {said}"):
        trainer(tiny_bert, tiny_dataset, tmp_path, options).train()
    assert zeros(tiny_bert) == {name: round(0.6 * size) for name, size in sizes(tiny_bert).items()}


def test_an_exclude_pattern_that_matches_nothing_is_refused(tiny_bert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    watcher = Watcher()
    run = trainer(tiny_bert, tiny_dataset, tmp_path, {"prune_exclude": ["decoder"]}, (watcher,))
    with pytest.raises(ValueError, match="`--prune_exclude decoder` matches none"):
        run.train()
    assert not watcher.sparsity


def begin(model: PreTrainedModel) -> PruningCallback:
    """Return a callback at the start of training, without a Trainer."""
    callback = PruningCallback(PruningArguments(**GRADUAL))
    callback.on_train_begin(SimpleNamespace(fp16=False), TrainerState(max_steps=10), SimpleNamespace(), model=model)
    return callback


@pytest.mark.parametrize("shape", [(0,), (1024,)], ids=["taken apart", "flat"])
def test_weights_that_are_not_whole_are_refused(
    shape: tuple[int, ...], tiny_bert: BertForSequenceClassification
) -> None:
    tiny_bert.bert.pooler.dense.weight = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense is of shape .*Use FSDP2"):
        begin(tiny_bert)


CASES = {
    "equal": None,
    "different": "chosen different weights to prune in 1 of 7 layers, the first being bert.pooler.dense",
}


def small_bert() -> BertForSequenceClassification:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=1, max_position_embeddings=8))


def in_two_processes(rank: int, folder: str) -> None:
    """Write, for each case, how many weights this process has chosen to prune, or the error."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for case in CASES:
        model = small_bert()
        if case == "different" and rank == 1:
            model.bert.pooler.dense.weight.data = model.bert.pooler.dense.weight.data.flip(0)  # As many zeros.
        try:
            callback = begin(model)
            callback._choose(6)
            outcome = str(sum(int((mask == 0).sum()) for mask in callback._masking.masks or []))
        except (ValueError, RuntimeError) as error:
            outcome = str(error)
        Path(folder, f"{case}-{rank}").write_text(outcome)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(in_two_processes, (str(folder),), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree_or_both_fail_loudly(case: str, two_processes: Path) -> None:
    expected = CASES[case] or str(sum(round(0.6 * size) for size in sizes(small_bert()).values()))
    found = [(two_processes / f"{case}-{rank}").read_text() for rank in range(2)]
    assert all(expected in text for text in found), found
