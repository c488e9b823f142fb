"""How much each micro-batch counts under gradient accumulation and on several processes."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, IterableDatasetShard, SkipBatchSampler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import Trainer
from transformers.utils import logging

from hf_compress.distill.enlarging import EnlargingMixin
from hf_compress.distill.foreign import owner, refuse_other_means
from hf_compress.distill.teacher_only import counts, for_labels

logger = logging.get_logger(__name__)


class WeighingMixin(EnlargingMixin):
    """The part of a `DistillationMixin` that weights micro-batches by the positions that count in them."""

    _split_answers: Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
    _checked_mean: bool = False
    _borrows: bool = False  # Whether the last micro-batch of this step has borrowed rows only.
    _taught_total: Tensor | None = None  # The positions in this step that the teacher answers, on all processes.

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of one optimizer step, and the number of positions that count on all processes.

        Raises:
            ValueError: in the first step, if the loss of another Trainer class is not a mean over these positions.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # Training resumed after its last step; Trainer would take another.
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if not self._weighs_batches:
            return batches, num_items_in_batch
        self._check_mean(batches)
        batches, self._borrows = without_borrowed(batches, self.accelerator)
        return batches, self._total(batches)

    def _check_mean(self, batches: list[Any]) -> None:
        """Check once that another Trainer class's loss is a mean over the positions that count; else refuse it."""
        other = owner(type(self), WeighingMixin)
        several = self.args.gradient_accumulation_steps > 1 or self.accelerator.num_processes > 1
        if other is Trainer or self._checked_mean or not several:
            return
        assert self.head is not None and isinstance(self.model, nn.Module)
        head, model, training = self.head, self.model, self.model.training

        def loss(batch: dict[str, Any]) -> Tensor:
            inputs = head.relabelled(self._prepare_inputs(batch), fill_empty=True)
            with self.compute_loss_context_manager():
                found = super(WeighingMixin, self).compute_loss(model, inputs, num_items_in_batch=None)
            return cast(Tensor, found)

        own = [for_labels(batch, head) for batch in batches if isinstance(batch, Mapping)]
        model.eval()
        try:
            refuse_other_means(loss, [self._split_answers(batch)[1] for batch in own], head, other)
        finally:
            model.train(training)
        self._checked_mean = True

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches to train on, and warn if rows may repeat at the end of an epoch."""
        loader = super().get_train_dataloader()
        warn_of_borrowed(loader, self.accelerator.num_processes)
        return loader

    def _total(self, batches: list[Any]) -> Tensor | None:
        """Return the number of labelled positions in the micro-batches, over all processes if Trainer averages so.

        The number of positions that the teacher answers is kept for the weights. The result is None if some batch has
        no labels to count.
        """
        assert self.head is not None
        self._taught_total = None
        found = [counts(batch, self.head) if isinstance(batch, Mapping) else None for batch in batches]
        known = [torch.stack(pair).to(self.args.device) for pair in found if pair is not None]
        if not known or len(known) < len(found):
            return None
        if self._borrows:
            known[-1] = torch.zeros_like(known[-1])
        totals = torch.stack(known).sum(0)
        if self.args.average_tokens_across_devices:
            totals = self.accelerator.gather(totals[None]).sum(0)
        labelled, self._taught_total = totals
        return labelled

    @property
    def _weighs_batches(self) -> bool:
        """Whether this class weights the loss of a micro-batch, rather than the model or Trainer."""
        if self.head is None or self.compute_loss_func is not None:
            return False
        if self._enlarges:
            return True  # A model that divides by the number of labels would count the placeholders, too.
        causal = self.head.descriptor.position == "next token"
        if causal and self.teacher is None and self.model_accepts_loss_kwargs:
            return False
        # Trainer may count a causal model's first labels, which nothing predicts: with a teacher both terms are means.
        taught_causal = causal and self.teacher is not None
        return taught_causal or self.args.gradient_accumulation_steps > 1 or self.accelerator.num_processes > 1

    def _weights(
        self, model: nn.Module, inputs: Mapping[str, Any], total: Tensor | int | None
    ) -> tuple[Tensor | float, Tensor | float]:
        """Return the weights of a micro-batch's means: that of the loss on the labels, and that on the teacher.

        The model is put in evaluation mode if all rows are borrowed.
        """
        assert self.head is not None
        pair = counts(inputs, self.head)
        if not self._weighs_batches:
            # As a factor: a batch without counted positions has no loss.
            return (1.0, 1.0) if pair is None else (pair[0] > 0, pair[1] > 0)
        # Set here rather than in `__init__`: a subclass that overrides `compute_loss` answers for its own loss.
        self.loss_is_scaled_for_ga = True
        if self._borrows and self.accelerator.sync_gradients:
            model.eval()  # For this forward only: layers must not observe ranges on borrowed rows.
            return 0.0, 0.0
        if pair is None or total is None:
            steps = self.current_gradient_accumulation_steps
            return (1 / steps, 1 / steps) if pair is None else ((pair[0] > 0) / steps, (pair[1] > 0) / steps)
        taught = total if self._taught_total is None else self._taught_total
        return self._share(pair[0], total), self._share(pair[1], taught)

    def _share(self, count: Tensor, total: Tensor | int) -> Tensor:
        """Return the share of a micro-batch's mean over `count` positions in the mean over the accumulated batch."""
        # Gradients (and logged losses) are averaged over processes, but shares of a total over all must be summed.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        total = torch.as_tensor(total, device=self.args.device)
        return count.to(self.args.device) * processes / total.clamp(min=1)


def without_borrowed(batches: list[Any], accelerator: Accelerator) -> tuple[list[Any], bool]:
    """Return the micro-batches of an optimizer step without borrowed rows, and whether the last had only such rows.

    If the rows of an epoch do not divide evenly, accelerate fills the last batch of each process with the first rows
    of the epoch, which then count twice. One process alone has a shorter last batch instead. A process whose last
    batch is all borrowed keeps one row of it, because the other processes wait for its forward and backward.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not batches or not isinstance(batches[-1], Mapping):
        return batches, False
    if not state.end_of_dataloader:
        return batches, False
    size = _size(batches[-1])
    own = _own_rows(state.active_dataloader, size, accelerator.process_index)
    if own is None or own >= size:
        return batches, False
    last = {
        name: value[: max(own, 1)] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for name, value in batches[-1].items()
    }
    return [*batches[:-1], last], own == 0


def warn_of_borrowed(loader: Any, processes: int) -> None:
    """Warn if accelerate may repeat rows at the end of an epoch and nothing tells which rows are repeats."""
    if processes > 1 and isinstance(getattr(loader, "dataset", None), IterableDatasetShard) and not loader.drop_last:
        logger.warning(
            "With `dispatch_batches=False`, accelerate fills the last batch of an epoch of streamed data with "
            "repeated rows, which will count twice. Leave the setting out, or set `dataloader_drop_last=True`."
        )


def _own_rows(loader: Any, size: int, rank: int) -> int | None:
    """Return how many of the `size` rows of this process's last batch are its own, or None if that is unknown.

    accelerate's `remainder` is not enough: it is unset once batches are skipped to resume training. The arguments are
    not either: `split_batches`, `dispatch_batches` and `auto_find_batch_size` change the size that is in force.
    """
    if isinstance(loader, DataLoaderDispatcher):
        # One process reads all rows of the step, `remainder` in number, and sends each process its slice.
        return max(min(loader.remainder - rank * size, size), 0)
    sampler = loader.sampler if isinstance(loader.sampler, BatchSampler) else loader.batch_sampler
    while isinstance(sampler, SkipBatchSampler):
        sampler = sampler.batch_sampler
    if not isinstance(sampler, BatchSamplerShard) or sampler.batch_size is None or sampler.drop_last:
        return None
    rows = len(getattr(sampler.batch_sampler, "sampler", loader.dataset))
    total = sampler.batch_size * (1 if sampler.split_batches else sampler.num_processes)
    limit = total // sampler.num_processes
    # Rows that a collator has packed into fewer cannot be told apart.
    if size != limit or rows % total == 0:
        return None
    return max(min(rows % total - sampler.process_index * limit, limit), 0)


def _size(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)
