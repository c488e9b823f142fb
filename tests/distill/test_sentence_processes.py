"""Two processes train an embedder with a teacher as one does, and write its result together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_compress import Recipe, Report, compress, finish
from hf_compress.distill import DistillationArguments
from hf_compress.quantize import QuantizationArguments
from tests.invariants.harness import SETTINGS, in_two_processes, logged

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.sentence_transformer import losses  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402

ROWS = 32
# Means over rows, so that the halves of a batch add up to the whole.
CASES: dict[str, dict[str, Any]] = {
    "layers": {"distill_alpha": 1.0, "distill_layer_loss": ["hidden=1"]},
    "kept": {"distill_alpha": 1.0, "distill_cache": "kept"},
}


def trained(folder: Path, case: str, batch: int) -> Any:
    """Train on the pairs in `folder`, with `batch` of them in each process, and return the trainer."""
    model = library.SentenceTransformer(str(folder / "student"), device="cpu")
    run = library.SentenceTransformerTrainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(
            str(folder / f"{case}-{batch}"), **SETTINGS | {"max_steps": 6, "per_device_train_batch_size": batch}
        ),
        train_dataset=Dataset.from_parquet(str(folder / "pairs.parquet"), cache_dir=str(folder / "cache")),
        loss=losses.MultipleNegativesRankingLoss(model),
        evaluator=evaluator(folder),
    )
    options = {"distill_teacher": str(folder / "teacher"), "distill_loss": "cosine"} | CASES[case]
    if "distill_cache" in options:
        options["distill_cache"] = str(folder / f"kept-{batch}")
    plan = Recipe(DistillationArguments(**options), quantization=QuantizationArguments("int8-dynamic"))
    compress(run, plan).train()
    return run


def evaluator(folder: Path) -> Any:
    rows = Dataset.from_parquet(str(folder / "pairs.parquet"), cache_dir=str(folder / "cache"))
    return EmbeddingSimilarityEvaluator(rows["anchor"][:], rows["positive"][:], list(range(ROWS)), name="dev")


def work(folder: Path) -> None:
    for case in CASES:
        run = trained(folder, case, 4)
        report = finish(run)
        assert run.accelerator.num_processes == 2 and report is not None
        rank = run.accelerator.process_index
        torch.save(
            {"weights": run.model.state_dict(), "losses": logged(run, "distill_loss")}, folder / f"{case}-{rank}.pt"
        )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(bench: Any) -> None:
    from transformers import BertModel

    for name in ("student", "teacher"):
        plain = bench.folder_of(f"plain {name}", BertModel)
        library.SentenceTransformer(plain, device="cpu").save_pretrained(str(bench.folder / name))
    bench.pairs.to_parquet(bench.folder / "pairs.parquet")
    assert in_two_processes(work, bench.folder) == [0, 0]
    for case in CASES:
        run = trained(bench.folder, case, 8)
        ours = dict(run.model.state_dict())
        for rank in range(2):
            found = torch.load(bench.folder / f"{case}-{rank}.pt", weights_only=True)
            assert torch.allclose(torch.tensor(found["losses"]), torch.tensor(logged(run, "distill_loss")), atol=1e-4)
            assert all(torch.allclose(found["weights"][name], value, atol=1e-4) for name, value in ours.items())
        report = Report.load(bench.folder / f"{case}-4" / "compressed")
        model = library.SentenceTransformer(str(bench.folder / f"{case}-4" / "compressed"), device="cpu")
        assert report.compressed == evaluator(bench.folder)(model)
    assert len([*(bench.folder / "kept-4").glob("*.arrow")]) == 1, "asked twice"
