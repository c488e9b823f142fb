"""Models of sentence-transformers learn from a teacher, with and without labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertForSequenceClassification, BertModel, Trainer

from hf_compress import Recipe, compress
from hf_compress.distill import DistillationArguments
from hf_compress.distill.embedding_losses import EMBEDDING_LOSSES
from hf_compress.distill.sentence_teacher import asked
from hf_compress.models.targets import transformer
from tests.invariants.harness import logged

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses as pair_losses  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402

RANKING = losses.MultipleNegativesRankingLoss


def taught(trainer: Trainer, **options: Any) -> Trainer:
    return compress(trainer, Recipe(DistillationArguments(**options)))


def teacher_folder(bench: Any, width: int = 32) -> str:
    folder = bench.folder_of(f"teacher{width}", BertModel, hidden_size=width)
    library.SentenceTransformer(folder, device="cpu").save_pretrained(f"{folder}-trained")
    return f"{folder}-trained"


def student(bench: Any) -> Any:
    return library.SentenceTransformer(bench.folder_of("student", BertModel), device="cpu")


@pytest.mark.parametrize("loss", list(EMBEDDING_LOSSES))
def test_the_first_losses_are_those_of_the_texts(loss: str, bench: Any) -> None:
    """For each column with its prompt, from the outputs that the script's loss has computed."""
    prompts = {"pairs": {"anchor": "film "}, "scored": "song "}
    data = DatasetDict({"pairs": bench.pairs, "scored": bench.scored})
    model, teacher = student(bench), library.SentenceTransformer(teacher_folder(bench), device="cpu")
    run = bench.trainer(
        "run", model, lambda m: {"pairs": RANKING(m), "scored": losses.CoSENTLoss(m)}, train_dataset=data,
        prompts=prompts, max_steps=1,
    )  # fmt: skip
    taught(run, distill_teacher=teacher_folder(bench), distill_loss=loss, distill_alpha=0.3)
    calls = []
    model[0].register_forward_pre_hook(lambda *_: calls.append(1))
    seen: list[dict[str, Any]] = []
    collate = run.data_collator
    run.data_collator = type("Seen", (), {"__call__": lambda _, rows: (seen.append(rows), collate(rows))[1],
                                          "valid_label_columns": collate.valid_label_columns})()  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run.train()
    assert len(calls) == 2, "the student was called again"
    model.load_state_dict(before)
    rows, (total, distilled, own) = seen[0], logged(run, "loss", "distill_loss", "label_loss")[0]
    name = rows[0]["dataset_name"]
    ours, theirs = (
        torch.cat(
            [
                asked(one, [row[column] for row in rows], prompts[name] if name == "scored" else chosen)
                for column, chosen in (("anchor", "film "), ("positive", None))
            ]
        )
        for one in (model, teacher)
    )
    expected = EMBEDDING_LOSSES[loss].function(ours, theirs, 2.0).mean()
    assert distilled == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)
    assert total == pytest.approx(0.3 * distilled + 0.7 * own, abs=1e-4)


def test_a_cut_student_learns_from_texts_alone(bench: Any) -> None:
    """The script's loss needs two columns, and is not computed with `--distill_alpha 1`."""
    texts = Dataset.from_dict({"text": bench.sentences})
    # Wide enough that the second layer changes the embeddings.
    folder = bench.folder_of("wide", BertModel, initializer_range=0.3)
    model = library.SentenceTransformer(folder, device="cpu")
    run = bench.trainer("run", model, RANKING, train_dataset=texts, max_steps=24)
    taught(run, distill_teacher="self", distill_loss="mse", distill_alpha=1.0, distill_student_layers="1")
    assert transformer(run.model).config.num_hidden_layers == 1
    assert run.uncut.num_hidden_layers == transformer(run.teacher).config.num_hidden_layers == 2
    run.train()
    (first, *_, last) = (values[0] for values in logged(run, "distill_loss"))
    assert last < 0.5 * first


def test_cached_losses_are_mixed_like_others(bench: Any) -> None:
    """They compute without gradients first, so the student is called once more."""
    found = []
    for name, loss in (
        ("once", RANKING),
        ("often", lambda m: losses.CachedMultipleNegativesRankingLoss(m, mini_batch_size=3)),
    ):
        run = bench.trainer(name, student(bench), loss)
        taught(run, distill_teacher=teacher_folder(bench), distill_loss="cosine", distill_alpha=0.5).train()
        found.append(torch.tensor(logged(run, "distill_loss", "label_loss")))
    assert torch.allclose(*found, rtol=1e-3)


def test_a_wider_teacher_is_projected_or_compared_by_similarity(bench: Any) -> None:
    folder = teacher_folder(bench, 48)
    taught(bench.trainer("kl", student(bench), RANKING), distill_teacher=folder).train()
    run = taught(bench.trainer("mse", student(bench), RANKING), distill_teacher=folder, distill_loss="mse")
    assert run._projection.shape == (48, 32)
    run.train()
    few = bench.trainer("few", student(bench), RANKING, train_dataset=bench.pairs.select(range(8)))
    with pytest.raises(ValueError, match=r"48 values to the student's 32 by PCA, .* at least 32 texts .*; there are"):
        taught(few, distill_teacher=folder, distill_loss="mse")


@pytest.mark.parametrize("teacher", ["self", "pair"])
def test_a_reranker_learns_scores(teacher: str, bench: Any) -> None:
    folder = bench.folder_of("pair", BertForSequenceClassification, num_labels=1)
    model = library.CrossEncoder(folder, device="cpu", num_labels=1)
    with torch.no_grad():
        transformer(model).classifier.bias += 1.0
    run = bench.trainer("run", model, pair_losses.BinaryCrossEntropyLoss, train_dataset=bench.scored, max_steps=1)
    taught(run, distill_teacher="self" if teacher == "self" else folder, distill_alpha=0.5)
    run.train()
    ((distilled, _),) = logged(run, "distill_loss", "label_loss")
    # The teacher in the folder has the scores of the student before its bias was raised by one.
    assert distilled == pytest.approx(0.0 if teacher == "self" else 1.0, abs=1e-4)


@pytest.fixture
def refused(bench: Any) -> Any:
    def try_it(**options: Any) -> str:
        with pytest.raises(ValueError) as raised:
            taught(bench.trainer("run", student(bench), RANKING), **options)
        return str(raised.value)

    return try_it


def test_what_cannot_teach_is_refused_before_training(bench: Any, refused: Any, tmp_path: Path) -> None:
    narrow, plain = teacher_folder(bench, 16), bench.folder_of("plain", BertModel)
    pair = bench.folder_of("pair", BertForSequenceClassification, num_labels=1)
    library.CrossEncoder(pair, device="cpu").save_pretrained(str(tmp_path / "cross"))
    assert "the teacher has 16 values, the student 32" in refused(distill_teacher=narrow, distill_loss="mse")
    assert "its embeddings were never trained" in refused(distill_teacher=plain)
    assert "it was saved as a CrossEncoder" in refused(distill_teacher=str(tmp_path / "cross"))
    assert "compares logits or scores; this model gives embeddings" in refused(
        distill_teacher=narrow, distill_loss="ce"
    )
    assert "works with models of Transformers only" in refused(distill_teacher=narrow, distill_augment=1)
