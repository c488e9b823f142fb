"""Texts without labels as rows that only the teacher labels, and their share of an epoch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hf_compress.distill import DistillationArguments
from hf_compress.distill.extra import ExtraSource
from hf_compress.distill.sharing import SharingSampler
from hf_compress.distill.teacher_only import COLUMN
from hf_compress.launch import take_flags
from tests.invariants.harness import same

SENTENCES = ["the story was lovely", "a very dull song", "the film is honest and fresh today again", "stale"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of files with the same four sentences, or pairs of them."""
    rows = [{"sentence": text, "other": f"the {text}", "length": 1} for text in SENTENCES]
    (tmp_path / "texts.txt").write_text("\n".join([*SENTENCES, "", "  "]))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = Dataset.from_list(rows)
    data.select_columns(["sentence", "length"]).to_csv(tmp_path / "texts.csv")
    data.select_columns(["sentence"]).to_csv(tmp_path / "texts.tsv", sep="\t")
    data.to_parquet(tmp_path / "texts.parquet")
    data.select_columns(["sentence", "other"]).to_csv(tmp_path / "pairs.csv")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "numbers.csv").write_text("number\n3\n")
    return tmp_path


def further(trainer: Any) -> list[dict[str, Any]]:
    enlarged, _ = trainer._enlarged(trainer.train_dataset, trainer.data_collator)
    return [row for row in enlarged if row[COLUMN]]


@pytest.mark.parametrize("file", ["texts.txt", "texts.csv", "texts.tsv", "texts.jsonl", "texts.parquet"])
def test_texts_become_rows_as_the_tokenizer_makes_them(
    file: str,
    texts: Path,
    enlarging: Callable[..., Any],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    trainer = enlarging(options={"distill_extra": [str(texts / file)], "distill_augment": 0})
    longest = max(map(len, trainer.train_dataset["input_ids"]))
    rows = further(trainer)
    for row, text in zip(rows, SENTENCES, strict=True):
        assert row["input_ids"] == tiny_tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        assert len(row["attention_mask"]) == len(row["input_ids"]) <= longest
    assert trainer.further_rows == {file: 4}
    trainer.train()


def test_pairs_are_read_where_the_training_rows_are_pairs(
    texts: Path,
    enlarging: Callable[..., Any],
    encoded: Dataset,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    pairs = tiny_tokenizer(["the film", "a song"] * 4, ["was dull", "is warm and very bright today"] * 4)
    data = Dataset.from_dict(dict(pairs) | {"labels": [0, 1] * 4})
    trainer = enlarging(data, options={"distill_extra": [str(texts / "pairs.csv")], "distill_augment": 0})
    assert further(trainer)[3]["input_ids"] == tiny_tokenizer("stale", "the stale")["input_ids"]
    for rows, file, said in (
        (data, "texts.txt", "are pairs of texts, so two columns of text are needed, but these rows have 1"),
        (encoded, "numbers.csv", "are single texts, so one column of text is needed, but these rows have 0"),
    ):
        with pytest.raises(ValueError, match=said):
            enlarging(rows, options={"distill_extra": [str(texts / file)]})


def test_texts_are_padded_as_the_training_rows_are(
    texts: Path,
    enlarging: Callable[..., Any],
    tiny_dataset: Dataset,
) -> None:
    trainer = enlarging(tiny_dataset, options={"distill_extra": [str(texts / "texts.txt")], "distill_augment": 0})
    rows = further(trainer)
    assert [len(row["input_ids"]) for row in rows] == [10] * 4
    assert [sum(row["attention_mask"]) for row in rows] == [6, 6, 10, 3]


def test_files_of_one_name_are_all_read(texts: Path, enlarging: Callable[..., Any]) -> None:
    (texts / "more").mkdir()
    (texts / "more" / "texts.txt").write_text("the song is honest\n")
    sources = [str(texts / "texts.txt"), str(texts / "more" / "texts.txt")]
    trainer = enlarging(options={"distill_extra": sources, "distill_augment": 0})
    assert len(further(trainer)) == 5
    assert trainer.further_rows == {"texts.txt": 5}


def test_files_and_augmented_rows_come_together(texts: Path, enlarging: Callable[..., Any]) -> None:
    sources = [str(texts / "texts.txt"), str(texts / "texts.csv")]
    trainer = enlarging(options={"distill_extra": sources, "distill_augment": 2}, max_steps=-1, num_train_epochs=1)
    trainer.train()
    assert trainer.further_rows == {"augmented": 48, "texts.txt": 4, "texts.csv": 4}
    assert trainer.state.global_step == (24 + 48 + 8) // 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("no/such/place", r"`--distill_extra no/such/place` could not be loaded"),
        ("{}/texts.txt:no", "no is not a split of the data, which has train"),
        ("{}/empty.txt", "has no row with text"),
        ("{}/texts.txt:big:train", "has no configurations"),
        ("{}/latin1.txt", "'utf-8' codec can't decode byte 0xe9 .* Give a file in UTF-8"),
        ("{}/none.csv", "none.csv` could not be loaded: there is no such file"),
        ("{}/header.csv", "has no rows"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(
    given: str,
    said: str,
    texts: Path,
    enlarging: Callable[..., Any],
) -> None:
    (texts / "latin1.txt").write_bytes("the café\n".encode("latin-1"))
    (texts / "header.csv").write_text("text\n")
    with pytest.raises(ValueError, match=said):
        enlarging(options={"distill_extra": [given.format(texts)]})
    if said != "has no row with text":  # Which only the columns that the training rows need tell.
        with pytest.raises(ValueError, match=said):
            take_flags(["train.py", "--distill_teacher", "self", "--distill_extra", given.format(texts)])


def test_a_text_in_place_of_column_names_is_told(texts: Path, enlarging: Callable[..., Any]) -> None:
    (texts / "headless.csv").write_text("a film that is good\nand another\n")
    with pytest.warns(UserWarning, match="the first line names the columns, one of them 'a film that is good'"):
        enlarging(options={"distill_extra": [str(texts / "headless.csv")]})


def test_labels_in_words_and_byte_order_marks_are_no_text(
    texts: Path, enlarging: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    mark = b"\xef\xbb\xbf"
    (texts / "marked.txt").write_bytes(mark + b"the song\n")
    (texts / "labelled.csv").write_bytes(mark + b"words,label\nthe film,good\n")
    sources = [str(texts / "marked.txt"), str(texts / "labelled.csv")]
    rows = further(enlarging(options={"distill_extra": sources, "distill_augment": 0}))
    read = [tiny_tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]
    assert read == ["the song", "the film"]


def test_a_source_may_name_its_configuration_and_split(tmp_path: Path) -> None:
    assert ExtraSource.of("me/texts") == ExtraSource("me/texts", "me/texts")
    assert ExtraSource.of("me/texts:train") == ExtraSource("me/texts:train", "me/texts", None, "train")
    assert ExtraSource.of("me/texts:big:train") == ExtraSource("me/texts:big:train", "me/texts", "big", "train")
    odd = tmp_path / "a:b.txt"
    odd.write_text("the film")
    assert ExtraSource.of(str(odd)) == ExtraSource(str(odd), str(odd)), "a file that exists is a file"
    with pytest.raises(ValueError, match=r"must be a list .* Give \['texts.txt'\]"):
        DistillationArguments(distill_extra="texts.txt")  # type: ignore[arg-type]
    for given in ("", "me/texts:", ":train", "a:b:c:d", "me/texts::train"):
        with pytest.raises(ValueError, match="`--distill_extra` takes FILE, DATASET"):
            DistillationArguments(distill_extra=[given])


def test_columns_that_no_tokenizer_makes_are_refused(
    texts: Path,
    enlarging: Callable[..., Any],
    encoded: Dataset,
) -> None:
    data = encoded.add_column("position_ids", [list(range(len(ids))) for ids in encoded["input_ids"]])
    with pytest.raises(ValueError, match="cannot make `position_ids` of the training rows"):
        enlarging(data, options={"distill_extra": [str(texts / "texts.txt")]})


def test_a_share_takes_turns_through_all_rows() -> None:
    sampler = SharingSampler(labelled=30, further=50, share=0.25, seed=3)
    epochs = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(len(rows) == len(sampler) == 40 for rows in epochs)
    assert all(set(range(30)) <= set(rows) for rows in epochs)
    drawn = [row for rows in epochs for row in rows if row >= 30]
    assert sorted(drawn[:50]) == sorted(drawn[50:]) == list(range(30, 80)), "each once in five epochs"
    assert len(set(map(tuple, epochs))) == 10
    again = SharingSampler(labelled=30, further=50, share=0.25, seed=3)
    again.set_epoch(7)
    assert list(again) == epochs[7], "without the epochs before it"
    assert list(SharingSampler(30, 50, 0.25, 4)) != epochs[0]


def test_a_large_share_repeats_rows_evenly() -> None:
    sampler = SharingSampler(labelled=20, further=7, share=0.8, seed=0)
    counts = [list(sampler).count(row) for row in range(27)]
    assert sum(counts) == len(sampler) == 100
    assert set(counts[:20]) == {1}
    assert set(counts[20:]) <= {11, 12}


def test_the_share_is_that_of_every_epoch(enlarging: Callable[..., Any]) -> None:
    trainer = enlarging(options={"distill_extra_share": 0.25}, max_steps=-1, num_train_epochs=2)
    kinds, loss = [], trainer.compute_loss

    def noting(model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
        kinds.append(inputs[COLUMN])
        return loss(model, inputs, *args, **named)

    trainer.compute_loss = noting
    trainer.train()
    assert trainer.state.global_step == 2 * (24 + 8) // 8
    assert [int(sum(kind.sum() for kind in kinds[start : start + 4])) for start in (0, 4)] == [8, 8]
    assert trainer.num_examples(trainer.get_train_dataloader()) == 32
    assert trainer.num_examples(trainer.get_eval_dataloader()) == 24


@pytest.mark.parametrize("share", [None, 0.4])
def test_a_resumed_run_sees_the_same_rows(
    share: float | None,
    enlarging: Callable[..., Any],
    tmp_path: Path,
) -> None:
    settings = {"max_steps": 9, "save_strategy": "steps", "save_steps": 7, "logging_steps": 1}
    options = {"distill_augment": 1, "distill_extra_share": share}
    whole = enlarging(options=options, **settings)
    whole.train()
    again = enlarging(options=options, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert same(whole.model.state_dict(), again.model.state_dict())


def test_shares_that_cannot_be_kept_are_refused(enlarging: Callable[..., Any]) -> None:
    for share in (0.0, 1.0, -0.5, 2.0):
        with pytest.raises(ValueError, match=r"`--distill_extra_share` must be a share .* in \(0, 1\); got"):
            DistillationArguments(distill_augment=1, distill_extra_share=share)
    with pytest.warns(UserWarning, match="has no effect without `--distill_extra`"):
        DistillationArguments(distill_extra_share=0.5)
    with pytest.warns(UserWarning, match="add rows that train nothing with `--distill_alpha 0`"):
        DistillationArguments(distill_augment=1, distill_alpha=0)
    with pytest.raises(ValueError, match="`--train_sampling_strategy group_by_length`. Leave one of the two out"):
        enlarging(options={"distill_extra_share": 0.5}, train_sampling_strategy="group_by_length")
