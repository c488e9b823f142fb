"""What fixed steps require of a trainer, and what the log says about how much of a model is rounded."""

from collections.abc import Sequence
from typing import Any

from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from peft import PeftModel
from transformers import PreTrainedModel

from hf_compress.callbacks import log_shares
from hf_compress.models.layer_kinds import CONVOLUTIONS
from hf_compress.models.shares import shares_of
from hf_compress.models.targets import Target
from hf_compress.options import refuse_averages
from hf_compress.quantize.arguments import QuantizationArguments


def refuse_unsupported(option: str, optimizer: Any, loader: Any) -> None:
    """Refuse a trainer in which weights cannot be rounded once, at the step at which rounding begins.

    Args:
        option: that asks for fixed steps.
        loader: of the training set; None if the trainer gives its callbacks none.

    Raises:
        ValueError: saying why.
    """
    if loader is None:
        raise ValueError(
            f"`{option}` measures on the training set how much each weight counts, but this trainer gives its "
            "callbacks no `train_dataloader`. Use Transformers' Trainer, or leave the option out."
        )
    if isinstance(optimizer, DeepSpeedOptimizerWrapper):
        raise ValueError(
            f"`{option}` rounds the weights once, but DeepSpeed trains a copy of its own and would undo that. "
            "Train under DDP or FSDP2, or leave the option out."
        )
    refuse_averages(optimizer, option, "which do not stay where they were rounded")


def log_quantized(
    model: PreTrainedModel | PeftModel, targets: Sequence[Target], arguments: QuantizationArguments
) -> None:
    """Log how much of `model` is rounded, and what stays in floating point."""
    shares, scheme = shares_of(model, "quantized", targets), arguments.scheme
    floating = shares.convolutions and scheme.activation is not None and scheme.of_input(CONVOLUTIONS[0]) is None
    more = "So do the inputs of its convolutions, which have no tokens." if floating else ""
    log_shares("quantized", f"`--quant_scheme {scheme.name}`", shares, arguments.quant_exclude, more)
