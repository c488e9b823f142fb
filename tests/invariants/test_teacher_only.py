"""Rows that only the teacher labels change nothing that Trainer promises: processes, resuming, cached answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_compress import DistillationArguments
from hf_compress.models.targets import prunable
from tests.invariants.harness import KD, METHODS, adapted, in_two_processes, logged, make, rows, same
from tests.tiny import NO_DROPOUT, bert

OPTIONS = {"distill_augment": 1, "distill_alpha": 0.6}
TERMS = ("loss", "distill_loss", "label_loss", "grad_norm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a tokenizer and a file of texts."""
    made = tmp_path_factory.mktemp("teacher_only")
    tiny_tokenizer.save_pretrained(made / "tokenizer")
    (made / "texts.txt").write_text("the film was lovely\na dull story\nhonest\n" * 3)
    return made


def mixed(
    folder: Path,
    name: str = "run",
    methods: Any = (KD,),
    count: int = 22,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Return a trainer whose epochs have labelled rows, augmented ones and texts of a file."""
    data = Dataset.from_list([{key: value.tolist() for key, value in row.items()} for row in rows(count)])
    chosen = OPTIONS | {"distill_extra": [str(folder / "texts.txt")]} | (options or {})
    defaults = {"model": bert(**NO_DROPOUT).double(), "max_steps": 9, "learning_rate": 1e-3}
    return make(
        folder / name,
        methods,
        teacher=bert(seed=1, **NO_DROPOUT).double(),
        data=data,
        build={
            "distillation": DistillationArguments(**chosen),
            "processing_class": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        },
        **defaults | settings,
    )


@pytest.mark.parametrize("share", [None, 0.4])
def test_cached_answers_are_those_of_a_live_teacher(share: float | None, folder: Path, tmp_path: Path) -> None:
    runs = []
    for cache in (None, str(tmp_path)):
        run = mixed(folder, options={"distill_cache": cache, "distill_extra_share": share})
        run.train()
        runs.append(run)
    live, cached = (logged(run, *TERMS) for run in runs)
    for one, other in zip(live, cached, strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    dataset = runs[1].get_train_dataloader().dataset
    assert len(dataset) == 2 * 22 + 9, "the teacher has answered all rows"
    assert None not in dataset["teacher_logits"]


def test_cached_answers_are_asked_for_once(folder: Path, tmp_path: Path) -> None:
    options = {"distill_cache": str(tmp_path)}
    first = mixed(folder, options=options)
    first.train()
    again = mixed(folder, options=options)
    again.teacher.forward = None  # Asking it would fail.
    again.train()
    assert same(first.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_resumed_within_an_epoch_goes_on(cached: bool, folder: Path, tmp_path: Path) -> None:
    options = {"distill_extra_share": 0.5, "distill_cache": str(tmp_path) if cached else None}
    settings = {"methods": METHODS, "options": options, "save_strategy": "steps", "save_steps": 7}
    whole = mixed(folder, f"resumed-{cached}", **settings)
    whole.train()
    assert whole.state.num_train_epochs > 1
    again = mixed(folder, f"resumed-{cached}", **settings)
    again.train(resume_from_checkpoint=str(folder / f"resumed-{cached}" / "checkpoint-7"))
    assert same(whole.model.state_dict(), again.model.state_dict())


def test_an_adapter_learns_from_its_base_model(folder: Path) -> None:
    run = mixed(
        folder,
        methods=(),
        options={"distill_teacher": "self", "distill_alpha": 1.0},
        model=adapted(bert(**NO_DROPOUT)),
    )
    run.train()
    assert run.further_rows == {"augmented": 22, "texts.txt": 9}
    assert logged(run, "distill_loss")[0][0] == 0, "the adapter starts at zero"


def outcome(folder: Path, name: str, share: float | None, together: bool) -> dict[str, Any]:
    """Return what a run leaves on this process, which is one of two if `together`; also of one that is resumed."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "options": {"distill_extra_share": share}}
    settings["per_device_train_batch_size"] = 4 if together else 8
    name = f"{name}-{share}"
    run = mixed(folder, name, METHODS, **settings)
    run.train()
    again = mixed(folder, name, METHODS, **settings)
    again.train(resume_from_checkpoint=str(folder / name / "checkpoint-5"))
    return {
        "losses": logged(run, *TERMS),
        "weights": dict(run.model.state_dict()),
        "resumed": dict(again.model.state_dict()),
        "masks": {target.name: target.module.weight != 0 for target in prunable(run.model)},
        "rows": run.further_rows,
    }


def work(folder: Path) -> None:
    """Run both cases in one of two processes."""
    for share in (None, 0.4):
        torch.save(outcome(folder, "two", share, True), folder / f"{share}-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    """The folder that two processes wrote to."""
    assert in_two_processes(work, folder) == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.4])
def test_two_processes_train_on_mixed_rows_as_one(share: float | None, two: Path) -> None:
    one = outcome(two, "one", share, False)
    first, second = (torch.load(two / f"{share}-{rank}.pt", weights_only=True) for rank in range(2))
    assert same(first, second)
    assert same(first["masks"], one["masks"])
    assert first["rows"] == one["rows"] == {"augmented": 22, "texts.txt": 9}
    for ours, theirs in zip(first["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for each in (first, one):
        assert same(each["resumed"], each["weights"])
