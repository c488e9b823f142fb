"""What the callbacks of the methods share: a record of progress, the order of logs, and a check for divergence."""

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging

from hf_compress.models.sharding import local
from hf_compress.models.shares import Method, Shares

logger = logging.get_logger(__name__)

# A key in `trainer_state.json`. Not a class name: Trainer would try to rebuild that callback.
PROGRESS = "hf_compress_progress"
RANGE = "input_range"
# The share of weights that a method leaves alone unasked, from which on the log warns of it.
LOUD = 0.01


def progress(state: TrainerState) -> dict[str, Any]:
    """Return the part of the training state that says what a resumed run must not undo. Changes are saved with it."""
    known: dict[str, Any] = state.stateful_callbacks.setdefault(PROGRESS, {})
    return known


class LogsFirst(TrainerCallback):
    """Lets `owner` add its values to the logs before any other callback reads them.

    Trainer puts the callbacks of its user behind those that write event files, so that values which a callback adds in
    `on_log` would come too late for them.
    """

    def __init__(self, owner: TrainerCallback) -> None:
        self.owner = owner

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the values of the owner."""
        self.owner.on_log(args, state, control, **kwargs)


def log_first(owner: TrainerCallback) -> None:
    """Put a `LogsFirst` of `owner` in front of all callbacks. Call it in an event of `owner`."""
    frame = inspect.currentframe()
    while frame is not None:  # Trainer gives callbacks no reference to their handler, but the handler calls them.
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler):
            others = [one for one in handler.callbacks if getattr(one, "owner", None) is not owner]
            # A new list: the handler is going through the old one.
            handler.callbacks = [LogsFirst(owner), *others]
            return
        frame = frame.f_back


def log_shares(method: Method, option: str, shares: Shares, excluded: Sequence[str] = (), more: str = "") -> None:
    """Log how much of the model `option` touches, and what it leaves alone.

    It is a warning if a good part of the weights is left alone that nobody has excluded.

    Args:
        option: as the user gave it, in backticks.
        excluded: regular expressions of layers that its user excluded.
        more: another sentence.
    """
    verb, stays = ("prunes layers with", "dense") if method == "pruned" else ("rounds", "in floating point")
    of_bytes = f"{shares.bytes / 1e6:,.3g} of {shares.all_bytes / 1e6:,.3g} MB"
    unasked = [n for name, n in shares.others.items() if not any(re.search(one, name) for one in excluded)]
    logger.log(
        logging.WARNING if sum(unasked) >= LOUD * shares.all_weights else logging.INFO,
        f"{option} {verb} {100 * shares.of_weights:.1f} % of the weights ({of_bytes}). These stay {stays}: "
        f"{', '.join(shares.rest(method))}.{more and f' {more}'}",
    )


def add_to_logs(logs: dict[str, Any], state: TrainerState, values: dict[str, Any]) -> None:
    """Add `values` to the logs of training, in `on_log`. Logs without a loss, of an evaluation, stay as they are."""
    if "loss" in logs:
        logs.update(values)
        for copied in state.log_history[-1:]:  # Trainer appends its copy before this event.
            copied.update(values)


@torch.no_grad()
def refuse_diverged(model: nn.Module, state: TrainerState) -> None:
    """Refuse a trained model with parameters or ranges that are not finite. Collective.

    Raises:
        RuntimeError: naming some of them, and the step at which the logs show it first.
    """
    tensors = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
    ranges = {name: one for name, one in model.named_buffers() if name.endswith(RANGE)}
    # The range of a layer that nobody calls is infinite.
    flags = [not bool(local(one).isfinite().all()) for one in tensors.values()]
    flags += [bool(one.isnan().any()) for one in ranges.values()]
    broken = torch.tensor(flags, dtype=torch.int32)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        broken = broken.to(next(model.parameters()).device)
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)
    names = [name for name, flag in zip([*tensors, *ranges], broken.tolist(), strict=True) if flag]
    if names:
        raise RuntimeError(
            f"training diverged: {len(names)} of {len(flags)} parameters and ranges are not finite at step "
            f"{state.global_step}, for example {', '.join(names[:3])}{_since(state)}. The model is not usable. Lower "
            "`--learning_rate`, clip gradients with `--max_grad_norm`, or resume from an earlier checkpoint."
        )


def _since(state: TrainerState) -> str:
    """Return the first logged step with a loss or gradient norm that is not finite, as a clause."""
    for entry in state.log_history:
        for name in ("loss", "grad_norm"):
            if name in entry and not math.isfinite(entry[name]):
                return f"; the logged `{name}` is not finite since step {entry.get('step')}"
    return ""
