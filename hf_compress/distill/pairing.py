"""Which layer of the student learns from which layer of the teacher."""

import re

from hf_compress.cut.students import chosen_layers

UNIFORM, LAST = "uniform", "last"
Pairs = list[tuple[int, int]]


def parse_pairs(text: str) -> Pairs | None:
    """Parse the value of `--distill_layers`; the result is None for `uniform` and `last`.

    Raises:
        ValueError: the text is neither of them, and no list of pairs, or a layer of the student is named twice.
    """
    if text in (UNIFORM, LAST):
        return None
    if not re.fullmatch(r"\s*\d+\s*:\s*\d+\s*(,\s*\d+\s*:\s*\d+\s*)*,?\s*", text):
        raise ValueError(
            f"`--distill_layers` must be `{UNIFORM}`, `{LAST}`, or pairs student:teacher such as 0:2,1:5; got "
            f"{text!r}. Layers are counted from 0."
        )
    pairs = [(int(ours), int(theirs)) for ours, theirs in re.findall(r"(\d+)\s*:\s*(\d+)", text)]
    twice = [ours for ours, _ in pairs if sum(ours == other for other, _ in pairs) > 1]
    if twice:
        raise ValueError(
            f"`--distill_layers` must name each layer of the student once; got {text}, which names {twice[0]} twice. "
            "Leave one of the pairs out."
        )
    return sorted(pairs)


def pair_layers(text: str, student: int, teacher: int, kept: int | list[int] | None = None) -> Pairs:
    """Return the pairs of layers, as (student's, teacher's) from 0, in ascending order.

    `uniform` pairs each layer of the shallower model with one of the other, evenly and last with last. A student that
    was cut from a model as deep as the teacher learns from the layers that its own came from.

    Args:
        text: the value of `--distill_layers`.
        student: the number of the student's layers.
        teacher: the number of the teacher's layers.
        kept: `--distill_student_layers`, if the student was cut from a model as deep as the teacher.

    Raises:
        ValueError: a model has no such layer.

    Example:
        >>> from hf_compress.distill.pairing import pair_layers
        >>> pair_layers("uniform", 3, 6), pair_layers("uniform", 3, 6, kept=3), pair_layers("last", 3, 6)
        ([(0, 1), (1, 3), (2, 5)], [(0, 0), (1, 2), (2, 5)], [(2, 5)])
    """
    given = parse_pairs(text)
    if given is not None:
        for side, depth, largest in (
            ("student", student, max(ours for ours, _ in given)),
            ("teacher", teacher, max(theirs for _, theirs in given)),
        ):
            if largest >= depth:
                raise ValueError(
                    f"`--distill_layers {text}` names layer {largest} of the {side}, whose layers are 0 to "
                    f"{depth - 1}. Pairs are student:teacher, counted from 0."
                )
        return given
    if text == LAST:
        return [(student - 1, teacher - 1)]
    if kept is not None:
        return list(enumerate(chosen_layers(kept, teacher)))
    count = min(student, teacher)
    return [((index + 1) * student // count - 1, (index + 1) * teacher // count - 1) for index in range(count)]
