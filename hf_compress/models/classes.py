"""The names of the classes that a model predicts, and their order in two models."""

import re

from transformers import PreTrainedConfig


def class_names(config: PreTrainedConfig) -> list[str]:
    """Return the name of each class, in the order of the logits.

    The numbers of `id2label` may be texts: scripts of Transformers write them so, and a configuration that was never
    saved keeps them. A class without a name gets Transformers' own, such as `LABEL_0`.

    Example:
        >>> from transformers import BertConfig
        >>> from hf_compress.models.classes import class_names
        >>> config = BertConfig(num_labels=2)
        >>> config.id2label = {"1": "cat", "0": "dog"}
        >>> class_names(config)
        ['dog', 'cat']
    """
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return [names.get(number, f"LABEL_{number}") for number in range(config.num_labels)]


def has_default_labels(config: PreTrainedConfig) -> bool:
    """Return whether every class is called `LABEL_0`, `LABEL_1`, ... because nobody named it."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in class_names(config))


def class_order(student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[int] | None:
    """Return the teacher's class for each of the student's classes, or None if the names differ.

    Names are compared without regard to case. Indexing the teacher's logits with the result puts them in the
    student's order.
    """
    student_names, teacher_names = ([name.casefold() for name in class_names(config)] for config in (student, teacher))
    if student_names == teacher_names:
        return list(range(len(student_names)))
    if sorted(student_names) != sorted(teacher_names) or len(set(student_names)) < len(student_names):
        return None
    return [teacher_names.index(name) for name in student_names]
