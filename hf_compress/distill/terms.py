"""A Trainer that logs the terms of its loss beside their sum."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer


class TermsMixin(Trainer):
    """The part of a Trainer with a teacher that logs `distill_loss`, `label_loss` and the like."""

    _terms: tuple[str, ...]  # The names of the terms in the logs.
    _sums: Tensor | None = None  # Of the terms, over the steps since the last log line.
    _summed_steps: int = 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log `distill_loss`, `label_loss`, ... beside `loss`: means over the steps since the last such line."""
        if "loss" in logs and self._sums is not None and self._summed_steps:
            sums = self.accelerator.gather(self._sums).reshape(-1, len(self._terms)).mean(0)
            terms = dict(zip(self._terms, (sums / self._summed_steps).tolist(), strict=True))
            logs = {"loss": logs["loss"], **terms, **logs}
        if "loss" in logs or "train_loss" in logs:
            self._sums, self._summed_steps = None, 0
        super().log(logs, *args, **kwargs)

    def _record(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms to the sums for the next log line, on the device: reading them would stall it every step."""
        self._terms = tuple(terms)
        sums = torch.stack([term.detach().float() for term in terms.values()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._summed_steps += int(self.accelerator.sync_gradients)
