"""What Transformers tests of its own Trainer holds for ours, with no method and with all of them.

Each setting runs with the plain `Trainer`, and with `DistillationTrainer` or `compress`. Without a method, ours has
the same bits and the same history. With all methods the losses differ; steps, epochs, learning rates, events,
evaluations, checkpoints and their files do not.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedModel, Trainer, TrainerCallback

from hf_compress import DistillationArguments, DistillationTrainer, Recipe, compress
from tests.invariants.harness import METHODS, logged, make, recipe, rows, same
from tests.tiny import NO_DROPOUT, bert

STEPS = {"max_steps": 6}
CLOCK = ("_runtime", "_per_second", "_time")


def whole_recipe() -> Recipe:
    """The recipe of all methods, with the model before training as its teacher."""
    others = recipe(METHODS)
    return Recipe(DistillationArguments(distill_teacher="self"), others.pruning, others.quantization)


def by_compress(plan: Recipe) -> Callable[..., Trainer]:
    """Return what builds a plain Trainer and makes it compress by `plan`."""

    def build(folder: Path, **settings: Any) -> Trainer:
        return compress(make(folder, trainer_class=Trainer, **settings), plan)

    return build


PLAIN = {"trainer_class": Trainer}
OURS: dict[str, Callable[..., Trainer]] = {
    "trainer": lambda folder, **settings: make(folder, trainer_class=DistillationTrainer, **settings),
    "compress": by_compress(Recipe()),
}
ALL: dict[str, Callable[..., Trainer]] = {
    "trainer": lambda folder, **settings: make(folder, METHODS, trainer_class=DistillationTrainer, **settings),
    "compress": by_compress(whole_recipe()),
}


def history(run: Trainer, *only: str) -> list[dict[str, Any]]:
    """Return what was logged without times, or the values named `only`."""
    lines = [
        {name: value for name, value in line.items() if not name.endswith(CLOCK) and "_mem_" not in name}
        for line in run.state.log_history
    ]
    return [{name: line[name] for name in only if name in line} for line in lines] if only else lines


def tree(folder: Path) -> list[str]:
    """Return the names of all files in the checkpoints in `folder`."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob("checkpoint-*/*"))


class Stream(IterableDataset):
    """Rows without a length."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(rows(40))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "logging every other step": {"logging_steps": 2, "logging_first_step": True},
    "logging by epochs": {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
    "logging by a share of steps": {"logging_steps": 0.5},
    "accumulation": {"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 2},
    "accumulation with fewer rows at the end": {"gradient_accumulation_steps": 3, "data": rows(44)},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "label smoothing under accumulation": {"label_smoothing_factor": 0.2, "gradient_accumulation_steps": 2},
    "evaluation": EVALUATED,
    "evaluation at the start": EVALUATED | {"eval_on_start": True},
    "evaluation after a delay": EVALUATED | {"eval_delay": 3},
    "evaluation in parts": EVALUATED | {"eval_accumulation_steps": 1, "per_device_eval_batch_size": 3},
    "evaluation of the loss": EVALUATED | {"prediction_loss_only": True},
    "evaluation by metrics": EVALUATED | {"build": {"compute_metrics": accuracy}},
    "evaluation of half precision": EVALUATED | {"bf16_full_eval": True},
    "checkpoints": {"save_strategy": "steps", "save_steps": 2},
    "checkpoints with a limit": {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2},
    "checkpoints of the model": {"save_strategy": "steps", "save_steps": 3, "save_only_model": True},
    "checkpoints by epochs": {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
    "noise on embeddings": {"neftune_noise_alpha": 5.0},
    "iterable data": {"data": Stream(), "build": {"eval_dataset": rows(8)}},
    "cosine schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 2},
    "constant schedule with warmup": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
    "polynomial schedule": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    "schedule by plateau": EVALUATED
    | {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss", "max_steps": 8}
    | {"lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0}},
    "clipped gradients": {"max_grad_norm": 0.01},
    "no clipping": {"max_grad_norm": 0.0},
    "a fraction of an epoch": {"max_steps": -1, "num_train_epochs": 0.7},
    "dropped last batch": {"data": rows(44), "dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 2},
    "another seed of the data": {"data_seed": 9},
    "rows by length": {"train_sampling_strategy": "group_by_length"},
    "tokens counted": {"include_num_input_tokens_seen": "all"},
    "memory measured": {"skip_memory_metrics": False},
    "another optimizer": {"optim": "adafactor"},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings named `name`, with a new model and new rows for each run."""
    return STEPS | {"model": bert()} | SETTINGS[name]


def either(name: str) -> str:
    """Return the way to ours for a setting: they take turns, since each setting costs seconds."""
    return list(OURS)[list(SETTINGS).index(name) % 2]


def fresh(build: Callable[..., Trainer], folder: Path, name: str) -> Trainer:
    settings = settings_of(name)
    more = settings.get("build", {})
    if isinstance(settings.get("data"), Stream):
        folder.mkdir(exist_ok=True)
        build = streamed(build)
        settings["build"] = {key: value for key, value in more.items() if key != "eval_dataset"}
    return build(folder, **settings)


def streamed(build: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """Return `build` for rows that cannot be sliced: they are put into the finished Trainer."""

    def run(folder: Path, **settings: Any) -> Trainer:
        stream = settings.pop("data")
        trainer = build(folder, **settings)
        trainer.train_dataset = stream
        return trainer

    return run


def plain(folder: Path, **settings: Any) -> Trainer:
    return make(folder, **PLAIN, **settings)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated")
@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("accumulation")])
def test_without_a_method_ours_is_the_plain_trainer(name: str, tmp_path: Path) -> None:
    kind = either(name)
    ordinary = fresh(plain, tmp_path / "plain", name)
    output = ordinary.train()
    ours = fresh(OURS[kind], tmp_path / "ours", name)
    found = ours.train()
    assert same(dict(ours.model.state_dict()), dict(ordinary.model.state_dict()))
    assert same(history(ours), history(ordinary))
    assert output.metrics.keys() == found.metrics.keys() and output.training_loss == found.training_loss
    assert tree(tmp_path / "ours") == tree(tmp_path / "plain")
    assert ours.state.num_input_tokens_seen == ordinary.state.num_input_tokens_seen


# One setting of each kind; the others take as long, and run with the slow tests.
OF_EACH_KIND = {"nothing", "accumulation", "label smoothing", "evaluation", "checkpoints", "noise on embeddings"}
OF_EACH_KIND |= {"iterable data", "cosine schedule", "schedule by plateau", "gradient checkpointing"}


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated")
@pytest.mark.parametrize(
    "name", [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_all_methods_keep_the_plain_trainers_rhythm(name: str, tmp_path: Path) -> None:
    kind = either(name)
    ordinary = fresh(plain, tmp_path / "plain", name)
    output = ordinary.train()
    ours = fresh(ALL[kind], tmp_path / "ours", name)
    found = ours.train()
    rhythm = ("step", "epoch", "num_input_tokens_seen")
    assert history(ours, *rhythm) == history(ordinary, *rhythm)
    if "plateau" not in name:  # There it depends on the losses.
        assert history(ours, "learning_rate") == history(ordinary, "learning_rate")
    for line, given in zip(history(ours), history(ordinary), strict=True):
        assert given.keys() <= line.keys()
        numbers = [value for value in line.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers))
    assert output.metrics.keys() == found.metrics.keys()
    assert (ours.state.global_step, ours.state.max_steps) == (ordinary.state.global_step, ordinary.state.max_steps)
    assert tree(tmp_path / "ours") == tree(tmp_path / "plain")


@pytest.mark.parametrize("kind", OURS)
def test_under_accumulation_ours_takes_the_mean_of_micro_batches(kind: str, tmp_path: Path) -> None:
    """The plain Trainer takes their sum: it expects models to divide by `num_items_in_batch`, and BERT does not."""
    settings = {"gradient_accumulation_steps": 3, "max_grad_norm": 0.0, **STEPS}
    ordinary = plain(tmp_path / "plain", model=bert(), **settings)
    ordinary.train()
    ours = OURS[kind](tmp_path / "ours", model=bert(), **settings)
    ours.train()
    for name in ("loss", "grad_norm"):
        assert 3 * logged(ours, name)[0][0] == pytest.approx(logged(ordinary, name)[0][0], rel=1e-5)
    assert history(ours, "step", "epoch", "learning_rate") == history(ordinary, "step", "epoch", "learning_rate")


EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


class Recorder(TrainerCallback):
    """Writes down every event with its step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []


for _event in EVENTS:

    def _record(self: Any, args: Any, state: Any, control: Any, _event: str = _event, **_: Any) -> None:
        self.seen.append((_event, state.global_step))

    setattr(Recorder, _event, _record)


@pytest.mark.parametrize("kind", ALL)
def test_a_users_callback_sees_the_same_events(kind: str, tmp_path: Path) -> None:
    events = []
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3}
    for build in (plain, ALL[kind]):
        recorder = Recorder()
        run = build(tmp_path / str(len(events)), model=bert(), callbacks=[recorder], **STEPS | EVALUATED | settings)
        run.train()
        run.evaluate()
        run.predict(rows(8))
        events.append([event for event in recorder.seen if event[0] != "on_init_end"])
    assert events[0] == events[1]
    assert {"on_substep_end", "on_pre_optimizer_step", "on_prediction_step", "on_predict", "on_save"} <= {
        name for name, _ in events[0]
    }


@pytest.mark.parametrize("kind", ALL)
def test_smoothed_labels_give_the_plain_label_loss(kind: str, tmp_path: Path) -> None:
    """In the first step nothing is pruned or rounded yet."""
    settings = {"label_smoothing_factor": 0.3, **STEPS}
    ordinary = plain(tmp_path / "plain", model=bert(**NO_DROPOUT), **settings)
    ordinary.train()
    ours = ALL[kind](tmp_path / "ours", model=bert(**NO_DROPOUT), **settings)
    ours.train()
    assert logged(ours, "label_loss")[0] == pytest.approx(logged(ordinary, "loss")[0], rel=1e-5)


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_predictions_are_those_of_the_plain_trainer(kind: str, tmp_path: Path) -> None:
    """Before training: no method has changed the model."""
    more = {"build": {"compute_metrics": accuracy}, "per_device_eval_batch_size": 5}
    outputs = [build(tmp_path, model=bert(), **more).predict(rows(23)) for build in (plain, ALL[kind])]
    assert np.array_equal(outputs[0].predictions, outputs[1].predictions)
    assert np.array_equal(outputs[0].label_ids, outputs[1].label_ids)
    scores = [{n: v for n, v in output.metrics.items() if not n.endswith(CLOCK)} for output in outputs]
    assert scores[0] == scores[1] and scores[0].keys() >= {"test_loss", "test_accuracy"}


@pytest.mark.parametrize("kind", ALL)
def test_several_evaluation_sets_are_scored_under_their_names(kind: str, tmp_path: Path) -> None:
    lines = []
    for build in (plain, ALL[kind]):
        run = build(tmp_path, model=bert(), **STEPS, **EVALUATED)
        run.eval_dataset = {"few": rows(8), "more": rows(16)}
        run.train()
        lines.append([sorted(line) for line in history(run) if any(name.startswith("eval_") for name in line)])
    assert lines[0] == lines[1] and len(lines[0]) == 6
    assert any("eval_few_loss" in names for names in lines[0])


@pytest.mark.parametrize("kind", ALL)
def test_metrics_by_batches_see_every_batch(kind: str, tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def by_batches(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        seen.append((len(prediction.label_ids), compute_result))
        return {"rows": float(sum(count for count, _ in seen))}

    settings = {"batch_eval_metrics": True, "per_device_eval_batch_size": 6, "include_for_metrics": ["inputs", "loss"]}
    run = ALL[kind](tmp_path, model=bert(), build={"compute_metrics": by_batches}, **settings)
    assert run.evaluate(rows(16))["eval_rows"] == 16
    assert seen == [(6, False), (6, False), (4, True)]


# --- stopping, the best model, and resuming --------------------------------------------------------------------------


def falling() -> Callable[[EvalPrediction], dict[str, float]]:
    scores = itertools.chain([0.5, 0.9, 0.8, 0.7, 0.6], itertools.repeat(0.1))
    return lambda prediction: {"score": next(scores)}


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 12}


@pytest.mark.parametrize("kind", OURS)
def test_patience_and_the_best_model_are_the_plain_trainers(kind: str, tmp_path: Path) -> None:
    runs = []
    for name, build in (("plain", plain), ("ours", OURS[kind])):
        stopping = EarlyStoppingCallback(early_stopping_patience=2)
        more = {"build": {"compute_metrics": falling()}, "callbacks": [stopping]}
        run = build(tmp_path / name, model=bert(), **EVALUATED | BEST | SAVED, **more)
        run.train()
        runs.append(run)
    for run in runs:
        assert (run.state.global_step, run.state.best_metric, run.state.best_global_step) == (8, 0.9, 4)
        assert Path(run.state.best_model_checkpoint).name == "checkpoint-4"
    assert same(dict(runs[0].model.state_dict()), dict(runs[1].model.state_dict()))


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("settings", [{}, {"ignore_data_skip": True}], ids=str)
def test_a_resumed_run_is_that_of_the_plain_trainer(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    plain(tmp_path / "first", model=bert(), **SAVED | settings).train()
    runs = []
    for build in (plain, OURS[kind]):
        run = build(tmp_path / f"run{len(runs)}", model=bert(seed=5), **SAVED | settings)
        run.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-6"))
        runs.append(run)
    assert same(dict(runs[0].model.state_dict()), dict(runs[1].model.state_dict()))
    assert same(history(runs[0]), history(runs[1]))


def test_a_checkpoint_of_ours_loads_in_the_plain_trainer(tmp_path: Path) -> None:
    OURS["trainer"](tmp_path / "ours", model=bert(), **SAVED).train()
    whole = plain(tmp_path / "plain", model=bert(), **SAVED)
    whole.train()
    run = plain(tmp_path / "again", model=bert(seed=5), **SAVED)
    run.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-6"))
    assert same(dict(run.model.state_dict()), dict(whole.model.state_dict()))


# --- batch size, noise, broken losses --------------------------------------------------------------------------------


def small_memory(model: PreTrainedModel, sizes: list[int]) -> PreTrainedModel:
    """Make `model` run out of memory above 4 rows; `sizes` gets the rows of each attempt."""

    def full(module: Any, arguments: Any, named: Any) -> None:
        sizes.append(len(named["input_ids"]))
        if sizes[-1] > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(full, with_kwargs=True)
    return model


@pytest.mark.parametrize("kind", ALL)
def test_the_batch_size_that_fits_is_found_alike(kind: str, tmp_path: Path) -> None:
    found = []
    for build in (plain, ALL[kind]):
        sizes: list[int] = []
        run = build(tmp_path, model=small_memory(bert(), sizes), auto_find_batch_size=True, **STEPS)
        run.train()
        found.append((sorted(set(sizes)), run.state.train_batch_size, run.state.global_step, len(logged(run, "loss"))))
    assert found[0] == found[1]
    assert found[0][1] <= 4


@pytest.mark.parametrize("kind", ALL)
def test_noise_on_embeddings_ends_with_training(kind: str, tmp_path: Path) -> None:
    """And the teacher gets none."""
    run = ALL[kind](tmp_path, model=bert(**NO_DROPOUT), neftune_noise_alpha=50.0, **STEPS)
    embedding = run.model.get_input_embeddings()
    outputs: list[torch.Tensor] = []

    class Look(TrainerCallback):
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            module, ids = model.get_input_embeddings(), torch.arange(8)[None]
            if not outputs:
                outputs.extend(module(ids).detach() for _ in range(2))
                with run.teaching() as teacher, torch.no_grad():
                    outputs.extend(teacher.get_input_embeddings()(ids) for _ in range(2))

    run.add_callback(Look())
    run.train()
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    ids = torch.arange(8)[None]
    embedding = run.model.get_input_embeddings()
    assert torch.equal(embedding(ids), embedding(ids))
    assert not embedding._forward_hooks


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("filtered", [True, False])
def test_losses_that_are_not_finite_are_logged_alike(kind: str, filtered: bool, tmp_path: Path) -> None:
    lines = []
    for build in (plain, ALL[kind]):
        run = build(tmp_path, model=bert(), logging_nan_inf_filter=filtered, logging_steps=6, **STEPS)
        step = run.training_step
        count = itertools.count()

        def broken(*given: Any, step: Any = step, count: Any = count, **named: Any) -> Any:
            loss = step(*given, **named)
            return loss * math.nan if next(count) == 1 else loss

        run.training_step = broken
        run.train()
        lines.append([math.isfinite(line["loss"]) for line in history(run) if "loss" in line])
    assert lines[0] == lines[1] == [filtered]


@pytest.mark.parametrize("kind", OURS)
def test_a_users_optimizer_and_schedule_are_used(kind: str, tmp_path: Path) -> None:
    runs = []
    for build in (plain, OURS[kind]):
        model = bert()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        run = build(tmp_path, model=model, build={"optimizers": (optimizer, schedule)}, **STEPS)
        run.train()
        runs.append(run)
    assert same(dict(runs[0].model.state_dict()), dict(runs[1].model.state_dict()))
    assert history(runs[0], "learning_rate") == history(runs[1], "learning_rate")
