"""Parity: whether a written format computes what the checkpoint computes."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.models.heads import LABELS, Head, find_head
from hf_compress.models.targets import model_class

BATCHES = 8
# Rows, length and decoder length of the random batches. A graph that is traced with equal lengths needs equal ones.
SHAPES = ((2, 6, 4), (1, 3, 5), (4, 8, 2))
# Largest deviation that rounding explains. In floating point only the order of sums differs. With integers, a sum that
# differs in its last bit sometimes rounds to the neighbouring integer, and every later layer rounds that difference
# again: on 872 rows of SST-2 a MiniLM in float64 deviates by 0.009 from itself in float32, ONNX Runtime by 0.008 and
# OpenVINO by 0.026. ONNX Runtime rounds inputs even where only weights are integers. A wrong scale deviates by tenths.
TOLERANCE, INTEGER_TOLERANCE = 1e-3, 0.05


@dataclass(frozen=True)
class Parity:
    """How close two models are on `rows` rows.

    Args:
        difference: the largest absolute difference of a logit.
        deviation: the root mean square of all differences, relative to the root mean square of the logits.
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
        ValueError: the deviation is above 0.001, or above 0.05 where layers are quantized; a logit is not a number;
            or there is no batch.
    """
    parity = parity_of(reference, other, batches)
    config = getattr(reference.config, "quantization_config", None)
    quantized = isinstance(config, CompressionConfig) and config.quantized
    tolerance = INTEGER_TOLERANCE if quantized else TOLERANCE
    if not parity.deviation <= tolerance:  # Also if it is NaN.
        raise ValueError(
            f"The format `{name}` computes something else than the checkpoint, so it is not written: over "
            f"{parity.rows} rows its logits deviate by {parity.deviation:.3g} (rounding explains at most "
            f"{tolerance:g}), and by {parity.difference:.3g} in one place. If the inputs were random, give `batches` "
            "of real ones. Otherwise please report it with the architecture and the versions of torch and the runtime."
        )
    return parity


def parity_of(reference: PreTrainedModel, other: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Parity:
    """Return how close `other` is to `reference` on the first batches and on the first row alone.

    Raises:
        ValueError: there is no batch.
    """
    head = find_head(reference)
    taken = [_inputs(reference, head, batch) for batch in itertools.islice(batches, BATCHES)]
    if not taken:
        raise ValueError("`batches` is empty, so that nothing can be compared. Give some batches, or leave it out.")
    first_row = {name: value[:1] for name, value in taken[0].items()}
    pairs: list[tuple[Tensor, Tensor]] = []
    for inputs in [*taken, first_row]:
        with torch.no_grad():
            ours, theirs = (head.logits(model(**inputs)) for model in (reference, other))
        pairs += [(one.double().cpu(), two.double().cpu()) for one, two in zip(ours, theirs, strict=True)]
    assert all(one.shape == two.shape for one, two in pairs), "runtimes name their outputs as the model does"
    differences = torch.cat([(one - two).flatten() for one, two in pairs])
    logits = torch.cat([one.flatten() for one, _ in pairs])
    agreeing = torch.cat([(one.argmax(-1) == two.argmax(-1)).flatten() for one, two in pairs])
    return Parity(
        float(differences.abs().max()),
        float(differences.square().mean().sqrt() / logits.square().mean().sqrt().clamp(min=1e-12)),
        float(agreeing.double().mean()),
        sum(head.rows(inputs) for inputs in taken) + 1,
    )


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
    head = find_head(model)
    for seed, (rows, length, decoder_length) in enumerate(SHAPES):
        batch = head.example_batch(model, rows, length, seed)
        if "decoder_input_ids" in batch:
            batch["decoder_input_ids"] = head.example_batch(model, rows, decoder_length, seed)["decoder_input_ids"]
        yield batch
