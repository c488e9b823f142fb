"""The names of the classes that a model predicts, and their order in two models."""

import re

from transformers import PreTrainedConfig


def has_default_labels(config: PreTrainedConfig) -> bool:
    """Return whether every class is called `LABEL_0`, `LABEL_1`, ... because nobody named it."""
    return all(re.fullmatch(r"LABEL_\d+", str(name)) for name in config.id2label.values())


def class_order(student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[int] | None:
    """Return the teacher's class for each of the student's classes, or None if the names differ.

    Names are compared without regard to case. Indexing the teacher's logits with the result puts them in the
    student's order.
    """
    student_names, teacher_names = (
        [str(config.id2label[index]).casefold() for index in range(config.num_labels)] for config in (student, teacher)
    )
    if student_names == teacher_names:
        return list(range(len(student_names)))
    if sorted(student_names) != sorted(teacher_names) or len(set(student_names)) < len(student_names):
        return None
    return [teacher_names.index(name) for name in student_names]
