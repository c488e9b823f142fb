"""A teacher's answers, computed once, kept in a file, and joined to the training set as columns.

A digest of everything that the answers depend on names the file.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import transformers
from torch import Tensor

from hf_compress.distill import answer_file
from hf_compress.distill.answer_folder import OPTION, answer_folder, kept_answers
from hf_compress.distill.answers import Batch, Rows, answer_columns, own, token_column
from hf_compress.distill.fingerprints import content, digest
from hf_compress.models.heads import Head

LARGEST = 16 * 2**30
# Change it whenever the stored content changes: the digest in the file name covers it.
FORMAT = "2"
SAMPLE = 16
# Rows are sorted by length within chunks of this many rows, or of this many bytes of answers if that is less.
CHUNK_ROWS, CHUNK_BYTES = 8192, 2**28


@dataclass
class TeacherCache:
    """Keep a teacher's answers on disk, and ask for those that are missing.

    Args:
        folder: where the files are, or `auto` for a folder beside the caches of datasets.
        head: the head of student and teacher.
        teacher: a digest of the teacher, from `identity`.
        columns: the columns of the training set that `collate` takes.
        collate: makes a batch of rows, on the teacher's device.
        read: returns the inputs of a batch that the teacher takes.
        ask: returns the teacher's logits for a batch, as `Head.logits` does.
        side: the side on which tokens are padded, `left` or `right`.
        batch_size: the number of rows in one request to the teacher.
    """

    folder: str
    head: Head
    teacher: str
    columns: list[str]
    collate: Callable[[Rows], Batch]
    read: Callable[[Batch], Batch]
    ask: Callable[[Batch], tuple[Tensor, ...]]
    side: str
    batch_size: int

    def answered(self, dataset: Any) -> Any:
        """Return the `datasets.Dataset` with the teacher's answers as further columns, from a memory-mapped file.

        The file holds the answers only. A digest of the content and order of the rows, their split, the teacher, and
        a batch of sample rows names it. The first process that does not find the file writes it under a lock, and
        others wait. A file that is found is read once and compared with its checksums; a damaged one is written again.

        Raises:
            ValueError: the answers depend on chance or on the other rows of a batch, would take too much space, or
                cannot be written or read.
        """
        sample = self._sample(dataset)
        seen, again = (digest(self.read(self.collate([dict(row) for row in sample])).items()) for _ in range(2))
        if seen != again:
            raise ValueError(
                f"{OPTION} cannot be used with a data collator that makes different batches of the same rows, such as "
                "one that masks tokens at random: the teacher's answers would belong to other inputs. Leave the "
                "option out, or prepare the rows beforehand with `Dataset.map`."
            )
        places = _places(dataset)
        known = {"format": FORMAT, "transformers": transformers.__version__, "split": dataset.split}
        known |= {"rows": content(dataset, self.columns), "places": torch.from_numpy(places)}
        known |= {"table": len(dataset.data), "teacher": self.teacher, "sample": seen}
        key = digest(known.items())
        folder = answer_folder(self.folder)
        with kept_answers(
            folder, key, lambda: self._batches(dataset, places, self._plan(dataset, sample, folder))
        ) as path:
            return self._joined(dataset, path, key)

    def dtype(self, dataset: Any) -> torch.dtype:
        """Return the dtype of the answers in a data set that has them."""
        feature = dataset.features[answer_columns(self.head)[0]]
        while hasattr(feature, "feature"):
            feature = feature.feature
        return torch.float64 if feature.dtype == "float64" else torch.float32

    def _sample(self, dataset: Any) -> Rows:
        """Return a few rows spread over the data, with the columns that the collator takes."""
        numbers = sorted({round(number) for number in np.linspace(0, len(dataset) - 1, SAMPLE)})
        rows = [{name: row[name] for name in self.columns} for row in map(dataset.__getitem__, numbers)]
        tokens = token_column(self.head)
        if tokens is not None and tokens not in rows[0]:
            raise ValueError(
                f"{OPTION} needs a column `{tokens}` for {self.head.name}, but the columns are "
                f"{', '.join(self.columns)}. Leave the option out, or make that column with `Dataset.map`."
            )
        return rows

    def _plan(self, dataset: Any, sample: Rows, folder: Path) -> int:
        """Return the number of rows to sort together.

        Raises:
            ValueError: the answers depend on the other rows of a batch, or would take too much space.
        """
        together = self._answers(sample)
        alone = [self._answers([row]) for row in sample]
        for column, answers in together.items():
            largest = max(float(np.abs(answer).max()) for answer in answers)
            # float32 in float64 models too: some compute position embeddings in float32.
            allowed = 1000 * float(max(np.finfo(answers[0].dtype).eps, np.finfo(np.float32).eps)) * largest
            apart = max(np.abs(one - other[column][0]).max() for one, other in zip(answers, alone, strict=True))
            if not apart <= allowed:
                raise ValueError(
                    f"{OPTION} cannot be used: the teacher's answers to a row alone and in a batch differ by "
                    f"{apart:.2g}. This happens if padding has no `attention_mask`, or if padding comes first and "
                    "positions are counted from it. Pass the mask, pad on the right, pad all rows to one length, or "
                    "leave the option out."
                )
        needed, free = self._bytes(dataset, together), shutil.disk_usage(folder).free
        per_row = needed / len(dataset)
        if needed > min(LARGEST, free):
            limit = (
                f"more than the limit of {LARGEST / 2**30:.0f} GiB" if needed > LARGEST else "more than the free space"
            )
            raise ValueError(
                f"{OPTION} would take about {needed / 2**30:,.1f} GiB in {folder} ({len(dataset):,} rows of "
                f"{per_row / 1024:,.1f} KiB), {limit}. Leave the option out: a live teacher needs no space. "
                "Language models always need much, because they answer each token with a logit for every word."
            )
        return max(self.batch_size, min(CHUNK_ROWS, int(CHUNK_BYTES / max(per_row, 1))))

    def _bytes(self, dataset: Any, sample: Mapping[str, list[np.ndarray[Any, Any]]]) -> int:
        """Return the size of the file, from the answers to sample rows and the number of tokens in all rows.

        Each list, of any depth, has an offset of 4 bytes.
        """
        tokens, total, count = token_column(self.head), 0, len(dataset)
        if tokens is not None:
            lists = dataset.with_format("arrow", columns=[tokens])
            for start in range(0, count, CHUNK_ROWS):
                total += pyarrow.compute.sum(
                    pyarrow.compute.list_value_length(lists[start : start + CHUNK_ROWS][tokens])
                ).as_py()
        needed = 4 * count * len(sample)
        for answers in sample.values():
            shape, items = answers[0].shape[1:], total if tokens is not None else count * len(answers[0])
            width = int(np.prod(shape, dtype=np.int64))
            needed += items * (width * answers[0].itemsize + 4 * len(shape))
        return needed

    def _batches(self, dataset: Any, places: np.ndarray[Any, Any], chunk: int) -> Iterator[pyarrow.RecordBatch]:
        """Yield the answers in the order of the table behind `dataset`, null for rows that `dataset` leaves out."""
        from datasets.utils import tqdm

        columns = answer_columns(self.head)
        unique, first = np.unique(places, return_index=True)
        ordered, end = dataset.select(first), 0
        with tqdm(total=len(unique), desc="Asking the teacher", unit=" rows") as bar:
            for start in range(0, len(unique), chunk):
                some = unique[start : start + chunk]
                rows = ordered[start : start + chunk]
                values = zip(*(rows[name] for name in self.columns), strict=True)
                found = self._answers([dict(zip(self.columns, row, strict=True)) for row in values])
                begin, end = end, len(dataset.data) if start + chunk >= len(unique) else int(some[-1]) + 1
                arrays = []
                for name in columns:
                    spread: list[Any] = [None] * (end - begin)
                    for place, answer in zip(some, found[name], strict=True):
                        spread[place - begin] = answer
                    arrays.append(answer_file.column(spread))
                bar.update(len(some))
                yield pyarrow.RecordBatch.from_arrays(arrays, names=list(columns))

    def _joined(self, dataset: Any, path: Path, key: str) -> Any:
        """Return `dataset` with the columns in the file at `path`; both stay where they are."""
        from datasets import Dataset, Features
        from datasets.table import MemoryMappedTable, concat_tables

        answers = MemoryMappedTable.from_file(str(path))
        info = dataset.info.copy()
        info.features = Features(dict(dataset.features) | dict(Features.from_arrow_schema(answers.schema)))
        table = concat_tables([dataset.data, answers], axis=1)
        joined = Dataset(table, info, dataset.split, indices_table=dataset._indices, fingerprint=key)
        given = dataset.format
        names = [*given["columns"], *answer_columns(self.head)]
        return joined.with_format(
            given["type"], names, output_all_columns=given["output_all_columns"], **given["format_kwargs"]
        )

    def _answers(self, rows: Rows) -> dict[str, list[np.ndarray[Any, Any]]]:
        """Return the answers to each row by column, without padding. Long rows are asked about first."""
        tokens, columns = token_column(self.head), answer_columns(self.head)
        lengths = [_length(row, tokens or self.head.main_input) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        # Ask about all batches before reading the first answer, so that an accelerator never waits.
        asked = [self.ask(self.collate([rows[number] for number in batch])) for batch in batches]
        answers: dict[str, list[Any]] = {column: [None] * len(rows) for column in columns}
        for batch, logits in zip(batches, asked, strict=True):
            for column, tensor in zip(columns, logits, strict=True):
                full = (tensor if tensor.element_size() >= 4 else tensor.float()).cpu().numpy()
                if np.isnan(full).any():
                    raise ValueError(
                        f"{OPTION}: the teacher's answers to some rows are NaN. Check its weights and its dtype "
                        "(float16 overflows; load it in float32), or use another teacher."
                    )
                for number, answer in zip(batch, full, strict=True):
                    answers[column][number] = answer if tokens is None else own(answer, lengths[number], self.side)
        return answers


def _places(dataset: Any) -> np.ndarray[Any, Any]:
    """Return the numbers of the rows of `dataset` in the table behind it, which `shuffle` and `select` keep."""
    if dataset._indices is None:
        return np.arange(len(dataset))
    return np.asarray(dataset._indices.column(0).to_numpy().astype(np.int64))


def _length(row: Mapping[str, Any], column: str) -> int:
    value = row.get(column, ())
    # In multiple choice, a row is a list of rows.
    return sum(map(len, value)) if len(value) and isinstance(value[0], list) else len(value)
