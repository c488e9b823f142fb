"""Predictions of rows: recorded while a Trainer evaluates, and kept as a small Parquet file beside the report."""

import functools
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.utils.data import Sampler, SequentialSampler
from transformers import EvalPrediction, Trainer

from hf_compress.checkpoint.aside import written_aside
from hf_compress.models.heads import Head, find_head
from hf_compress.report.outputs import Outputs, UnreadableError, joined, part_of, read_outputs

PREDICTIONS_NAME, EXTRA_NAME = "predictions.parquet", "predictions-extra.parquet"
DENSE, COMPRESSED, TEACHER, CONTROL = "dense", "compressed", "teacher", "control"
KIND = "kind"
# A file of more than this many labels is not small.
MOST_LABELS = 5_000_000


class Recorder:
    """What each model of a report predicted for each row, recorded while the Trainer evaluates it.

    `outputs` has them by the name of the model. `obstacles` says in a sentence why a model has none. `ordered` are the
    models that were evaluated in another order, for example by length, and whose outputs are in that of the evaluation
    set again. `rows` has the index of each row in its split, if it was found by trial.

    Example:
        >>> from hf_compress.report.predictions import Recorder
        >>> recorder = Recorder()
        >>> with recorder.recording(trainer, "dense"):  # doctest: +SKIP
        ...     trainer.evaluate()
        >>> recorder.outputs["dense"].rows  # doctest: +SKIP
        872
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Outputs] = {}
        self.obstacles: dict[str, str] = {}
        self.ordered: set[str] = set()
        self.rows: list[int] | None = None

    @contextmanager
    def recording(self, trainer: Trainer, name: str) -> Iterator[None]:
        """A context in which all that `trainer` passes to its `compute_metrics` is recorded for the model `name`."""
        compute = trainer.compute_metrics
        if compute is None:
            self.obstacles[name] = "The script has no `compute_metrics`, so its Trainer keeps no predictions."
            yield
            return
        reader = _Reader(find_head(trainer.model), batches=trainer.args.batch_eval_metrics)

        @functools.wraps(compute)
        def recorded(prediction: EvalPrediction, *args: Any, **kwargs: Any) -> Any:
            reader.read(prediction)  # Before the script, which may overwrite -100 in the labels.
            return compute(prediction, *args, **kwargs)

        trainer.compute_metrics = recorded
        try:
            with _order_noted(trainer) as order:
                yield
        finally:
            trainer.compute_metrics = compute
        try:
            outputs = reader.outputs()
        except UnreadableError as error:
            self.obstacles[name] = str(error)
            return
        if sorted(order) == list(range(outputs.rows)):
            self.ordered.add(name)
            outputs = part_of(outputs, np.argsort(order).tolist())
        self.outputs[name] = outputs

    def same(self, name: str, other: str) -> None:
        """Take the outputs of the model `other` for the model `name`, because they are the same model."""
        for found in (self.outputs, self.obstacles):
            if other in found:
                found[name] = found[other]  # type: ignore[index,assignment]
        self.ordered |= {name} if other in self.ordered else set()


@contextmanager
def _order_noted(trainer: Trainer) -> Iterator[list[int]]:
    """A context with a list that gets the rows in the order of evaluation, unless that is the one of the set."""
    order: list[int] = []
    make, own = trainer._get_eval_sampler, vars(trainer).get("_get_eval_sampler")

    def noted(rows: Any) -> Any:
        sampler = make(rows)
        return sampler if isinstance(sampler, SequentialSampler | None) else _Noted(sampler, order)

    trainer._get_eval_sampler = noted
    try:
        yield order
    finally:
        del trainer._get_eval_sampler
        if own is not None:
            trainer._get_eval_sampler = own


class _Noted(Sampler[int]):
    """A sampler that notes the rows that another one draws."""

    def __init__(self, sampler: Any, order: list[int]) -> None:
        self.sampler, self.order = sampler, order

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.order[:] = [int(index) for index in self.sampler]
        return iter([*self.order])


class _Reader:
    """Turns calls of `compute_metrics` into outputs as they come, so that no logits are kept."""

    def __init__(self, head: Head, *, batches: bool) -> None:
        self.head, self.batches = head, batches
        self.parts: list[Outputs] = []
        self.error: UnreadableError | None = None

    def read(self, prediction: EvalPrediction) -> None:
        if self.parts and not self.batches:
            self.error = UnreadableError("The script evaluates several sets of rows.")
        if self.error is not None:
            return
        try:
            self.parts.append(read_outputs(self.head, prediction.predictions, prediction.label_ids))
        except UnreadableError as error:
            self.error = error

    def outputs(self) -> Outputs:
        if self.error is not None:
            raise self.error
        return joined(self.parts)


def row_numbers(
    trainer: Trainer, rows: Any, outputs: Outputs, found: Sequence[int] | None = None, *, ordered: bool = False
) -> NDArray[Any]:
    """The index in its split of each row that `outputs` has: `found` if that is known, or what `datasets` knows.

    For `datasets`, rows that were selected or shuffled have the index that they had before, until `map` writes them
    anew. With `ordered`, the outputs are known to be in the order of the evaluation set.

    Raises:
        UnreadableError: there are several sets of rows, or they were not evaluated one after the other.
    """
    from datasets import Dataset

    if isinstance(rows, Mapping):
        raise UnreadableError("The script evaluates several sets of rows.")
    if not isinstance(rows, Sized):
        return np.arange(outputs.rows)
    if len(rows) != outputs.rows:
        raise UnreadableError(f"The evaluation set has {len(rows):,} rows, and {outputs.rows:,} were evaluated.")
    labels = _labels(rows, outputs) if isinstance(rows, Dataset) else None
    in_order = ordered or isinstance(trainer._get_eval_sampler(rows), SequentialSampler | None)
    if not (in_order if labels is None else np.allclose(labels, outputs.labels)):
        raise UnreadableError("The rows were not evaluated in the order of the evaluation set.")
    if found is not None and len(found) == outputs.rows:
        return np.asarray(found)
    indices = rows._indices if isinstance(rows, Dataset) else None
    return np.arange(outputs.rows) if indices is None else indices.column(0).to_numpy()


def _labels(rows: Any, outputs: Outputs) -> NDArray[Any] | None:
    """The labels of a `Dataset` in its order, to compare with those that were evaluated; None if it has no such."""
    if outputs.kind not in ("classes", "numbers"):
        return None
    columns = [name for name in ("label", "labels", "label_ids") if name in rows.column_names]
    if len(columns) != 1:
        return None
    values = np.asarray(rows.with_format(None)[columns[0]][:])
    return values if values.dtype.kind in "iuf" and values.shape == outputs.labels.shape else None


def save_predictions(
    folder: str | Path, row: NDArray[Any], outputs: Mapping[str, Outputs], name: str = PREDICTIONS_NAME
) -> str | None:
    """The name of the Parquet file written into `folder`; None if there are too many labels for a small file.

    Its columns are `row`, `label`, and for each model its predictions, and its logits where they are known. Tokens,
    flags and spans are lists. The metadata of the file name the kind of the outputs.

    Args:
        folder: that of the report.
        row: the index of each row in its split.
        outputs: by model, of the same rows; "dense", "control" and "compressed".
        name: of the file.
    """
    first = next(iter(outputs.values()))
    if first.labels.size > MOST_LABELS:
        return None
    columns = {"row": pa.array(row.astype(np.int64)), "label": _column(first, first.labels)}
    columns |= {model: _column(one, one.predicted) for model, one in outputs.items()}
    for model, one in outputs.items():
        if one.logits is not None:
            columns[f"{model}_logits"] = _lists(one.logits.astype(np.float16))
    with written_aside(Path(folder), name, replace=True) as aside:
        table = pa.table(columns).replace_schema_metadata({KIND: first.kind})
        pq.write_table(table, aside, compression="zstd")
    return name


def read_predictions(folder: str | Path, name: str = PREDICTIONS_NAME) -> dict[str, Any]:
    """The columns of the predictions in `folder`, by name, as numpy arrays; lists become arrays of each row.

    Args:
        folder: that of a report.
        name: of the file: `predictions` of the report, or of its extra set.

    Raises:
        ValueError: there is no such file, or it is not a Parquet file of predictions.

    Example:
        >>> from hf_compress.report.predictions import read_predictions
        >>> columns = read_predictions("run/compressed")  # doctest: +SKIP
        >>> (columns["label"] == columns["compressed"]).mean()  # doctest: +SKIP
        0.856
    """
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{folder} holds no {name}. Give a folder whose report names one.")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}. Compress again, or fetch it again.") from error
    missing = sorted({"row", "label", COMPRESSED} - {*table.column_names})
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}. Compress again, or fetch it again.")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _column(outputs: Outputs, values: NDArray[Any]) -> pa.Array:
    """Labels or predictions in the smallest type that holds them: a value a row, or a list."""
    if outputs.kind == "numbers":
        return pa.array(values.astype(np.float32))
    small = values.astype(np.min_scalar_type(min(-1, -int(abs(values).max(initial=0)) - 1)))
    if outputs.lengths is None:
        return _lists(small) if small.ndim == 2 else pa.array(small)
    return _split(small, outputs.lengths)


def _lists(values: NDArray[Any]) -> pa.Array:
    return _split(values.reshape(-1), np.full(len(values), values.shape[1]))


def _split(values: NDArray[Any], lengths: Sequence[int] | NDArray[Any]) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))
