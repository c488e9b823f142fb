"""What a model predicted for the rows of an evaluation set, as text short enough for a line of results."""

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_compress.report.outputs import Outputs

KINDS = ("classes", "numbers")
MOST_BYTES = 100_000_000


@dataclass(frozen=True)
class Answers:
    """Labels and predictions of a classification or a regression.

    Args:
        kind: "classes" or "numbers".
        rows: how many rows.
        labels: one byte a row for classes and four for numbers, compressed by zlib, in base64.
        predicted: the same.

    Example:
        >>> import numpy as np
        >>> from hf_compress.report.outputs import Outputs
        >>> from hf_compress.study.grid.answers import Answers
        >>> answers = Answers.of(Outputs("classes", np.array([0, 1, 1]), np.array([0, 1, 0])))
        >>> answers.outputs().predicted.tolist()
        [0, 1, 0]
    """

    kind: str
    rows: int
    labels: str
    predicted: str

    @classmethod
    def of(cls, outputs: Outputs) -> "Answers | None":
        """Return the answers in `outputs`; None if they are of another kind."""
        kind = _type(outputs.kind)
        if outputs.kind not in KINDS or (
            kind == "u1" and max(outputs.labels.max(initial=0), outputs.predicted.max(initial=0)) > 255
        ):
            return None
        packed = (_text(values.astype(kind)) for values in (outputs.labels, outputs.predicted))
        return cls(outputs.kind, outputs.rows, *packed)

    def outputs(self) -> Outputs:
        """Return labels and predictions as arrays.

        Raises:
            ValueError: the text is not that of answers.
        """
        if self.kind not in KINDS:
            raise ValueError(f"`kind` of answers must be one of {', '.join(KINDS)}; got {self.kind[:40]!r}.")
        labels, predicted = (_values(text, _type(self.kind), self.rows) for text in (self.labels, self.predicted))
        return Outputs(self.kind, labels, predicted)  # type: ignore[arg-type]


def _type(kind: str) -> str:
    return "<f4" if kind == "numbers" else "u1"


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _values(text: str, kind: str, rows: int) -> NDArray[Any]:
    size = rows * np.dtype(kind).itemsize
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"`rows` of answers must be from 1 to {MOST_BYTES:,}; got {rows}.")
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"Answers must be compressed by zlib, in base64: {error}.") from error
    if len(content) != size:
        raise ValueError(f"Answers of {rows} rows must have {size} bytes; got {len(content)}.")
    values = np.frombuffer(content, kind)
    return values.astype(np.float64 if kind == "<f4" else np.int64)
