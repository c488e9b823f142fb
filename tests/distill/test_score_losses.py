"""Margins between the texts for a query, against a naive loop and against the library's own loss."""

from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_compress import Recipe, compress
from hf_compress.distill import DistillationArguments
from hf_compress.distill.score_losses import margin
from tests.invariants.harness import logged

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses  # noqa: E402


def test_margins_are_those_of_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0, 3])
    student, teacher = (torch.randn(9, generator=generator) for _ in range(2))
    expected = []
    for query in range(4):
        first, *others = [place for place in range(9) if queries[place] == query]
        for other in others:
            ours, theirs = student[first] - student[other], teacher[first] - teacher[other]
            expected.append((ours - theirs) ** 2)
    assert torch.allclose(margin(student, teacher, queries), torch.stack(expected))
    assert torch.allclose(margin(student + 5, teacher, queries), torch.stack(expected)), "a shift counts"
    assert margin(student[:2], teacher[:2], torch.tensor([0, 1])).shape == (0,)


def reranker(bench: Any, name: str, labels: int = 1) -> Any:
    folder = bench.folder_of(name, BertForSequenceClassification, num_labels=labels, initializer_range=0.3)
    return library.CrossEncoder(folder, device="cpu", num_labels=labels)


@pytest.mark.parametrize("lists", [False, True])
def test_a_reranker_learns_margins(lists: bool, bench: Any) -> None:
    """The loss is that of `MarginMSELoss`, whose labels are the teacher's margins."""
    rows = bench.pairs.select(range(16)).rename_column("anchor", "query")
    negatives = [bench.sentences[number : number + 2] for number in range(16)]
    if lists:
        rows = rows.add_column("negatives", negatives)
    else:
        for place in range(2):
            rows = rows.add_column(f"negative_{place}", [texts[place] for texts in negatives])
    model, teacher = reranker(bench, "student"), reranker(bench, "a teacher")
    run = bench.trainer(
        "run", model, losses.LambdaLoss if lists else losses.MultipleNegativesRankingLoss, train_dataset=rows,
        max_steps=1, per_device_train_batch_size=16,
    )  # fmt: skip
    options = DistillationArguments(
        distill_teacher=str(bench.folder / "a teacher"), distill_loss="margin", distill_alpha=1.0
    )
    compress(run, Recipe(options))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run.train()
    model.load_state_dict(before)
    ((distilled,),) = logged(run, "distill_loss")
    columns = [rows["query"][:], rows["positive"][:], *(list(texts) for texts in zip(*negatives, strict=True))]
    good, *bad = (
        torch.tensor(teacher.predict(list(zip(columns[0], column, strict=True)), activation_fn=torch.nn.Identity()))
        for column in columns[1:]
    )
    with torch.no_grad():
        expected = losses.MarginMSELoss(model.eval())(columns, torch.stack([good - one for one in bad], 1))
    assert distilled == pytest.approx(expected.item(), rel=1e-3) and distilled > 1e-4


def test_what_has_no_margin_is_refused_before_training(bench: Any) -> None:
    def refused(model: Any, teacher: str) -> str:
        run = bench.trainer("run", model, losses.BinaryCrossEntropyLoss, train_dataset=bench.scored)
        options = DistillationArguments(distill_teacher=teacher, distill_loss="margin")
        with pytest.raises(ValueError) as raised:
            compress(run, Recipe(options))
        return str(raised.value)

    assert "two texts or more besides the query; got the columns anchor, positive" in refused(
        reranker(bench, "one"), "self"
    )
    model = reranker(bench, "three", 3)
    run = bench.trainer("run", model, losses.CrossEntropyLoss, train_dataset=bench.scored)
    with pytest.raises(ValueError, match="a pair must have one score; the model gives 3"):
        compress(run, Recipe(DistillationArguments(distill_teacher="self", distill_loss="margin")))
    embedder = bench.trainer("embedder")
    with pytest.raises(ValueError, match="compares logits or scores; this model gives embeddings"):
        compress(embedder, Recipe(DistillationArguments(distill_teacher="self", distill_loss="margin")))
