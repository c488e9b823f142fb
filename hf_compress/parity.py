"""Whether a file of another format computes what the checkpoint does that it was written from."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from hf_compress.heads import find_head
from hf_compress.layers import fake_quantized

BATCHES = 8
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
CHOICES = 3
# Of the largest logit. Without rounded inputs only the order of sums differs. With them a sum that differs in its last
# bit now and then rounds to the neighbouring integer, and every later layer rounds the difference again.
TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 0.1


@dataclass(frozen=True)
class Parity:
    """How far two models are apart: the largest `difference` of a logit, the largest logit (`scale`), and agreement.

    `agreement` is the share of positions at which both have the same largest logit; of regression, or where there is
    one logit, it is 1.
    """

    difference: float
    scale: float
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
        ValueError: a logit differs by more than 0.001 of the largest one, 0.1 where inputs are rounded; or there is no
            batch, or a logit is no number.
    """
    head = find_head(reference)
    device = reference.device
    taken = list(itertools.islice(batches, BATCHES))
    if not taken:
        raise ValueError("`batches` holds none, so that nothing can be compared. Give some, or leave it out.")
    taken.append({name: value[:1] for name, value in taken[0].items() if isinstance(value, Tensor)})
    difference = scale = torch.zeros(())
    same, positions, rows = 0, 0, 0
    for batch in taken:
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        inputs = {name: value for name, value in tensors.items() if name not in LABELS}
        with torch.no_grad():
            ours, theirs = (head.logits(model(**inputs)) for model in (reference, other))
        rows += len(ours[0])
        for one, two in zip(ours, theirs, strict=True):
            difference = torch.maximum(difference, (one - two).abs().max().cpu())
            scale = torch.maximum(scale, one.abs().max().cpu())
            same += int((one.argmax(-1) == two.argmax(-1)).sum())
            positions += one[..., 0].numel()
    rounded = any(layer.input_grid is not None for layer in fake_quantized(reference).values())
    tolerance = ROUNDED_TOLERANCE if rounded else TOLERANCE
    parity = Parity(float(difference), float(scale), same / positions, rows)
    if not parity.difference <= tolerance * parity.scale:  # Also if it is no number.
        raise ValueError(
            f"{what} differs from the model by {parity.difference:.3g} where its largest logit is {parity.scale:.3g}: "
            f"more than {tolerance:g} of it, over {rows} rows. It is not written. Give `batches` of real inputs if "
            "these were random; else please report it, with the architecture and the versions of torch and of the "
            "runtime."
        )
    return parity


def load(folder: Path) -> PreTrainedModel:
    """The model of the checkpoint `folder`, of the class it was saved from, in float32 and evaluation mode.

    Its attention is the plain one, of which runtimes know how to fuse the operators.
    """
    config = AutoConfig.from_pretrained(folder)
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    if architecture is None:
        raise ValueError(
            f"{folder}/config.json names the architecture {config.architectures}, not one of Transformers'."
        )
    model = architecture.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert isinstance(model, PreTrainedModel)
    return model.eval()


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
