"""A teacher's embeddings of texts, or scores of pairs, computed once and kept in a file."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_compress.distill import answer_file
from hf_compress.distill.answer_folder import OPTION, answer_folder, kept_answers
from hf_compress.distill.fingerprints import digest, identity
from hf_compress.models.targets import transformer

Question = tuple[str | None, Any]  # A prompt, and a text or a pair of texts.
FORMAT = "1"  # Change it whenever the stored content changes.
CHUNK = 4096  # Texts that the teacher is asked about at once.


class SentenceCache:
    """A teacher's answers, found by prompt and text. Texts that are equal share one.

    Args:
        keys: of the questions, ascending.
        answers: a memory-mapped part of shape (up to `CHUNK`, width) for each `CHUNK` of them.
    """

    def __init__(self, keys: NDArray[np.uint64], answers: list[NDArray[Any]]) -> None:
        self.keys, self.answers = keys, answers

    @classmethod
    def filled(
        cls,
        folder: str,
        teacher: str,
        questions: Iterable[Question],
        ask: Callable[[str | None, Sequence[Any]], Tensor],
    ) -> "SentenceCache":
        """Return the answers to all questions, from a file in `folder` that is written if it is not there.

        The first process that does not find the file writes it under a lock, and others wait.

        Args:
            folder: the value of `--distill_cache`.
            teacher: its digest, from `identity_of`.
            questions: everything that will be asked in training.
            ask: returns the teacher's answers to texts with one prompt, of shape (texts, width).

        Raises:
            ValueError: the file would not fit, or cannot be written or read.
        """
        known = {key_of(*question): question for question in questions}
        keys = np.array(sorted(known), np.uint64)
        facts = {"format": FORMAT, "library": version("sentence-transformers"), "teacher": teacher}
        name = digest([*facts.items(), ("keys", torch.from_numpy(keys.view(np.int64)))])
        place, ordered = answer_folder(folder), [known[int(key)] for key in keys]

        def asked() -> Iterator[pyarrow.RecordBatch]:
            _check_space(place, ordered, ask)
            return _asked(ordered, ask)

        with kept_answers(place, name, asked) as path:
            return cls(keys, _read(path))

    def of(self, prompt: str | None, texts: Sequence[Any]) -> Tensor:
        """Return the answers to texts with a prompt, of shape (texts, width).

        Raises:
            ValueError: the teacher was not asked about one of them.
        """
        wanted = np.array([key_of(prompt, text) for text in texts], np.uint64)
        places = np.searchsorted(self.keys, wanted)
        known = places < len(self.keys)
        known[known] = self.keys[places[known]] == wanted[known]
        if not known.all():
            text = texts[int(np.argmin(known))]
            raise ValueError(
                f"{OPTION} has no answer for a text of the training set: {str(text)[:80]!r}. Its rows are made anew "
                "at every access, by `with_transform` or the collator. Leave the option out."
            )
        return torch.from_numpy(np.stack([self.answers[place // CHUNK][place % CHUNK] for place in places]))


def key_of(prompt: str | None, text: Any) -> int:
    """Return a number of 64 bits for a prompt with a text or a pair of texts.

    Example:
        >>> from hf_compress.distill.sentence_cache import key_of
        >>> key_of(None, "a text") == key_of("", "a text") != key_of("query: ", "a text")
        True
    """
    said = repr((prompt or "", text if isinstance(text, str) else tuple(text)))
    return int.from_bytes(hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def identity_of(teacher: nn.Module) -> str:
    """Return a digest of a model of sentence-transformers: modules, settings, weights, tokenizer."""
    model = cast(Any, teacher)
    settings = [
        (name, f"{type(part).__name__} {part.get_config_dict() if hasattr(part, 'get_config_dict') else part}")
        for name, part in cast(Any, teacher).named_children()
    ]
    facts = [("inner", identity(transformer(teacher), model.tokenizer)), ("length", model.max_seq_length)]
    return digest([*facts, *settings, *teacher.state_dict().items()])


def _check_space(folder: Path, questions: list[Question], ask: Callable[..., Tensor]) -> None:
    prompt, text = questions[0]
    answer = ask(prompt, [text])
    needed, free = len(questions) * answer.shape[-1] * 4, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{OPTION} would take about {needed / 2**30:,.1f} GiB in {folder} ({len(questions):,} texts of "
            f"{answer.shape[-1]:,} numbers), more than the free space. Give another folder, or leave the option out: "
            "a live teacher needs no space."
        )


def _asked(questions: list[Question], ask: Callable[..., Tensor]) -> Iterator[pyarrow.RecordBatch]:
    """Yield the answers to the questions, a batch for each `CHUNK` of them."""
    from datasets.utils import tqdm

    with tqdm(total=len(questions), desc="Asking the teacher", unit=" texts") as bar:
        for start in range(0, len(questions), CHUNK):
            some = questions[start : start + CHUNK]
            found: list[Any] = [None] * len(some)
            for prompt in dict.fromkeys(prompt for prompt, _ in some):
                places = [place for place, (own, _) in enumerate(some) if own == prompt]
                answers = ask(prompt, [some[place][1] for place in places]).float().cpu().numpy()
                if np.isnan(answers).any():
                    raise ValueError(
                        f"{OPTION}: the teacher's answers to some texts are NaN. Check its weights and its dtype "
                        "(float16 overflows; load it in float32), or use another teacher."
                    )
                for place, answer in zip(places, answers, strict=True):
                    found[place] = answer
            bar.update(len(some))
            yield pyarrow.RecordBatch.from_arrays([answer_file.column(found)], names=["answer"])


def _read(path: Path) -> list[NDArray[Any]]:
    """Return the answers in a file, memory-mapped."""
    batches = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all().to_batches()
    return [batch.column(0).flatten().to_numpy().reshape(len(batch), -1) for batch in batches]
