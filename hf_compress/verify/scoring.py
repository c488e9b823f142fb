"""Scoring a finished folder, in any of its formats, on rows of a dataset: without the script that trained it."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

from hf_compress.export.formats import FORMATS
from hf_compress.export.parity import load
from hf_compress.export.runtimes import RuntimeModel
from hf_compress.failures import readable
from hf_compress.models.heads import IGNORED, Head, find_outputs
from hf_compress.report.outputs import Outputs, joined, read_outputs
from hf_compress.report.preprocessing import Preprocessing, resampled
from hf_compress.report.report import Report
from hf_compress.report.rescoring import known_metrics, scores_of, stored_outputs
from hf_compress.report.sentence_trial import PAIRS
from hf_compress.verify.rows import Data, Loaded, NoRowsError, known_preprocessing, load_rows
from hf_compress.verify.sentence_scoring import SentenceRows

BATCH = 32
PROCESSORS = {"image": AutoImageProcessor, "audio": AutoFeatureExtractor}


@dataclass(frozen=True)
class Scored:
    """What a model computes for rows of a dataset.

    Args:
        name: of the rows, in words.
        rows: the index of each row in its split.
        outputs: labels and predictions.
        scores: by the names of the report, as far as they can be computed from predictions of rows.

    Example:
        >>> from hf_compress.verify import score_folder
        >>> scored = score_folder("run/compressed", Data(rows=100))  # doctest: +SKIP
        >>> scored.rows[:3], scored.scores  # doctest: +SKIP
        ([0, 1, 2], {'accuracy': 0.87})
    """

    name: str
    rows: list[int]
    outputs: Outputs
    scores: dict[str, float]


def score_folder(
    folder: str | Path,
    data: Data | None = None,
    *,
    format: str = "packed",
    token: str | None = None,
    batch_size: int = BATCH,
) -> Scored:
    """Score a format of the finished `folder` on a dataset, with the preprocessing of its report, and return it.

    Args:
        folder: with a report.
        data: the rows; by default those that the report names.
        format: a key of `hf_compress.export.FORMATS` that the folder holds.
        token: a Hub token, for a private dataset.
        batch_size: rows that the model computes at once.

    Raises:
        ValueError: the report records no preprocessing, the rows cannot be loaded or do not fit, or the folder does
            not hold the format.
        MissingExtraError: the runtime of the format is not installed.

    Example:
        >>> from hf_compress.verify import score_folder
        >>> score_folder("run/compressed", format="onnx").scores  # doctest: +SKIP
        {'accuracy': 0.856}
    """
    folder, report = Path(folder), Report.load(folder)
    stored_rows, stored = stored_outputs(folder, report) if report.predictions else (None, {})
    loaded = load_rows(report, data or Data(), None if stored_rows is None else stored_rows.tolist(), token)
    kind = FORMATS[format]
    kind.require()
    if not (folder / kind.path).exists():
        raise ValueError(f"{folder} does not hold the format `{format}`.")
    reference = load(folder)
    rows = rows_to_score(folder, report, loaded, find_outputs(reference), batch_size)
    model = kind.read(folder / kind.path, reference)
    outputs = rows.answers(model)
    scores = scores_of(outputs, known_metrics(report, stored), report)
    if isinstance(model, RuntimeModel):
        scores.pop("loss", None)  # As in the report: runtimes get no labels.
    return Scored(loaded.name, loaded.rows, outputs, scores)


@dataclass(frozen=True)
class Batches:
    """Rows of a dataset as inputs of a model, a batch at a time.

    Args:
        head: of the model.
        preprocessing: of the rows.
        processor: the tokenizer, image processor or feature extractor that was saved with the model.
        loaded: the rows.
        size: rows of a batch.
    """

    head: Head
    preprocessing: Preprocessing
    processor: Any
    loaded: Loaded
    size: int = BATCH

    @classmethod
    def of(cls, folder: Path, report: Report, loaded: Loaded, head: Head, size: int = BATCH) -> "Batches":
        """Return the rows `loaded` for the model in `folder`, which has the head `head`.

        Raises:
            NoRowsError: the preprocessing is not known, or these rows have other columns.
        """
        preprocessing = known_preprocessing(report, loaded)
        auto = PROCESSORS.get(preprocessing.kind, AutoTokenizer)
        with readable(f"The tokenizer or processor in {folder}"):
            processor = auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        heard = replace(loaded, split=resampled(loaded.split, processor))
        return cls(head, preprocessing, processor, heard, size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Any]]:
        """Yield the inputs of each batch as tensors, and its labels as an array; None without labels."""
        for start in range(0, len(self.loaded.rows), self.size):
            rows = self.loaded.split.select(self.loaded.rows[start : start + self.size])[:]
            inputs = self._padded(self.preprocessing.inputs(self.processor, rows))
            labels = self.preprocessing.labels(self.processor, rows, self.head)
            yield inputs, None if labels is None else self._array(labels, inputs)

    def inputs(self, most: int) -> list[dict[str, Tensor]]:
        """Return the inputs of the first `most` batches."""
        return [inputs for (inputs, _), _ in zip(self, range(most), strict=False)]

    def _padded(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if self.preprocessing.kind == "image":
            return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        side = getattr(self.processor, "padding_side", "right")
        if self.preprocessing.kind == "words" and side != "right":
            raise NoRowsError("Tokens that are padded on the left cannot be matched with their labels.")
        if self.preprocessing.kind == "audio":
            named: Mapping[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
            return dict(self.processor.pad(named, padding=True, return_tensors="pt"))
        return dict(self.processor.pad(list(rows), padding=True, return_tensors="pt"))

    def _array(self, labels: Sequence[Any], inputs: Mapping[str, Tensor]) -> Any:
        if self.preprocessing.kind != "words":
            return np.asarray(labels)
        width = inputs[self.head.main_input].shape[1]
        return np.array([[*row, *[IGNORED] * (width - len(row))] for row in labels])

    def answers(self, model: nn.Module) -> Outputs:
        """Return labels and predictions of `model` for all rows.

        Raises:
            NoRowsError: the rows have no labels.
        """
        taken = None if isinstance(model, RuntimeModel) else set(inspect.signature(model.forward).parameters)
        parts = []
        for inputs, labels in self:
            if labels is None:
                raise NoRowsError(f"{self.loaded.name} has no labels.")
            known = {name: value for name, value in inputs.items() if taken is None or name in taken}
            with torch.no_grad():
                logits = self.head.logits(model(**known))[0]
            parts.append(read_outputs(self.head, logits, labels))
        return joined(parts)


def rows_to_score(
    folder: Path, report: Report, loaded: Loaded, head: Head, size: int = BATCH
) -> Batches | SentenceRows:
    """Return the rows `loaded` for the model in `folder`, by the library that it is of.

    Raises:
        NoRowsError: the preprocessing is not known, or these rows have other columns.
        MissingExtraError: sentence-transformers is needed and not installed.
    """
    found = report.dataset.preprocessing
    if report.sentence_class is not None if found is None else found.kind == PAIRS:
        return SentenceRows.of(folder, report, loaded)
    return Batches.of(folder, report, loaded, head, size)
