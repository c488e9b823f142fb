"""A teacher's answers, computed once: a column of the training set, found again by all that they depend on."""

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
# To be changed with what is stored: a file is found by its name, and the name covers this.
FORMAT = "1"
SAMPLE = 16
# Rows are sorted by length within so many, or within so many bytes of answers if these are fewer.
CHUNK_ROWS, CHUNK_BYTES = 8192, 2**28
# Parts of the names of weights that are not the base model's but its adapter's.
ADAPTED = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}


@dataclass
class TeacherCache:
    """Where a teacher's answers are kept, and how to ask for those that are not there yet.

    Args:
        teacher: what determines the teacher, from `identity`.
        columns: those of the training set that `collate` takes.
        collate: makes a batch of rows, on the teacher's device.
        read: what the teacher takes of a batch.
        ask: the teacher's logits for a batch, as `Head.logits` returns them.
        side: where tokens are padded.
        batch_size: how many rows are asked about at once.
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
        """The `datasets.Dataset` with the teacher's answers as columns, from a memory-mapped file.

        The file's name is a digest of the data's fingerprint, its split, the teacher, and what the collator makes of a
        sample of rows. The first process that finds no such file writes it, under a lock for which others wait; it has
        its name only once it is complete.

        Raises:
            ValueError: the answers depend on chance or on the other rows of a batch, would take too much room, or
                cannot be written.
        """
        sample = self._sample(dataset)
        seen, again = (_digest(self.read(self.collate([dict(row) for row in sample])).items()) for _ in range(2))
        if seen != again:
            raise ValueError(
                f"{OPTION} cannot be used with a data collator that makes something else of the same rows each time, "
                "such as one that masks tokens at random: the teacher's answers would belong to other inputs. Leave "
                "the option out, or prepare the rows beforehand with `Dataset.map`."
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
        """The type of the answers in a data set that has them."""
        feature = dataset.features[answer_columns(self.head)[0]]
        while hasattr(feature, "feature"):
            feature = feature.feature
        return torch.float64 if feature.dtype == "float64" else torch.float32

    def _sample(self, dataset: Any) -> Rows:
        """Some rows from all over the data, with the columns that the collator takes."""
        numbers = sorted({round(number) for number in np.linspace(0, len(dataset) - 1, SAMPLE)})
        rows = [{name: row[name] for name in self.columns} for row in map(dataset.__getitem__, numbers)]
        tokens = token_column(self.head)
        if tokens is not None and tokens not in rows[0]:
            raise ValueError(
                f"{OPTION} needs a column `{tokens}` for {self.head.name}; there are {', '.join(self.columns)}. Leave "
                "the option out, or let `Dataset.map` make that column."
            )
        return rows

    def _plan(self, dataset: Any, sample: Rows, folder: Path) -> dict[str, Any]:
        """How to fill the cache: the type and depth of its answers, and the rows to sort together.

        Raises:
            ValueError: it should not be filled.
        """
        together = self._answers(sample)
        alone = [self._answers([row]) for row in sample]
        for column, answers in together.items():
            largest = max(float(np.abs(answer).max()) for answer in answers)
            # Also in float64, where some models still compute the places of tokens in float32.
            allowed = 1000 * float(max(np.finfo(answers[0].dtype).eps, np.finfo(np.float32).eps)) * largest
            apart = max(np.abs(one - other[column][0]).max() for one, other in zip(answers, alone, strict=True))
            if not apart <= allowed:
                raise ValueError(
                    f"{OPTION} cannot be used: the teacher answers differently about a row alone and in a batch (by "
                    f"{apart:.2g}), as where padding has no `attention_mask` or stands before tokens whose places are "
                    "counted. Give the mask, pad on the right, pad all rows to one length, or leave the option out."
                )
        per_row = sum(answer.nbytes for answers in together.values() for answer in answers) / len(sample)
        needed, free = int(per_row * len(dataset)), shutil.disk_usage(folder).free
        if needed > min(LARGEST, free):
            limit = (
                f"more than the {LARGEST / 2**30:.0f} GiB that it may have"
                if needed > LARGEST
                else "more than is free"
            )
            raise ValueError(
                f"{OPTION} would take about {needed / 2**30:,.1f} GiB in {folder} ({len(dataset):,} rows of "
                f"{per_row / 1024:,.1f} KiB), {limit}. Leave the option out: a live teacher needs no room. So it is "
                "for language models, which answer every token with a number for every word."
            )
        answer = next(iter(together.values()))[0]
        chunk = max(self.batch_size, min(CHUNK_ROWS, int(CHUNK_BYTES / max(per_row, 1))))
        return {"dtype": str(answer.dtype), "depth": answer.ndim, "chunk": chunk}

    def _mapped(
        self, dataset: Any, path: Path, key: str, dtype: str = "float32", depth: int = 1, chunk: int = CHUNK_ROWS
    ) -> Any:
        from datasets import Features, List, Value

        if path.exists():
            features = None  # Those in the file.
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
        """The answers to each of the rows by column, without what was padded; asked by falling length."""
        tokens, columns = token_column(self.head), answer_columns(self.head)
        lengths = [_length(row, tokens or self.head.main_input) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        # All are asked before the first is looked at, so that an accelerator need not wait for us.
        asked = [self.ask(self.collate([rows[number] for number in batch])) for batch in batches]
        answers: dict[str, list[Any]] = {column: [None] * len(rows) for column in columns}
        for batch, logits in zip(batches, asked, strict=True):
            for column, tensor in zip(columns, logits, strict=True):
                full = (tensor if tensor.element_size() >= 4 else tensor.float()).cpu().numpy()
                for number, answer in zip(batch, full, strict=True):
                    answers[column][number] = answer if tokens is None else own(answer, lengths[number], self.side)
        return answers


def identity(teacher: nn.Module, processing_class: Any, adapter_off: bool = False) -> str:
    """A digest of all that makes a teacher answer as it does: its class, configuration and weights, and the tokenizer.

    Args:
        adapter_off: whether it is the base model of an adapter, the weights of which then are not its own.
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
    """Refuses training data to which no column can be added.

    Raises:
        ValueError: it is no `datasets.Dataset`, or its rows are made anew whenever they are read.
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
            f"{OPTION} cannot be used with `Dataset.set_transform`, which may make other rows every time. Prepare "
            "them with `Dataset.map`, or leave the option out."
        )


def _folder(name: str) -> Path:
    """The folder that `--distill_cache` names, made if it is not there."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "teachers" if name == AUTO else Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`--distill_cache {name}` must be a folder that can be written to: {error}. Give another, or `{AUTO}`."
        ) from error
    return folder


def _length(row: Mapping[str, Any], column: str) -> int:
    value = row.get(column, ())
    # Of multiple choice a row is a list of rows.
    return sum(map(len, value)) if len(value) and isinstance(value[0], list) else len(value)


def _digest(items: Iterable[tuple[str, Any]]) -> str:
    """A digest of named values; of tensors it covers type, shape and every byte."""
    digest = hashlib.sha256()
    for name, value in items:
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!s} ".encode())
    return digest.hexdigest()[:32]
