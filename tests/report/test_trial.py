"""The preprocessing in a report is what a script did: the tokenizer runs again and must give the same inputs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Audio, Dataset, load_dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    default_data_collator,
)

from hf_compress.report import dataset as dataset_facts
from hf_compress.report.preprocessing import Preprocessing, resampled
from hf_compress.report.report import DatasetFacts
from hf_compress.report.source import find_source
from hf_compress.report.trial import Found, find_preprocessing
from tests.tiny import SIZES, bert

WORDS = ["the", "a", "film", "story", "song", "was", "is", "and", "very", "rather", "today", "again"]
TAGS = ["O", "B", "I"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 rows as `load_dataset` loads them from a folder: texts of 1 to 20 words, labels of several kinds."""
    draw = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(draw.choice(WORDS, length))

    rows = [
        {
            "id": str(index),
            "title": text(1 + index % 3),
            "body": text(1 + index % 20),
            "label": ["bad", "good"][index % 2],
            "score": float(index) / 7,
            "topics": [topic for topic in range(3) if (index >> topic) & 1],
            "words": text(1 + index % 5).split(),
            "tags": [(index + place) % 3 for place in range(1 + index % 5)],
        }
        for index in range(40)
    ]
    folder = tmp_path_factory.mktemp("data") / "films"
    folder.mkdir()
    Dataset.from_list(rows).to_parquet(str(folder / "validation.parquet"))
    return load_dataset(str(folder), split="validation")


@pytest.fixture
def find(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Found]:
    def run(rows: Any, model: Any = None, collator: Any = None, processor: Any = None) -> Found:
        processor = processor or tiny_tokenizer
        trainer = Trainer(
            model or bert(),
            TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
            eval_dataset=rows,
            processing_class=processor,
            data_collator=collator or DataCollatorWithPadding(processor),
        )
        return find_preprocessing(trainer, rows)

    return run


def encoded(rows: Dataset, tokenizer: Any, *columns: str, label: Callable[[Any], Any], **options: Any) -> Dataset:
    """Rows as a script leaves them: token ids and labels alone."""

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        texts = tokenizer(*(batch[name] for name in columns), **options)
        return {
            **texts,
            "labels": [label(row) for row in zip(batch["label"], batch["score"], batch["topics"], strict=True)],
        }

    return rows.map(encode, batched=True, remove_columns=rows.column_names)


def good(row: Any) -> int:
    return int(row[0] == "good")


def test_column_length_and_classes_are_found(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = encoded(loaded, tiny_tokenizer, "body", label=good, truncation=True, max_length=8)
    assert find(rows) == Found(
        Preprocessing("text", ["body"], "label", 8, "longest_first", {"bad": 0, "good": 1}), rows=list(range(40))
    )


def test_rows_that_are_never_cut_have_no_length(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    padded = {"padding": "max_length", "truncation": True, "max_length": 30}
    found = find(encoded(loaded, tiny_tokenizer, "body", label=good, **padded)).preprocessing
    assert found is not None and (found.max_length, found.truncation) == (None, None)


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_the_order_of_two_texts_and_the_cut_are_found(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast, strategy: str
) -> None:
    columns = ["title", "body"] if strategy == "only_second" else ["body", "title"]
    rows = encoded(loaded, tiny_tokenizer, *columns, label=good, truncation=strategy, max_length=7)
    found = find(rows).preprocessing
    assert found is not None
    assert (found.columns, found.max_length, found.truncation) == (columns, 7, strategy)


def test_shuffled_and_filtered_rows_are_found_in_their_split(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    chosen = [index for index in np.random.default_rng(1).permutation(40) if index % 20 > 5][:20]
    rows = encoded(loaded.select(chosen), tiny_tokenizer, "body", label=good)
    found = find(rows)
    assert found.preprocessing is not None and found.preprocessing.columns == ["body"]
    assert found.rows == chosen


def test_a_transform_on_access_is_found(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = loaded.with_transform(
        lambda batch: {**tiny_tokenizer(batch["body"]), "labels": [int(label == "good") for label in batch["label"]]}
    )
    trainer = Trainer(
        bert(),
        TrainingArguments("unused", report_to="none", use_cpu=True, remove_unused_columns=False),
        processing_class=tiny_tokenizer,
    )
    found = find_preprocessing(trainer, rows).preprocessing
    assert found is not None and (found.columns, found.classes) == (["body"], {"bad": 0, "good": 1})


def test_labels_of_a_regression_are_numbers(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = BertForSequenceClassification(_config(num_labels=1))
    found = find(encoded(loaded, tiny_tokenizer, "body", label=lambda row: row[1]), model).preprocessing
    assert found is not None and (found.label_column, found.classes) == ("score", None)


def test_several_labels_at_once_are_found(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = _config(num_labels=3, problem_type="multi_label_classification")
    model = BertForSequenceClassification(config)
    hot = encoded(loaded, tiny_tokenizer, "body", label=lambda row: [float(topic in row[2]) for topic in range(3)])
    found = find(hot, model).preprocessing
    assert found is not None and found.label_column == "topics"


@pytest.mark.parametrize("all_pieces", [False, True])
def test_tags_of_words_are_found(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast, all_pieces: bool
) -> None:
    """A word of two tokens (one is split at its apostrophe) shows which pieces carry the tag."""
    split = loaded.map(lambda row: {"words": [f"{row['words'][0]}'{row['words'][0]}", *row["words"][1:]]})

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        texts = tiny_tokenizer(row["words"], is_split_into_words=True)
        before, tags = None, []
        for word in texts.word_ids():
            first = word is not None and word != before
            tags.append(row["tags"][word] if first or (all_pieces and word is not None) else -100)
            before = word
        return {**texts, "labels": tags}

    rows = split.map(encode).remove_columns("label")  # Words and tags stay beside the ids.
    rows.info.dataset_name = None  # Rows of no file: what is beside the ids is all there is.
    model = BertForTokenClassification(_config(num_labels=3))
    found = find(rows, model, DataCollatorForTokenClassification(tiny_tokenizer)).preprocessing
    assert found == Preprocessing("words", ["words"], "tags", all_pieces=all_pieces)


def test_pictures_go_through_the_processor_again(find: Callable[..., Found], tmp_path: Path) -> None:
    from PIL import Image

    draw, folder = np.random.default_rng(0), tmp_path / "pictures" / "validation"
    for index in range(4):
        (folder / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(
            folder / str(index % 2) / f"{index}.png"
        )
    loaded = load_dataset(str(tmp_path / "pictures"), split="validation")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})

    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = processor([image.convert("RGB") for image in batch["image"]], return_tensors="np")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": batch["label"]}

    rows = loaded.map(prepare, batched=True, remove_columns=loaded.column_names)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    found = find(rows, model, default_data_collator, processor).preprocessing
    assert found == Preprocessing("image", ["image"], "label")


@pytest.mark.parametrize("change", ["prefix", "reversed"])
def test_what_a_script_makes_of_a_text_itself_is_not_claimed(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast, change: str
) -> None:
    edit = (lambda text: f"film {text}") if change == "prefix" else (lambda text: text[::-1])
    changed = loaded.map(lambda row: {"body": edit(row["body"])})
    found = find(encoded(changed, tiny_tokenizer, "body", label=good))
    assert found.preprocessing is None
    assert "give the inputs" in found.reason


def test_labels_that_no_column_gives_are_not_claimed(
    loaded: Dataset, find: Callable[..., Found], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    draw = np.random.default_rng(3)
    rows = encoded(loaded, tiny_tokenizer, "body", label=lambda row: int(draw.integers(2)))
    rows = rows.add_column("noise", [0] * 40)
    found = find(rows)
    assert found.preprocessing is None
    assert "gives the labels" in found.reason


def test_rows_of_another_kind_say_why(find: Callable[..., Found], loaded: Dataset) -> None:
    assert find([{"input_ids": [1], "labels": 0}]).reason == "The evaluation set is not one `datasets.Dataset`."


def test_the_commit_of_a_hub_dataset_is_in_the_path_of_its_files(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "someone___films" / "plain" / "0.0.0" / commit
    folder.mkdir(parents=True)
    rows = Dataset.from_dict({"body": ["film"]})
    rows.to_parquet(str(tmp_path / "x.parquet"))
    rows = rows.map(lambda row: row, cache_file_name=str(folder / "cache-1.arrow"))
    rows.info.dataset_name, rows.info.config_name, rows._split = "films", "plain", "validation[:10]"
    source = find_source(rows)
    assert (source.hub_id, source.revision, source.config, source.split) == (
        "someone/films",
        commit,
        "plain",
        "validation",
    )


def test_facts_that_a_script_declares_are_kept(
    loaded: Dataset, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = encoded(loaded, tiny_tokenizer, "body", label=good)
    trainer = Trainer(
        bert(),
        TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
        processing_class=tiny_tokenizer,
        data_collator=DataCollatorWithPadding(tiny_tokenizer),
    )
    own = Preprocessing("text", ["title"], "label")
    facts = DatasetFacts("films", None, "train", 1, "validation", 40, revision="0" * 40, preprocessing=own)
    assert dataset_facts.find(trainer, rows, declared=facts) == facts
    found = dataset_facts.find(trainer, rows, declared=replace(facts, preprocessing=None)).preprocessing
    assert found is not None and found.columns == ["body"]


def _config(**changes: Any) -> BertConfig:
    return BertConfig(**SIZES | changes)


class Decoder:
    """What `datasets` makes of an audio file: it is read like a mapping, and is none."""

    def __init__(self, samples: list[float], rate: int) -> None:
        self.found = {"array": np.asarray(samples), "sampling_rate": rate}

    def __getitem__(self, name: str) -> Any:
        return self.found[name]


def test_decoded_sounds_are_read_as_samples_are() -> None:
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=8000)
    plan, samples = Preprocessing("audio", ["audio"], None), [0.0, 0.5, -0.5, 0.25]
    forms = [samples, np.asarray(samples), Decoder(samples, 8000), Decoder(samples, 8000).found]
    made = [plan.inputs(extractor, {"audio": [form]})[0]["input_values"] for form in forms]
    assert all(np.array_equal(one, made[0]) for one in made) and len(made[0]) == 4
    with pytest.raises(ValueError, match="sampling rate"):
        plan.inputs(extractor, {"audio": [Decoder(samples, 16_000)]})


def test_audio_files_are_decoded_at_the_rate_of_the_model() -> None:
    files = Dataset.from_dict({"audio": [{"bytes": b"", "path": "one.wav"}]}).cast_column("audio", Audio())
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000)
    assert resampled(files, extractor).features["audio"] == Audio(sampling_rate=8000)
    undecoded = files.cast_column("audio", Audio(decode=False))
    assert resampled(undecoded, extractor).features == undecoded.features
    assert resampled(files, None).features == files.features
