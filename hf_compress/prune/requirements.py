"""What a criterion and a pattern require of model, optimizer and precision; whatever lacks it is refused."""

from typing import Any

from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from hf_compress.models.targets import transformer
from hf_compress.prune.masking import Masking


def refuse_unsupported(masking: Masking, args: TrainingArguments, model: nn.Module, optimizer: Any) -> None:
    """Refuse a criterion or pattern that cannot work with this model, optimizer or precision. Call it before training.

    Raises:
        ValueError: saying what is missing and what to choose.
    """
    criterion, reason = masking.criterion, None
    if criterion.needs_gradients or criterion.needs_optimizer:
        frozen = [target.name for target in masking.targets if not target.weight.requires_grad]
        if isinstance(transformer(model), PeftModel):
            reason = "the weights beside an adapter have none. Merge it first (`model.merge_and_unload()`)"
        elif frozen:
            reason = f"{frozen[0]} is frozen. Train it, or leave it out by `--prune_exclude {frozen[0]}`"
        elif isinstance(optimizer, DeepSpeedOptimizerWrapper):
            reason = "DeepSpeed keeps both to itself. Train under DDP or FSDP2"
        elif args.fp16:
            reason = "gradients under `--fp16` are scaled and may overflow. Use `--bf16`"
    if reason is not None:
        raise ValueError(
            f"`--prune_criterion {criterion.name}` needs the gradients or the optimizer state of all weights, but "
            f"{reason}, or choose `--prune_criterion magnitude`."
        )
    conv1d = [target.name for target in masking.targets if target.kind == "conv1d"]
    if masking.pattern.joins_inputs and conv1d and not masking.shards.whole:
        raise ValueError(
            f"`--prune_pattern {masking.pattern.name}` groups inputs, which FSDP2 shards in {conv1d[0]}. Train "
            "under DDP, or choose another pattern."
        )
    if optimizer is not None:
        refuse_optimizer(masking, optimizer)


def refuse_optimizer(masking: Masking, optimizer: Any, stepped: bool = False) -> None:
    """Refuse an optimizer without the state that the criterion needs.

    Args:
        stepped: whether the optimizer has made a step, so that it has all the state that it will have.

    Raises:
        ValueError: naming the optimizer and a layer.
    """
    criterion = masking.criterion
    if not criterion.needs_optimizer:
        return
    seen = {target.name: masking.evidence(index, optimizer) for index, target in enumerate(masking.targets)}
    if criterion.unfit is not None:
        for name, evidence in seen.items():
            if (reason := criterion.unfit(evidence)) is not None:
                raise _unfit(masking, optimizer, f"for {name} it {reason}")
    if stepped and not any(evidence.optimizer for evidence in seen.values()):
        raise _unfit(masking, optimizer, "it shows no state for any layer after a step")


def _unfit(masking: Masking, optimizer: Any, reason: str) -> ValueError:
    kind = type(getattr(optimizer, "optimizer", optimizer)).__name__
    return ValueError(
        f"`--prune_criterion {masking.criterion.name}` cannot read what it needs from the optimizer {kind}: {reason}. "
        "Choose another `--optim`, such as `adamw_torch`, or `--prune_criterion magnitude`."
    )
