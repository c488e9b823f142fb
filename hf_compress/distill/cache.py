"""A teacher's answers, computed once and kept as a column of the training set.

A digest of everything that the answers depend on names the file.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_compress.distill.answers import Batch, Rows, answer_columns, own, token_column
from hf_compress.models.heads import Head, bare

AUTO = "auto"
OPTION = "`--distill_cache`"
LARGEST = 16 * 2**30
# Change it whenever the stored content changes: the digest in the file name covers it.
FORMAT = "1"
SAMPLE = 16
# Rows are sorted by length within chunks of this many rows, or of this many bytes of answers if that is less.
CHUNK_ROWS, CHUNK_BYTES = 8192, 2**28
# Parts of the names of weights that belong to an adapter, not to its base model.
ADAPTED = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}


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
        """Return the `datasets.Dataset` with the teacher's answers as columns, from a memory-mapped file.

        A digest of the data's fingerprint, its split, the teacher, and a batch of sample rows names the file. The
        first process that does not find the file writes it under a lock, and others wait. The file gets its name when
        it is complete.

        Raises:
            ValueError: the answers depend on chance or on the other rows of a batch, would take too much space, or
                cannot be written.
        """
        sample = self._sample(dataset)
        seen, again = (_digest(self.read(self.collate([dict(row) for row in sample])).items()) for _ in range(2))
        if seen != again:
            raise ValueError(
                f"{OPTION} cannot be used with a data collator that makes different batches of the same rows, such as "
                "one that masks tokens at random: the teacher's answers would belong to other inputs. Leave the "
                "option out, or prepare the rows beforehand with `Dataset.map`."
            )
        known = {"format": FORMAT, "transformers": transformers.__version__, "data": dataset._fingerprint}
        known |= {"rows": len(dataset), "split": dataset.split, "teacher": self.teacher, "sample": seen}
        key = _digest(known.items())
        folder = _folder(self.folder)
        path = folder / f"teacher-{key}.arrow"
        with FileLock(path.with_suffix(".lock")):
            settings: dict[str, Any] = {} if path.exists() else self._plan(dataset, sample, folder)
            return self._mapped(dataset, path, key, **settings)

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

    def _plan(self, dataset: Any, sample: Rows, folder: Path) -> dict[str, Any]:
        """Return how to fill the cache: dtype and depth of the answers, and the number of rows to sort together.

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
        per_row = sum(answer.nbytes for answers in together.values() for answer in answers) / len(sample)
        needed, free = int(per_row * len(dataset)), shutil.disk_usage(folder).free
        if needed > min(LARGEST, free):
            limit = (
                f"more than the limit of {LARGEST / 2**30:.0f} GiB" if needed > LARGEST else "more than the free space"
            )
            raise ValueError(
                f"{OPTION} would take about {needed / 2**30:,.1f} GiB in {folder} ({len(dataset):,} rows of "
                f"{per_row / 1024:,.1f} KiB), {limit}. Leave the option out: a live teacher needs no space. "
                "Language models always need much, because they answer each token with a logit for every word."
            )
        answer = next(iter(together.values()))[0]
        chunk = max(self.batch_size, min(CHUNK_ROWS, int(CHUNK_BYTES / max(per_row, 1))))
        return {"dtype": str(answer.dtype), "depth": answer.ndim, "chunk": chunk}

    def _mapped(
        self, dataset: Any, path: Path, key: str, dtype: str = "float32", depth: int = 1, chunk: int = CHUNK_ROWS
    ) -> Any:
        from datasets import Features, List, Value

        if path.exists():
            features = None  # The file has them.
        else:
            feature: Any = Value(dtype)
            for _ in range(depth):
                feature = List(feature)
            features = Features(dict(dataset.features) | dict.fromkeys(answer_columns(self.head), feature))
        return dataset.map(
            lambda *values: self._answers(
                [dict(zip(self.columns, row, strict=True)) for row in zip(*values, strict=True)]
            ),
            input_columns=self.columns,
            batched=True,
            batch_size=chunk,
            features=features,
            cache_file_name=str(path),
            load_from_cache_file=True,
            new_fingerprint=key,
            desc="Asking the teacher",
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
                for number, answer in zip(batch, full, strict=True):
                    answers[column][number] = answer if tokens is None else own(answer, lengths[number], self.side)
        return answers


def identity(teacher: nn.Module, processing_class: Any, adapter_off: bool = False) -> str:
    """Return a digest of a teacher: its class, configuration and weights, and the tokenizer.

    Args:
        adapter_off: whether the teacher is the base model of an adapter, whose weights are then left out.
    """
    model = bare(teacher)
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    facts: dict[str, Any] = {"class": type(model).__name__, "config": repr(sorted(config.items()))}
    facts["attention"] = model.config._attn_implementation
    if isinstance(teacher, PeftModel):
        facts["adapter"] = repr(teacher.peft_config)
    if isinstance(processing_class, PreTrainedTokenizerBase):
        facts["vocabulary"] = repr(sorted(processing_class.get_vocab().items()))
        facts["special"] = repr(
            sorted((name, str(token)) for name, token in processing_class.special_tokens_map.items())
        )
        facts["side"] = processing_class.padding_side
    weights = teacher.state_dict()
    if adapter_off:
        weights = {name: value for name, value in weights.items() if not ADAPTED & set(name.split("."))}
    return _digest([*facts.items(), *weights.items()])


def check_dataset(dataset: Any) -> None:
    """Refuse training data to which no column can be added.

    Raises:
        ValueError: the data is not a `datasets.Dataset`, or its rows are made when they are read.
    """
    from datasets import Dataset

    if dataset is None:
        return
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{OPTION} adds a column to the `train_dataset`, which must be a `datasets.Dataset`; got "
            f"{type(dataset).__module__.partition('.')[0]}.{type(dataset).__name__}. Make one with "
            "`Dataset.from_list` or by loading without streaming, or leave the option out."
        )
    if dataset.format["type"] == "custom":
        raise ValueError(
            f"{OPTION} cannot be used with `Dataset.set_transform`, which may return different rows every time. "
            "Prepare them with `Dataset.map`, or leave the option out."
        )


def _folder(name: str) -> Path:
    """Return the folder that `--distill_cache` names; create it if needed."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "teachers" if name == AUTO else Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`--distill_cache {name}` must be a writable folder: {error}. Give another folder, or `{AUTO}`."
        ) from error
    return folder


def _length(row: Mapping[str, Any], column: str) -> int:
    value = row.get(column, ())
    # In multiple choice, a row is a list of rows.
    return sum(map(len, value)) if len(value) and isinstance(value[0], list) else len(value)


def _digest(items: Iterable[tuple[str, Any]]) -> str:
    """Return a digest of named values; for tensors it covers dtype, shape and every byte."""
    digest = hashlib.sha256()
    for name, value in items:
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!s} ".encode())
    return digest.hexdigest()[:32]
