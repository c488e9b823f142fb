"""Measuring another format of a compressed model: its bytes, its logits, and its scores in its own runtime."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_compress.export.descriptor import Format
from hf_compress.export.runtimes import RuntimeModel
from hf_compress.models.heads import find_outputs
from hf_compress.report.divergence import PARITY, finite_scores
from hf_compress.report.evaluation import can_evaluate, evaluating, logit_difference
from hf_compress.report.report import FormatFacts


@dataclass(frozen=True)
class FormatMeter:
    """Measures formats on the rows of a trainer.

    Args:
        trainer: the one that trained the model.
        reloaded: the packed model, from `reloaded`.
        scores: scores the trainer's model.
        main_metric: the score that must be finite.
    """

    trainer: Trainer
    reloaded: PreTrainedModel
    scores: Callable[[], dict[str, float]]
    main_metric: str

    def read(self, root: Path, kind: Format) -> nn.Module:
        """Return the model of a format, in its runtime.

        It may fail on one rank alone, so ranks must agree that it has not before they call `facts`.

        Args:
            root: the folder that holds the format at its path.
            kind: the format.
        """
        return kind.read(root / kind.path, self.reloaded).to(self.trainer.args.device)

    def facts(self, other: nn.Module, root: Path, kind: Format, native_deviation: float | None = None) -> FormatFacts:
        """Return what is measured on a format. Collective: every rank must call it.

        Args:
            other: its model, from `read`.
            root: the folder that holds the format at its path.
            kind: the format.
            native_deviation: what `Format.write_checked` has found.

        Raises:
            ValueError: the scores or logits are not finite. Runtimes may raise any of `kind.failures`, after all ranks
                have finished the evaluation.
        """
        trainer, reloaded = self.trainer, self.reloaded
        head = find_outputs(reloaded)
        found: dict[str, float] = {}
        # Metrics of sequence-to-sequence models are computed on generated texts, and a graph does not generate by
        # itself.
        generates = head.descriptor.decodes and isinstance(other, RuntimeModel)
        with failing_late(other, reloaded, kind.failures):
            if not generates and can_evaluate(trainer, other):
                with evaluating(trainer, other):
                    found = self.scores()
            if isinstance(other, RuntimeModel):
                found.pop("loss", None)  # Runtimes get no labels.
            parity, _ = logit_difference(trainer, other, head, plain=reloaded)
        numbers = {self.main_metric: found.get(self.main_metric), PARITY: parity}
        wrong = [f"{name} = {value}" for name, value in numbers.items() if value is not None and not isfinite(value)]
        if wrong:
            raise ValueError(f"The format computes numbers that are not finite: {', '.join(wrong)}.")
        scores = finite_scores(found, f"format {kind.name}")
        return FormatFacts(kind.stored_bytes(root), parity, scores, native_deviation)


def reloaded(source: PreTrainedModel, folder: Path, device: torch.device) -> PreTrainedModel:
    """The packed model of `folder` as its user loads it, with the attention of the trained model `source`."""
    # Both sides need the same attention kernel, or parity would measure that choice and not what was stored.
    attention = source.config._attn_implementation
    model: PreTrainedModel = type(source).from_pretrained(folder, attn_implementation=attention)
    return model.to(device)


@contextmanager
def failing_late(
    model: nn.Module, stand_in: nn.Module, failures: Callable[[], tuple[type[Exception], ...]]
) -> Iterator[None]:
    """A context in which an error of `model` is raised at the end; from the error on, `stand_in` answers for it.

    Ranks evaluate together: if the runtime of one failed at once, the others would wait for it without end.
    """
    forward, own, failed = model.forward, vars(model).get("forward"), list[Exception]()

    def answer(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not failed:
            try:
                return forward(*args, **kwargs)
            except failures() as error:
                failed.append(error)
        return stand_in(*args, **kwargs)

    # A method, and without `__wrapped__`: accelerate unwraps the functions that it finds, and binds them again.
    known = inspect.signature(forward).parameters.values()
    answer.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *known]
    )
    model.forward = MethodType(answer, model)
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
    if failed:
        raise failed[0]
