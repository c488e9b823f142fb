"""The dropout of a student while it learns from a teacher."""

import contextlib
from collections.abc import Iterator

from torch import nn

from hf_compress.models.stacks import dropouts


@contextlib.contextmanager
def student_dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Give all dropout of `model` one probability inside the context; None leaves it as it is.

    Dropout that is off stays off. In evaluation mode there is none in any case.
    """
    found = [] if probability is None else [(*place, getattr(*place)) for place in dropouts(model)]
    try:
        for module, name, _ in found:
            setattr(module, name, probability)
        yield
    finally:
        for module, name, before in found:
            setattr(module, name, before)
