"""The names of classes, and their order in two models."""

from transformers import BertConfig

from hf_compress.models.classes import class_names, class_order, has_default_labels


def config(names: dict[object, str]) -> BertConfig:
    made = BertConfig(num_labels=len(names))
    made.id2label = names
    return made


def test_numbers_of_classes_may_be_texts() -> None:
    ours, theirs = config({"2": "red", "0": "blue", "1": "green"}), config({0: "green", 1: "Red", 2: "blue"})
    assert class_names(ours) == ["blue", "green", "red"]
    assert class_order(ours, theirs) == [2, 0, 1]
    assert not has_default_labels(ours)


def test_a_class_without_a_name_has_the_one_of_transformers() -> None:
    unnamed = config({"0": "LABEL_0", "1": "LABEL_1"})
    assert class_names(unnamed) == class_names(BertConfig(num_labels=2)) == ["LABEL_0", "LABEL_1"]
    assert has_default_labels(unnamed)
