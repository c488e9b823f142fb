"""A teacher of texts is asked once, before training, and its answers are those that it would give again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict, IterableDataset
from transformers import BertForSequenceClassification, BertModel

from hf_compress import Recipe, compress
from hf_compress.distill import DistillationArguments, sentence_asking
from tests.invariants.harness import logged

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses as pair_losses  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402

RANKING = losses.MultipleNegativesRankingLoss


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The texts that teachers are asked about, in the order of the questions."""
    texts, ask = list[Any](), sentence_asking.asked
    monkeypatch.setattr(
        sentence_asking, "asked", lambda teacher, some, prompt: (texts.extend(some), ask(teacher, some, prompt))[1]
    )
    return texts


def trained(bench: Any, name: str, cache: Path | None, teacher: str = "teacher") -> list[tuple[float, ...]]:
    folder = bench.folder / f"{teacher}-trained"
    if not folder.exists():
        library.SentenceTransformer(bench.folder_of(teacher, BertModel), device="cpu").save_pretrained(str(folder))
    model = library.SentenceTransformer(bench.folder_of("student", BertModel), device="cpu")
    data = DatasetDict({"pairs": bench.pairs, "scored": bench.scored})
    run = bench.trainer(
        name, model, lambda m: {"pairs": RANKING(m), "scored": losses.CoSENTLoss(m)}, train_dataset=data,
        prompts={"pairs": {"anchor": "film "}},
    )  # fmt: skip
    options = DistillationArguments(
        distill_teacher=str(folder), distill_loss="mse", distill_cache=None if cache is None else str(cache)
    )
    compress(run, Recipe(options)).train()
    return logged(run, "distill_loss", "label_loss")


def test_kept_answers_train_like_live_ones(bench: Any, asked: list[Any], tmp_path: Path) -> None:
    live = trained(bench, "live", None)
    asked.clear()
    kept = trained(bench, "kept", tmp_path)
    assert torch.allclose(torch.tensor(live), torch.tensor(kept), atol=1e-4)
    # Each text once, and those with a prompt once more; the first is tried beforehand for its size.
    texts = {*bench.sentences}
    assert len(asked) == len(texts) + len({*bench.texts[0]}) + 1
    asked.clear()
    assert trained(bench, "again", tmp_path) == kept and not asked, "the file was not found again"
    trained(bench, "other", tmp_path, "another teacher")
    assert asked and len([*tmp_path.glob("*.arrow")]) == 2


def test_a_damaged_file_is_made_anew(bench: Any, asked: list[Any], tmp_path: Path) -> None:
    kept = trained(bench, "kept", tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    asked.clear()
    assert trained(bench, "again", tmp_path) == kept and asked


def test_scores_of_pairs_are_kept(bench: Any, asked: list[Any], tmp_path: Path) -> None:
    folder = bench.folder_of("pair", BertForSequenceClassification, num_labels=1)
    found = []
    for name, cache in (("live", None), ("kept", str(tmp_path))):
        model = library.CrossEncoder(
            bench.folder_of("student", BertForSequenceClassification, num_labels=1), device="cpu"
        )
        run = bench.trainer(name, model, pair_losses.BinaryCrossEntropyLoss, train_dataset=bench.scored)
        options = DistillationArguments(distill_teacher=folder, distill_alpha=0.5, distill_cache=cache)
        asked.clear()
        compress(run, Recipe(options)).train()
        found.append(torch.tensor(logged(run, "distill_loss", "label_loss")))
    assert torch.allclose(*found, atol=1e-4)
    assert len(asked) == len({*zip(*bench.texts, strict=True)}) + 1


def test_texts_that_change_and_streams_are_refused(bench: Any, tmp_path: Path) -> None:
    folder = bench.folder / "teacher-trained"
    library.SentenceTransformer(bench.folder_of("teacher", BertModel), device="cpu").save_pretrained(str(folder))
    options = DistillationArguments(distill_teacher=str(folder), distill_cache=str(tmp_path))
    count = iter(range(10**6))
    changing = bench.pairs.with_transform(
        lambda rows: {name: [f"{text} {next(count)}" for text in texts] for name, texts in rows.items()}
    )
    with pytest.raises(ValueError, match="has no answer for a text of the training set: .* made anew at every access"):
        compress(bench.trainer("new", train_dataset=changing, model=student(bench)), Recipe(options)).train()

    def rows() -> Iterator[dict[str, str]]:
        yield from bench.pairs

    stream = IterableDataset.from_generator(rows, features=bench.pairs.features)
    run = bench.trainer("stream", train_dataset=stream, model=student(bench), max_steps=1)
    with pytest.raises(ValueError, match="needs a training set with a length"):
        compress(run, Recipe(options))


def student(bench: Any) -> Any:
    return library.SentenceTransformer(bench.folder_of("student", BertModel), device="cpu")
