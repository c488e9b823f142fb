"""The criterion `sparsegpt`: choice and correction against a loop, exact counts, and what cannot be corrected."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedModel, Trainer, TrainerCallback

from hf_compress import PruningArguments, Recipe, save_compressed
from hf_compress.models.sharding import Shards
from hf_compress.models.targets import prunable
from hf_compress.prune import CRITERIA, PATTERNS, Pattern
from hf_compress.prune.callback import PruningCallback
from hf_compress.prune.correction import Blocks, prune_and_correct
from hf_compress.prune.masking import Masking
from hf_compress.rate import prune_with_feedback
from hf_compress.rate.feedback import DAMPING
from tests.invariants.harness import adapted, make
from tests.tiny import bert

SPARSEGPT = CRITERIA["sparsegpt"]


def blocks(weight: Tensor, zeros: int, kept: Tensor | None = None, pattern: Pattern | None = None) -> Blocks:
    """Return the choice of `zeros` values of a whole weight."""
    kept = torch.ones_like(weight, dtype=torch.bool) if kept is None else kept
    pattern = PATTERNS["unstructured"] if pattern is None else pattern
    return Blocks("layer", SPARSEGPT, pattern, len(weight), zeros, kept, Shards())


def drawn(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight, and correlated inputs of its layer."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs // 2, inputs, generator=draw, dtype=torch.float64)
    seen = torch.randn(4 * inputs, inputs // 2, generator=draw, dtype=torch.float64) @ mixed
    seen += 0.3 * torch.randn(4 * inputs, inputs, generator=draw, dtype=torch.float64)
    return torch.randn(outputs, inputs, generator=draw, dtype=torch.float64), seen


def loop(weight: Tensor, moments: Tensor, share: float, block: int = 128) -> tuple[Tensor, Tensor]:
    """Prune column by column with the inverse of what is left, as Hassibi & Stork's formulas say it."""
    weight, width = weight.clone(), weight.shape[1]
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    kept = torch.ones_like(weight, dtype=torch.bool)
    for column in range(width):
        if column % block == 0:
            columns = range(column, min(column + block, width))
            scores = torch.stack([weight[:, j] ** 2 / damped[j:, j:].inverse()[0, 0] for j in columns], 1)
            count = round(share * weight[:, columns].numel())
            mask = torch.ones(scores.numel(), dtype=torch.bool)
            mask[scores.flatten().sort(stable=True).indices[:count]] = False
            kept[:, columns] = mask.view(scores.shape)
        inverse = damped[column:, column:].inverse()
        for row in range(len(weight)):
            if not kept[row, column]:
                weight[row, column:] -= weight[row, column] / inverse[0, 0] * inverse[0]
    return weight * kept, kept


@pytest.mark.parametrize("inputs", [24, 150])
def test_choice_and_correction_are_those_of_a_loop(inputs: int) -> None:
    weight, seen = drawn(6, inputs)
    expected, kept = loop(weight, seen.t() @ seen, 0.5)
    found = weight.clone()
    mask = prune_and_correct(found, seen.t() @ seen, blocks(weight, weight.numel() // 2))
    assert torch.equal(mask, kept)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_corrected_weights_change_the_outputs_less() -> None:
    weight, seen = drawn(32, 64)
    found = weight.clone()
    mask = prune_and_correct(found, seen.t() @ seen, blocks(weight, weight.numel() // 2))
    lost, corrected = (((one - weight) @ seen.t()).square().sum() for one in (weight * mask, found))
    assert corrected < 0.5 * lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_of_any_width_keep_their_dtype_and_count(dtype: torch.dtype) -> None:
    weight, seen = drawn(7, 200)
    found = weight.to(dtype)
    mask = prune_and_correct(found, (seen.t() @ seen).float(), blocks(found, 777))
    assert found.dtype == dtype
    assert int((~mask).sum()) == 777
    assert not found[~mask].any()


@pytest.mark.parametrize("zeros", [0, 1, 640, 1279, 1280])
def test_end_points_and_blocks_have_exact_counts(zeros: int) -> None:
    weight, seen = drawn(5, 256)
    mask = prune_and_correct(weight, seen.t() @ seen, blocks(weight, zeros))
    assert int((~mask).sum()) == zeros
    assert abs(int((~mask[:, :128]).sum()) - zeros / 2) <= 1


def test_masks_nest_however_zeros_were_spread_before() -> None:
    """Zeros of a file by another criterion may fill one block more than its share."""
    weight, seen = drawn(5, 300)
    kept = torch.ones_like(weight, dtype=torch.bool)
    kept[:, 128:256] = False
    weight[~kept] = 0
    for zeros in (640, 700, 1200):
        mask = prune_and_correct(weight, seen.t() @ seen, blocks(weight, zeros, kept))
        assert int((~mask).sum()) == zeros
        assert not (mask & ~kept).any()
        kept = mask


def test_a_pattern_that_joins_inputs_is_kept_across_blocks() -> None:
    def one_of_three(scores: Tensor, input_dim: int) -> Tensor:
        groups = scores.movedim(input_dim, -1).unflatten(-1, (-1, 3))
        lowest = groups.argmin(-1, keepdim=True)
        allowed = torch.full_like(groups, torch.inf).scatter(-1, lowest, groups.gather(-1, lowest))
        return allowed.flatten(-2).movedim(-1, input_dim)

    pattern = Pattern("1:3", one_of_three, "one of three", "One of three.", most=1 / 3, joins_inputs=True)
    weight, seen = drawn(5, 150)
    mask = prune_and_correct(weight, seen.t() @ seen, blocks(weight, 250, pattern=pattern))
    assert ((~mask).unflatten(1, (-1, 3)).sum(-1) == 1).all()


def test_a_layer_that_is_never_called_is_not_corrected() -> None:
    weight, _ = drawn(6, 24)
    found = weight.clone()
    mask = prune_and_correct(found, None, blocks(weight, 72))
    assert torch.equal(found, weight * mask)
    assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, _ = drawn(6, 24)
    with pytest.raises(ValueError, match="the inputs of layer are not finite.*training has diverged. Lower"):
        prune_and_correct(weight, torch.full((24, 24), torch.nan), blocks(weight, 72))


def test_choices_get_blocks_that_were_corrected_before() -> None:
    weight, seen = drawn(4, 130)
    asked: list[tuple[int, Tensor]] = []

    def choose(values: Tensor, errors: Tensor, begin: int) -> Tensor:
        asked.append((begin, values.clone()))
        return torch.zeros_like(values, dtype=torch.bool)

    prune_with_feedback(weight, seen.t() @ seen, choose)
    assert [begin for begin, _ in asked] == [0, 128]
    assert torch.equal(asked[0][1], weight[:, :128])
    assert not torch.equal(asked[1][1], weight[:, 128:])


def pruned(folder: Path, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    """Build a Trainer that prunes half of a tiny model by `sparsegpt`, in steps 2, 5 and 7 of 12."""
    pruning = {"prune_sparsity": 0.5, "prune_begin": 0.2, "prune_every": 3} | more.pop("pruning", {})
    plan = Recipe(pruning=PruningArguments(prune_criterion="sparsegpt", **pruning))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(folder, plan=plan, callbacks=callbacks, trainer_class=Trainer, **more)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A correction that counts as short, so that tiny runs do not warn."""
    monkeypatch.setattr("hf_compress.prune.requirements.STEPS_PER_CORRECTION", 1)


class Watch(TrainerCallback):
    """Records zeros after every step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_step_end(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        self.after.append({target.name: target.weight.detach() == 0 for target in prunable(model)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Watch]:
    """A run with a checkpoint of every step."""
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_compress.prune.requirements.STEPS_PER_CORRECTION", 1)
        whole = pruned(tmp_path_factory.mktemp("run"), watch, save_strategy="steps", save_steps=1)
        whole.train()
    return whole, watch


def test_a_run_nests_and_ends_at_the_exact_count(run: tuple[Trainer, Watch]) -> None:
    _, watch = run
    assert not any(found.any() for found in watch.after[0].values())
    for less, more in zip(watch.after[:-1], watch.after[1:], strict=True):
        assert all((more[layer] >= less[layer]).all() for layer in less)
    assert all(int(found.sum()) == round(0.5 * found.numel()) for found in watch.after[-1].values())


@pytest.mark.parametrize("step", [1, 4, 6, 9])
def test_a_resumed_run_equals_the_uninterrupted_one(step: int, run: tuple[Trainer, Watch], tmp_path: Path) -> None:
    whole, _ = run
    resumed = pruned(tmp_path, model=bert(seed=1))
    resumed.args.resume_from_checkpoint = str(Path(whole.args.output_dir) / f"checkpoint-{step}")
    resumed.train(resume_from_checkpoint=resumed.args.resume_from_checkpoint)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_pruning_once_corrects_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    look = Masking.look
    monkeypatch.setattr(Masking, "look", lambda self, *given: looked.append(1) or look(self, *given))
    watch = Watch()
    trainer = pruned(tmp_path, watch, pruning={"prune_initial_sparsity": 0.5})
    for _ in range(2):  # Also if a trainer trains again.
        looked.clear()
        trainer.train()
        assert len(looked) == 1
    assert all(int(found.sum()) == round(0.5 * found.numel()) for found in watch.after[1].values())
    assert all(torch.equal(found, watch.after[1][layer]) for layer, found in watch.after[11].items())


def test_conv1d_layers_are_corrected_by_their_inputs(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    trainer = pruned(tmp_path, model=GPT2ForSequenceClassification(config))
    trainer.train()
    assert all(int((one.weight == 0).sum()) == round(0.5 * one.weight.numel()) for one in prunable(trainer.model))


def test_a_pruned_file_starts_from_its_zeros(run: tuple[Trainer, Watch], tmp_path: Path) -> None:
    folder = save_compressed(run[0].model, tmp_path / "file", Recipe(pruning=PruningArguments(prune_sparsity=0.5)))
    model, watch = type(run[0].model).from_pretrained(folder), Watch()
    before = {target.name: target.weight.detach() == 0 for target in prunable(model)}
    pruned(tmp_path / "run", watch, model=model, pruning={"prune_sparsity": 0.7}).train()
    assert all(torch.equal(watch.after[0][layer], zeros) for layer, zeros in before.items())
    assert all((watch.after[-1][layer] >= zeros).all() for layer, zeros in before.items())
    assert all(int(found.sum()) == round(0.7 * found.numel()) for found in watch.after[-1].values())


def test_a_common_threshold_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`--prune_scope` must be layer; got 'global'. Choose .*`--prune_criterion adam`"
    ):
        PruningArguments(prune_sparsity=0.5, prune_criterion="sparsegpt", prune_scope="global")


def frozen() -> PreTrainedModel:
    model = bert()
    model.bert.pooler.dense.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: adapted(bert()), "the weights beside an adapter are frozen. Merge it first"),
        (frozen, r"bert\.pooler\.dense is frozen. Train it, or leave it out by `--prune_exclude"),
    ],
    ids=["lora", "frozen"],
)
def test_weights_that_do_not_train_are_refused(model: Callable[[], nn.Module], said: str, tmp_path: Path) -> None:
    trainer = pruned(tmp_path, model=model())
    with pytest.raises(ValueError, match=f"`--prune_criterion sparsegpt` corrects the weights that stay, but {said}"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": DeepSpeedOptimizerWrapper.__new__(DeepSpeedOptimizerWrapper)}, "DeepSpeed trains a copy"),
        ({}, "needs rows of the training set for that, .* no `train_dataloader`"),
    ],
    ids=["deepspeed", "no rows"],
)
def test_trainers_that_cannot_correct_are_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    trainer = pruned(tmp_path)
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, PruningCallback))
    state = SimpleNamespace(max_steps=10, global_step=0, stateful_callbacks={})
    with pytest.raises(ValueError, match=f"`--prune_criterion sparsegpt` corrects .* but .*{said}"):
        callback.on_train_begin(trainer.args, state, trainer.control, model=trainer.model, **given)  # type: ignore[arg-type]


def test_corrections_that_outlast_training_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_compress.prune.requirements.STEPS_PER_CORRECTION", 10)
    with pytest.warns(
        UserWarning, match="corrects the weights 3 times in 12 steps.*Raise `--prune_every`, or correct"
    ):
        pruned(tmp_path).train()
