"""Criteria, patterns and schedules that are added through their registries alone: train, resume, save, load, card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import HfArgumentParser, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_compress import PruningArguments, Recipe, save_compressed
from hf_compress.checkpoint import last_complete_checkpoint
from hf_compress.models.targets import prunable
from hf_compress.prune import CRITERIA, PATTERNS, SCHEDULES, Criterion, Evidence, Pattern, Schedule
from hf_compress.prune.callback import PruningCallback
from hf_compress.prune.state_file import STATE_FILE

MakeBert = Callable[..., PreTrainedModel]
WORDS = {"help": "for a test", "card": "weights chosen for a test"}


def move(evidence: Evidence) -> None:
    """Sum up how fast each weight moves towards zero (Sanh et al., 2020)."""
    score = evidence.memory.setdefault("score", torch.zeros_like(evidence.weight))
    score -= evidence.weight * evidence.gradient


ADDED = [
    Criterion("saliency", lambda e: (e.weight * e.gradient).abs(), **WORDS, needs_gradients=True),
    Criterion("moment", lambda e: e.weight.abs() * e.optimizer["exp_avg_sq"].sqrt(), **WORDS, needs_optimizer=True),
    Criterion("movement", lambda e: e.memory["score"], **WORDS, needs_gradients=True, observe=move),
    Criterion("largest", lambda e: -e.weight.abs(), **WORDS, from_weights=False),
]


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers what the tests add."""
    for criterion in ADDED:
        monkeypatch.setitem(CRITERIA, criterion.name, criterion)
    late = Schedule("late", lambda progress, initial, final: final + (initial - final) * (1 - progress**2), **WORDS)
    monkeypatch.setitem(SCHEDULES, "late", late)
    words = {"help": "four of eight", "card": "Of eight inputs four are zero."}
    monkeypatch.setitem(PATTERNS, "4:8", Pattern("4:8", four_of_eight, **words, most=0.5, joins_inputs=True, inputs=8))


def four_of_eight(scores: Tensor, input_dim: int) -> Tensor:
    """Allow zeros at the four lowest scores of every eight inputs."""
    groups = scores.movedim(input_dim, -1).unflatten(-1, (-1, 8))
    kept = groups.topk(4).indices
    return groups.scatter(-1, kept, torch.inf).flatten(-2).movedim(-1, input_dim)


def trainer(
    model: nn.Module, data: Dataset, folder: Path, *callbacks: TrainerCallback, steps: int = 10, **pruning: Any
) -> Trainer:
    options = {"prune_sparsity": 0.5, "prune_begin": 0.2, "prune_every": 3} | pruning
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    plan = Recipe(pruning=PruningArguments(**options))
    return Trainer(model, arguments, train_dataset=data, callbacks=[*callbacks, *plan.callbacks()])


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {target.name: target.weight.detach() == 0 for target in prunable(model)}


class Watch(TrainerCallback):
    """Records weights and gradients before each optimizer step, and zeros after it."""

    def __init__(self) -> None:
        self.before: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.after: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        self.before.append(
            {one.name: (one.weight.detach().clone(), one.weight.grad.clone()) for one in prunable(model)}
        )

    def on_step_end(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        self.after.append(zeros(model))


@pytest.mark.parametrize("criterion", [one.name for one in ADDED])
def test_a_resumed_run_equals_the_uninterrupted_one(
    criterion: str, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    whole = trainer(make_bert(), tiny_dataset, tmp_path, prune_criterion=criterion)
    whole.train()
    for step in (8, 5, 1):  # Each run writes the checkpoints behind its own anew.
        resumed = trainer(make_bert(seed=1), tiny_dataset, tmp_path, prune_criterion=criterion)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, other), (step, name)
        for entry, again in zip(whole.state.log_history[:-1], resumed.state.log_history[:-1], strict=True):
            assert entry.get("sparsity") == again.get("sparsity"), step
    assert all(int(found.sum()) == round(0.5 * found.numel()) for found in zeros(whole.model).values())


@pytest.mark.parametrize("criterion", [one.name for one in ADDED])
def test_pruned_weights_stay_pruned(
    criterion: str, make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    watch = Watch()
    trainer(make_bert(), tiny_dataset, tmp_path, watch, prune_criterion=criterion).train()
    for less, more in zip(watch.after[:-1], watch.after[1:], strict=True):
        assert all((more[name] >= less[name]).all() for name in less)


def test_scores_see_the_weights_and_gradients_of_their_step(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    watch = Watch()
    pruning = {"prune_begin": 0.0, "prune_initial_sparsity": 0.3, "prune_end": 1.0, "prune_every": 100}
    trainer(make_bert(), tiny_dataset, tmp_path, watch, prune_criterion="saliency", **pruning).train()
    for name, (weight, gradient) in watch.before[0].items():
        scores = (weight * gradient).abs().flatten()
        lowest = scores.sort(stable=True).indices[: round(0.3 * scores.numel())]
        expected = torch.zeros_like(scores, dtype=torch.bool)
        expected[lowest] = True
        assert torch.equal(watch.after[0][name], expected.view(weight.shape)), name


def test_a_schedule_of_another_author_is_followed(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    watch = Watch()
    trainer(make_bert(), tiny_dataset, tmp_path, watch, prune_schedule="late", prune_every=1, prune_end=0.6).train()
    shares = [torch.cat([one.flatten() for one in found.values()]).float().mean() for found in watch.after]
    expected = [0.5 * min(max((step - 2) / 4, 0), 1) ** 2 for step in range(1, 11)]
    assert shares == pytest.approx(expected, abs=1e-3)


def test_a_pattern_of_another_author_is_kept(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = trainer(make_bert(), tiny_dataset, tmp_path, prune_pattern="4:8")
    run.train()
    for found in zeros(run.model).values():
        assert (found.unflatten(1, (-1, 8)).sum(-1) == 4).all()
    resumed = trainer(make_bert(seed=1), tiny_dataset, tmp_path, prune_pattern="4:8")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for one, other in zip(run.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="`--prune_sparsity` must be at most 0.5 with `--prune_pattern 4:8`; got 0.6"):
        PruningArguments(prune_sparsity=0.6, prune_pattern="4:8")


def test_flags_take_what_was_added() -> None:
    line = ["--prune_criterion", "saliency", "--prune_schedule", "late", "--prune_pattern", "4:8"]
    (parsed,) = HfArgumentParser(PruningArguments).parse_args_into_dataclasses([*line, "--prune_sparsity", "0.5"])
    assert (parsed.prune_criterion, parsed.prune_schedule, parsed.prune_pattern) == ("saliency", "late", "4:8")


def test_a_model_pruned_by_an_added_criterion_reloads_exactly(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = trainer(make_bert(), tiny_dataset, tmp_path / "run", prune_criterion="movement")
    run.train()
    plan = Recipe(pruning=PruningArguments(prune_sparsity=0.5, prune_criterion="movement"))
    folder = save_compressed(run.model, tmp_path / "compressed", plan)
    assert Recipe.load(folder / "recipe.json") == plan
    ids = torch.arange(20).reshape(2, 10)
    reloaded = type(run.model).from_pretrained(folder)
    assert torch.equal(reloaded(ids).logits, run.model.eval()(ids).logits)


def test_magnitude_adds_no_file_to_checkpoints(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(make_bert(), tiny_dataset, tmp_path).train()
    assert not list(tmp_path.rglob(f"*{STATE_FILE}*"))


def test_masks_take_one_bit_per_weight_in_a_checkpoint(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = trainer(make_bert(), tiny_dataset, tmp_path, prune_criterion="saliency")
    run.train()
    size = sum(found.numel() for found in zeros(run.model).values())
    assert size / 8 < (tmp_path / "checkpoint-10" / STATE_FILE).stat().st_size < size / 8 + 4000


def test_a_checkpoint_without_its_masks_is_refused(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    trainer(make_bert(), tiny_dataset, tmp_path, prune_criterion="saliency").train()
    (tmp_path / "checkpoint-10" / STATE_FILE).unlink()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    run = trainer(make_bert(), tiny_dataset, tmp_path, prune_criterion="saliency")
    with pytest.raises(ValueError, match=f"cannot resume at step 10: {STATE_FILE} of that step is missing"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_masks_of_another_run_are_refused(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    for seed in (0, 1):
        trainer(make_bert(seed), tiny_dataset, tmp_path / str(seed), prune_criterion="saliency").train()
    mixed = tmp_path / "0" / "checkpoint-8"
    (mixed / STATE_FILE).write_bytes((tmp_path / "1" / "checkpoint-8" / STATE_FILE).read_bytes())
    run = trainer(make_bert(), tiny_dataset, tmp_path / "0", prune_criterion="saliency")
    with pytest.raises(ValueError, match="masks in the checkpoint do not belong to its weights"):
        run.train(resume_from_checkpoint=str(mixed))


def test_a_checkpoint_elsewhere_is_found_by_the_argument(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    trainer(make_bert(), tiny_dataset, tmp_path / "first", prune_criterion="saliency").train()
    run = trainer(make_bert(), tiny_dataset, tmp_path / "second", prune_criterion="saliency")
    run.args.resume_from_checkpoint = str(tmp_path / "first" / "checkpoint-8")
    run.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
    assert all(int(found.sum()) == round(0.5 * found.numel()) for found in zeros(run.model).values())


def test_weights_beside_an_adapter_have_no_gradients(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = get_peft_model(make_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(ValueError, match="`--prune_criterion saliency` needs the gradients .* beside an adapter"):
        trainer(model, tiny_dataset, tmp_path, prune_criterion="saliency").train()


def test_a_frozen_layer_is_refused(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = make_bert()
    model.bert.pooler.dense.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"moment` needs .* bert\.pooler\.dense is frozen"):
        trainer(model, tiny_dataset, tmp_path, prune_criterion="moment").train()


def test_half_precision_gradients_are_refused(make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = trainer(make_bert(), tiny_dataset, tmp_path, prune_criterion="saliency")
    callback = next(one for one in run.callback_handler.callbacks if isinstance(one, PruningCallback))
    run.args.fp16 = True
    run.state.max_steps = 10
    with pytest.raises(ValueError, match="under `--fp16` are scaled"):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model)


def test_an_optimizer_that_consumes_gradients_is_refused(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    model = make_bert()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    with pytest.raises(ValueError, match="no layer has one before optimizer step 1"):
        trainer(model, tiny_dataset, tmp_path, prune_criterion="saliency").train()


def test_scores_of_another_shape_are_refused(
    make_bert: MakeBert, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CRITERIA, "rows", Criterion("rows", lambda e: e.weight.abs().sum(1), **WORDS))
    with pytest.raises(ValueError, match="the criterion `rows` must return one floating-point score per value"):
        trainer(make_bert(), tiny_dataset, tmp_path, prune_criterion="rows").train()
