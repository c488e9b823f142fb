"""How much each micro-batch counts under gradient accumulation and on several processes."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from hf_compress.models.heads import Head


class WeighingMixin(Trainer):
    """The part of a `DistillationMixin` that weights micro-batches by the positions that count in them."""

    teacher: PreTrainedModel | None
    head: Head | None
    _borrows: bool = False  # Whether the last micro-batch of this step has no row of its own.

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of one optimizer step, and the number of positions that count on all processes."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # Training resumed after its last step; Trainer would take another.
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if not self._weighs_batches:
            return batches, num_items_in_batch
        batches, self._borrows = without_borrowed(batches, self.args.train_batch_size, self.accelerator)
        return batches, self._total(batches)

    def _total(self, batches: list[Any]) -> Tensor | None:
        """Return the number of positions that count in the micro-batches, over all processes if Trainer averages so.

        The result is None if some batch has no labels to count.
        """
        assert self.head is not None
        counts = [self.head.count(batch) if isinstance(batch, Mapping) else None for batch in batches]
        if self._borrows and counts[-1] is not None:
            counts[-1] = torch.zeros_like(counts[-1])
        known = [count.to(self.args.device) for count in counts if count is not None]
        if not known or len(known) < len(counts):
            return None
        total = torch.stack(known).sum()
        return self.accelerator.gather(total).sum() if self.args.average_tokens_across_devices else total

    @property
    def _weighs_batches(self) -> bool:
        """Whether this class weights the loss of a micro-batch, rather than the model or Trainer."""
        if self.head is None or self.compute_loss_func is not None:
            return False
        causal = self.head.descriptor.position == "next token"
        if causal and self.teacher is None and self.model_accepts_loss_kwargs:
            return False
        # Trainer may count a causal model's first labels, which nothing predicts: with a teacher both terms are means.
        taught_causal = causal and self.teacher is not None
        return taught_causal or self.args.gradient_accumulation_steps > 1 or self.accelerator.num_processes > 1

    def _weight(self, model: nn.Module, inputs: Mapping[str, Any], total: Tensor | int | None) -> Tensor | float:
        """Return the weight of a micro-batch's mean; put the model in evaluation mode if all its rows are borrowed."""
        if not self._weighs_batches:
            return 1.0
        # Set here rather than in `__init__`: a subclass that overrides `compute_loss` answers for its own loss.
        self.loss_is_scaled_for_ga = True
        if self._borrows and self.accelerator.sync_gradients:
            model.eval()  # For this forward only: layers must not observe ranges on borrowed rows.
            return 0.0
        return self._share(inputs, total)

    def _share(self, inputs: Mapping[str, Any], total: Tensor | int | None) -> Tensor | float:
        """Return the share of this micro-batch's mean in the mean over the accumulated batch."""
        assert self.head is not None
        count = self.head.count(inputs)
        if count is None or total is None:
            return 1 / self.current_gradient_accumulation_steps
        # Gradients (and logged losses) are averaged over processes, but shares of a total over all must be summed.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        total = torch.as_tensor(total, device=self.args.device)
        return count.to(self.args.device) * processes / total.clamp(min=1)


def without_borrowed(batches: list[Any], limit: int, accelerator: Accelerator) -> tuple[list[Any], bool]:
    """Return the micro-batches of an optimizer step without borrowed rows, and whether the last had only such rows.

    If the rows of an epoch do not divide evenly, accelerate fills the last batch of each process with the first rows
    of the epoch, which then count twice. One process alone has a shorter last batch instead. A process whose last
    batch is all borrowed keeps one row of it, because the other processes wait for its forward and backward.

    Args:
        limit: the rows of a full micro-batch of this process.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not batches or not isinstance(batches[-1], Mapping):
        return batches, False
    size = _size(batches[-1])
    # Rows that a collator has packed into fewer cannot be told apart.
    if size != limit or not state.end_of_dataloader or state.remainder <= 0:
        return batches, False
    own = min(max(state.remainder - accelerator.process_index * size, 0), size)
    last = {
        name: value[: max(own, 1)] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batches[-1].items()
    }
    return [*batches[:-1], last], own == 0


def _size(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)
