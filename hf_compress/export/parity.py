"""Parity: whether a written format computes what the checkpoint computes."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.export.yardstick import RELATIVE, rounded_otherwise
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.models.heads import LABELS, Head, find_outputs
from hf_compress.models.targets import model_class

BATCHES = 8
# Rows, length and decoder length of the random batches. A graph that is traced with equal lengths needs equal ones.
SHAPES = ((2, 6, 4), (1, 3, 5), (4, 8, 2))
# Floating point alone deviates by millionths. Up to this no yardstick is needed.
TOLERANCE = 1e-3
# The yardstick is the largest of some draws, and a runtime is one draw more, so it may be a little off that.
DRAWS, MARGIN = 3, 2
# Where integers are multiplied, other runtimes may round more often than the draws do: OpenVINO on exact kernels
# deviates by 0.016 on a model on which the draws move the logits by 0.004. A wrong scale deviates by tenths.
INTEGER_TOLERANCE = 0.03
SMALLEST = 1e-12  # A spread by which one can divide.


@dataclass(frozen=True)
class Parity:
    """How close two models are on `rows` rows.

    Args:
        difference: the largest absolute difference of a logit.
        deviation: the root mean square of all differences, as a share of the spread of the logits: their standard
            deviation over the rows.
        agreement: the share of positions at which both have the same largest logit (1 for regression).
        rows: the number of rows compared.
        native_deviation: the deviation with the fastest kernels of a CPU where they may saturate, else None. The other
            numbers are those of exact kernels.
    """

    difference: float
    deviation: float
    agreement: float
    rows: int
    native_deviation: float | None = None


@dataclass(frozen=True)
class Judgement:
    """Whether rounding explains how far two models are from each other.

    Args:
        parity: how far they are.
        bound: the largest deviation that rounding explains for this model.
        turned: positions at which the answer differs although the reference is sure of it.
    """

    parity: Parity
    bound: float
    turned: int = 0

    @property
    def explained(self) -> bool:
        """Whether the other model computes the same, up to rounding."""
        return self.parity.deviation <= self.bound and not self.turned  # False if it is NaN.

    def __str__(self) -> str:
        turned = f"{self.turned} answers of which the checkpoint is sure differ, and the" if self.turned else "the"
        return (
            f"over {self.parity.rows} rows {turned} logits deviate by {self.parity.deviation:.3g} of their spread "
            f"(rounding explains {self.bound:.3g} for this model), and by {self.parity.difference:.3g} in one place"
        )


def check_parity(
    reference: PreTrainedModel, other: nn.Module, batches: Iterable[Mapping[str, Any]], name: str
) -> Parity:
    """Return how close `other` is to `reference`, or raise if it is another model.

    Args:
        reference: the reloaded packed model.
        other: the written format behind the interface of a model.
        batches: inputs, with or without labels.
        name: of the format, for the error.

    Raises:
        ValueError: the deviation is more than rounding explains (`judge`); a logit is not a number; or there is no
            batch.
    """
    judgement = judge(reference, other, batches)
    if not judgement.explained:
        raise ValueError(
            f"The format `{name}` computes something else than the checkpoint, so it is not written: {judgement}. "
            "Please report it with the architecture and the versions of torch and the runtime."
        )
    return judgement.parity


def judge(reference: PreTrainedModel, other: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Judgement:
    """Return how close `other` is to `reference`, and whether rounding explains the difference.

    What rounding explains is measured on the reference itself (`hf_compress.export.yardstick`), so that it fits deep
    and shallow models, with and without integers.

    Args:
        reference: the reloaded packed model.
        other: a format behind the interface of a model.
        batches: inputs, with or without labels.

    Raises:
        ValueError: there is no batch, or the logits have another shape.
    """
    head, compared = find_outputs(reference), _compared(reference, batches)
    ours, theirs = _logits(reference, head, compared), _logits(other, head, compared)
    shapes = [[tuple(one.shape) for one in logits] for logits in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The logits have another shape than those of the checkpoint: {shapes[1]} instead of {shapes[0]}."
        )
    parity = _parity(head, compared, ours, theirs)
    if parity.deviation <= TOLERANCE:
        return Judgement(parity, TOLERANCE)
    noise, largest = 0.0, 0.0
    for seed in range(DRAWS):
        with rounded_otherwise(reference, seed):
            drawn = _parity(head, compared, ours, _logits(reference, head, compared))
        noise, largest = max(noise, drawn.deviation), max(largest, drawn.difference)
    # The last term is the noise of logits that are the same for all rows, which have no spread.
    bound = TOLERANCE + MARGIN * noise + RELATIVE * float(_size(ours) / spread(head, ours))
    if any(isinstance(layer, CompressedLayer) and layer.quantizing for layer in reference.modules()):
        bound = max(bound, INTEGER_TOLERANCE)
    # Both of two logits may move, in opposite directions.
    return Judgement(parity, bound, _sure_and_turned(ours, theirs, 2 * MARGIN * largest))


def parity_of(reference: PreTrainedModel, other: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Parity:
    """Return how close `other` is to `reference` on the first batches and on the first row alone.

    Raises:
        ValueError: there is no batch.
    """
    head, compared = find_outputs(reference), _compared(reference, batches)
    return _parity(head, compared, _logits(reference, head, compared), _logits(other, head, compared))


def _compared(reference: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """Return the inputs to compare on: the first batches, and the first row alone."""
    head = find_outputs(reference)
    taken = [_inputs(reference, head, batch) for batch in itertools.islice(batches, BATCHES)]
    if not taken:
        raise ValueError("`batches` is empty, so that nothing can be compared. Give some batches, or leave it out.")
    return [*taken, {name: value[:1] for name, value in taken[0].items()}]


def _logits(model: nn.Module, head: Head, compared: list[dict[str, Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        return [one.double().cpu() for inputs in compared for one in head.logits(model(**inputs))]


def _parity(head: Head, compared: list[dict[str, Tensor]], ours: list[Tensor], theirs: list[Tensor]) -> Parity:
    differences = torch.cat([(one - two).flatten() for one, two in zip(ours, theirs, strict=True)])
    agreeing = torch.cat([(one.argmax(-1) == two.argmax(-1)).flatten() for one, two in zip(ours, theirs, strict=True)])
    return Parity(
        float(differences.abs().max()),
        float(differences.square().mean().sqrt() / spread(head, ours)),
        float(agreeing.double().mean()),
        sum(head.rows(inputs) for inputs in compared),
    )


def spread(head: Head, logits: list[Tensor]) -> Tensor:
    """Return the standard deviation of logits over rows and positions, each class around its own mean.

    The choices of multiple choice and the tokens of question answering have no meaning that rows share, so their
    logits are taken around one mean. A single position is taken around zero.
    """
    if head.descriptor.has_choices or len(head.names) > 1:
        rows = torch.cat([one.flatten() for one in logits]).unsqueeze(-1)
    else:
        rows = torch.cat([one.reshape(-1, one.shape[-1]) for one in logits])
    return (rows - rows.mean(0) if len(rows) > 1 else rows).square().mean().sqrt().clamp(min=SMALLEST)


def _size(logits: list[Tensor]) -> Tensor:
    """Return the root mean square of logits."""
    return torch.cat([one.flatten() for one in logits]).square().mean().sqrt()


def _sure_and_turned(ours: list[Tensor], theirs: list[Tensor], least: float) -> int:
    """Return at how many positions the largest logit is another, although it leads by more than `least`."""
    turned = 0
    for one, two in zip(ours, theirs, strict=True):
        if one.shape[-1] > 1:
            top = one.topk(2).values
            turned += int(((one.argmax(-1) != two.argmax(-1)) & (top[..., 0] - top[..., 1] > least)).sum())
    return turned


def _inputs(model: PreTrainedModel, head: Head, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the inputs of a batch without labels, on the device of the model.

    If a sequence-to-sequence model would make its `decoder_input_ids` from the labels, they are made here.
    """
    tensors = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
    if head.descriptor.decodes and "labels" in tensors and "decoder_input_ids" not in tensors:
        tensors["decoder_input_ids"] = cast(Any, model).prepare_decoder_input_ids_from_labels(labels=tensors["labels"])
    return {name: value for name, value in tensors.items() if name not in LABELS}


def load(folder: Path) -> PreTrainedModel:
    """Return the model of the checkpoint `folder`, of the class it was saved from, in float32 and evaluation mode.

    Its attention is the eager one, whose operators runtimes know how to fuse.
    """
    model = model_class(folder).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return cast(PreTrainedModel, model.eval())


def random_batches(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Yield random batches for `model`: one and several rows of several lengths, the later rows padded."""
    head = find_outputs(model)
    for seed, (rows, length, decoder_length) in enumerate(SHAPES):
        batch = head.example_batch(model, rows, length, seed)
        if "decoder_input_ids" in batch:
            batch["decoder_input_ids"] = head.example_batch(model, rows, decoder_length, seed)["decoder_input_ids"]
        yield batch
