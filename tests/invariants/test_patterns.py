"""Patterns of zeros: the same masks however the rows of a step are divided, and only the zeros that they allow."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor

from hf_compress import PruningArguments, QuantizationArguments, Recipe, save_compressed
from hf_compress.layers.lora import current_weight
from hf_compress.prune import CRITERIA, PATTERNS, Coverage
from tests.invariants.harness import KD, adapted, fsdp, make, persuade, pruned, same, trained
from tests.tiny import bert

pytestmark = pytest.mark.filterwarnings("ignore:.*corrects the weights")
STRUCTURED = [name for name in PATTERNS if name != "unstructured"]
BOTH = "neurons+heads"
# Each pattern by magnitude, whose masks are found in the weights, and groups by every criterion.
CASES = [(name, "magnitude") for name in STRUCTURED]
CASES += [(BOTH, name) for name, criterion in CRITERIA.items() if criterion.has_state]
CASES += [("4x1", "sparsegpt"), ("2:4", "platon")]
NAMES = [f"{pattern} {criterion}" for pattern, criterion in CASES]
TOGETHER = [name for name in NAMES if not name.startswith(("neurons ", "heads "))]  # Both kinds at once say as much.
WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": fsdp(state_dict_type="SHARDED_STATE_DICT")}


def options(pattern: str, criterion: str = "magnitude") -> PruningArguments:
    scope = "layer" if CRITERIA[criterion].corrects else "global"
    return PruningArguments(
        prune_sparsity=0.5, prune_pattern=pattern, prune_criterion=criterion, prune_every=5, prune_scope=scope
    )


def check(pattern: str, weights: dict[str, Tensor]) -> None:
    """Fail unless half of all is zero, as the pattern says: counted here from the numbers alone."""
    zeros = {name: weight == 0 for name, weight in weights.items()}
    if pattern == "2:4":
        assert all((found.unflatten(1, (-1, 4)).sum(-1) == 2).all() for found in zeros.values())
    elif pattern == "4x1":
        blocks = [found.unflatten(0, (-1, 4)) for found in zeros.values()]
        assert all(torch.equal(found.all(1), found.any(1)) for found in blocks)
        share = sum(int(found.sum()) for found in blocks) / sum(found.numel() for found in blocks)
        assert share == pytest.approx(0.5, abs=1e-3)
    else:
        gone = dict[str, int]()
        for layer in ("bert.encoder.layer.0", "bert.encoder.layer.1"):
            if "neurons" in pattern:
                rows = zeros[f"{layer}.intermediate.dense"].all(1)
                assert torch.equal(zeros[f"{layer}.output.dense"].all(0), rows)
                assert torch.equal(zeros[f"{layer}.output.dense"].any(0), rows)
                assert torch.equal(zeros[f"{layer}.intermediate.dense"].any(1), rows)
                gone["neurons"] = gone.get("neurons", 0) + int(rows.sum())
            if "heads" in pattern:
                heads = zeros[f"{layer}.attention.output.dense"].all(0).unflatten(0, (2, -1)).all(1)
                for name in ("query", "key", "value"):
                    found = zeros[f"{layer}.attention.self.{name}"].flatten(1).unflatten(0, (2, -1)).flatten(1)
                    assert torch.equal(found.all(1), heads)
                    assert torch.equal(found.any(1), heads)
                gone["heads"] = gone.get("heads", 0) + int(heads.sum())
        assert gone == {"neurons": 64, "heads": 2} if pattern == BOTH else gone in ({"neurons": 64}, {"heads": 2})


def check_stored(pattern: str, stored: Any, plan: Recipe) -> None:
    """Check the zeros of a reloaded model. Groups are not there any more: half of all."""
    coverage = Coverage.of(stored, plan.pruning)
    if not coverage.blocks:
        check(pattern, {target.name: target.weight.detach() for target in coverage.targets})
    if coverage.blocks:
        assert coverage.sparsity() == 0.5 and not any(coverage.found())


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, dict[str, Any]]:
    """A pattern, a criterion, and what one process leaves with them."""
    folder = tmp_path_factory.mktemp("one")
    return *request.param, pruned(options(*request.param), folder, per_device_train_batch_size=16)


def test_zeros_stand_only_where_the_pattern_allows(one: tuple[str, str, dict[str, Any]]) -> None:
    pattern, _, whole = one
    check(pattern, whole["weights"])


def test_accumulated_batches_have_the_masks_of_one(one: tuple[str, str, dict[str, Any]], tmp_path: Path) -> None:
    pattern, criterion, whole = one
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    parts = pruned(options(pattern, criterion), tmp_path, **settings)
    assert same(parts["masks"], whole["masks"])


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "criterion"), CASES, ids=NAMES)
def test_beside_the_other_methods_runs_resume_and_reload_exactly(pattern: str, criterion: str, tmp_path: Path) -> None:
    plan = Recipe(
        pruning=options(pattern, criterion),
        quantization=QuantizationArguments(quant_scheme="int8", quant_begin=0.3),
    )
    whole = make(tmp_path / "run", (KD,), plan=plan, save_strategy="steps", save_steps=5)
    whole.train()
    folder = save_compressed(whole.model, tmp_path / "compressed", plan)
    resumed = make(tmp_path / "run", (KD,), plan=plan, model=bert(seed=2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    ids = torch.arange(16).reshape(2, 8)
    stored, expected = type(whole.model).from_pretrained(folder)(ids).logits, whole.model.eval()(ids).logits
    if PATTERNS[pattern].kinds:  # Sums of fewer numbers may round to a neighbouring integer.
        assert (stored - expected).abs().max() <= 0.02 * expected.abs().max()
    else:
        assert torch.equal(stored, expected)


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_the_best_model_and_the_file_keep_the_pattern(pattern: str, tmp_path: Path) -> None:
    plan = Recipe(pruning=options(pattern))
    settings = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    run = trained(tmp_path / "run", plan=plan, load_best_model_at_end=True, bf16=True, **settings)
    folder = save_compressed(run.model, tmp_path / "compressed", plan)
    stored = type(run.model).from_pretrained(folder)
    check_stored(pattern, stored, plan)


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_the_merged_weights_beside_an_adapter_keep_it(pattern: str, tmp_path: Path) -> None:
    plan = Recipe(pruning=options(pattern))
    run = trained(tmp_path / "run", model=adapted(bert()), plan=plan, save_strategy="steps", save_steps=4)
    folder = save_compressed(run.model, tmp_path / "compressed", plan)
    targets = Coverage.of(run.model, plan.pruning).targets
    check(pattern, {target.name: current_weight(target.module).detach() for target in targets})
    resumed = make(tmp_path / "run", model=adapted(bert()), plan=plan)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    assert same(dict(run.model.state_dict()), dict(resumed.model.state_dict()))
    stored = type(run.model.get_base_model()).from_pretrained(folder)
    check_stored(pattern, stored, plan)


@pytest.mark.parametrize("pattern", STRUCTURED)
def test_a_model_with_as_many_other_zeros_is_refused(pattern: str, tmp_path: Path) -> None:
    model, plan = bert(), Recipe(pruning=options(pattern))
    with torch.no_grad():
        for target in Coverage.of(model, plan.pruning).targets:
            target.weight.view(-1)[: target.weight.numel() // 2] = 0  # Rows, but not the columns of the same groups.
            target.weight[0, 0] = 1
    with pytest.raises(ValueError, match=r"asks for `--prune_sparsity 0.5`, but only 0\.\d+ of the .* are zero"):
        save_compressed(model, tmp_path / "compressed", plan)


def work(folder: Path) -> None:
    """Run all cases in one of two processes, whole and sharded, each with a resumed run."""
    dist.init_process_group("gloo")
    AcceleratorState.__init__ = persuade(AcceleratorState.__init__)
    for way, settings in WAYS.items():
        for name in TOGETHER:
            case = CASES[NAMES.index(name)]
            for resumes in (False, True):
                found = pruned(options(*case), folder / f"{way} {name}", resumes, **settings)
                torch.save(found, folder / f"{way}-{name}-{resumes}-{dist.get_rank()}.pt")
        AcceleratorState._reset_state()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("one", [CASES[NAMES.index(name)] for name in TOGETHER], ids=TOGETHER, indirect=True)
def test_two_processes_have_the_masks_of_one(way: str, one: tuple[str, str, dict[str, Any]], two: Path) -> None:
    pattern, criterion, whole = one
    for rank in range(2):
        found = torch.load(two / f"{way}-{pattern} {criterion}-False-{rank}.pt", weights_only=True)
        assert (found["sharded"], found["processes"]) == (way == "fsdp", 2)
        assert same(found["masks"], whole["masks"])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_resume_to_the_same_bits(way: str, name: str, two: Path) -> None:
    for rank in range(2):
        uninterrupted, resumed = (
            torch.load(two / f"{way}-{name}-{resumes}-{rank}.pt", weights_only=True) for resumes in (False, True)
        )
        assert same(uninterrupted["weights"], resumed["weights"])
