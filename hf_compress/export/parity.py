"""Whether a file of another format computes what the checkpoint does that it was written from."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.models.heads import find_head
from hf_compress.models.targets import model_class

BATCHES = 8
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
CHOICES = 3
# Of the root mean square of the logits. In floating point only the order of sums differs. With integers a sum that
# differs in its last bit now and then rounds to the neighbouring one, and every later layer rounds the difference
# again: on 872 rows of SST-2 a MiniLM in float64 is 0.009 from itself in float32, ONNX Runtime 0.008 and OpenVINO
# 0.026; where only weights are integers, ONNX Runtime rounds the inputs all the same. A wrong scale is off by tenths.
TOLERANCE, INTEGER_TOLERANCE = 1e-3, 0.05


@dataclass(frozen=True)
class Parity:
    """How far two models are apart on `rows` rows.

    `difference` is the largest absolute difference of a logit, `deviation` the root mean square of all differences
    over that of the logits, `agreement` the share of positions at which both have the same largest logit (1 for
    regression).
    """

    difference: float
    deviation: float
    agreement: float
    rows: int


def check_parity(
    reference: PreTrainedModel, other: nn.Module, batches: Iterable[Mapping[str, Any]], what: str
) -> Parity:
    """How far `other` is from `reference` on the first batches, and on the first row of the first one by itself.

    Args:
        batches: inputs, with or without labels.
        what: `other` in words, for the error.

    Raises:
        ValueError: the deviation is above 0.001, or 0.05 where layers are quantized; or there is no batch, or a logit
            is no number.
    """
    head = find_head(reference)
    taken = [
        {name: value.to(reference.device) for name, value in batch.items() if _is_input(name, value)}
        for batch in itertools.islice(batches, BATCHES)
    ]
    if not taken:
        raise ValueError("`batches` holds none, so that nothing can be compared. Give some, or leave it out.")
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
    parity = Parity(
        float(differences.abs().max()),
        float(differences.square().mean().sqrt() / logits.square().mean().sqrt().clamp(min=1e-12)),
        float(agreeing.double().mean()),
        sum(len(inputs["input_ids"]) for inputs in taken) + 1,
    )
    config = getattr(reference.config, "quantization_config", None)
    quantized = isinstance(config, CompressionConfig) and config.quantized
    tolerance = INTEGER_TOLERANCE if quantized else TOLERANCE
    if not parity.deviation <= tolerance:  # Also if it is no number.
        raise ValueError(
            f"{what} computes something else than the checkpoint: its logits deviate by {parity.deviation:.3g} of "
            f"theirs (at most {tolerance:g} is rounding), by {parity.difference:.3g} in one place, over {parity.rows} "
            "rows. It is not written. Give `batches` of real inputs if these were random; else please report it, with "
            "the architecture and the versions of torch and of the runtime."
        )
    return parity


def _is_input(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and name not in LABELS


def load(folder: Path) -> PreTrainedModel:
    """The model of the checkpoint `folder`, of the class it was saved from, in float32 and evaluation mode.

    Its attention is the plain one, of which runtimes know how to fuse the operators.
    """
    model = model_class(folder).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return cast(PreTrainedModel, model.eval())


def input_names(model: PreTrainedModel) -> list[str]:
    """What the graph of `model` takes, in the names of Transformers: no sentence types where there is only one."""
    head, parameters = find_head(model), inspect.signature(type(model).forward).parameters
    absent = set()
    if getattr(model.config, "type_vocab_size", 0) < 2:
        absent.add("token_type_ids")
    if head.kind != "seq2seq":
        absent.add("decoder_input_ids")
    return [name for name in INPUTS if name in parameters and name not in absent]


def random_batches(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Random tokens for `model`, batches of one and of several rows of several lengths, the later rows padded."""
    head, names = find_head(model), input_names(model)
    draw = torch.Generator().manual_seed(0)
    for rows, tokens in ((2, 6), (1, 3), (4, 8)):
        shape = (rows, CHOICES, tokens) if head.kind == "choice" else (rows, tokens)
        ids = torch.randint(model.config.get_text_config().vocab_size, shape, generator=draw)
        mask = torch.ones_like(ids)
        mask[1:, ..., tokens // 2 :] = 0
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        yield {name: batch.get(name, ids) for name in names}
