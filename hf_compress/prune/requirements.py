"""What a criterion and a pattern require of model, optimizer and precision; whatever lacks it is refused."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from hf_compress.callbacks import log_shares
from hf_compress.cut.rehearsal import check_removal, check_uniform
from hf_compress.models.shares import shares_of
from hf_compress.models.targets import transformer, unadapted
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.coverage import Coverage
from hf_compress.prune.criteria import CRITERIA
from hf_compress.prune.criterion import Criterion
from hf_compress.prune.masking import Masking
from hf_compress.prune.schedules import Timetable

STEPS_PER_CORRECTION = 10  # MiniLM-L6 on one core: 8 (6.4 s for the inputs of 512 rows, 3.8 s for the weights).


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


def refuse_coverage(coverage: Coverage, arguments: PruningArguments) -> None:
    """Refuse a pattern that does not fit into the layers of the model. Call it before training.

    Raises:
        ValueError: saying what does not fit, and what to choose.
    """
    pattern, shards = coverage.pattern, coverage.shards
    option = f"`--prune_pattern {pattern.name}`"
    for target in coverage.targets:
        shape = target.weight.shape
        for side, number, dim in (("inputs", pattern.inputs, 1), ("outputs", pattern.outputs, 0)):
            width = shape[target.row_dim if dim == 0 else 1 - target.row_dim]
            if width % number:
                raise ValueError(
                    f"{option} needs layers whose number of {side} is a multiple of {number}; {target.name} has "
                    f"{width}. Leave it dense (`--prune_exclude {target.name}`), or choose another pattern."
                )
        if target.row_dim == 0 and shards.most_rows(shape[0]) % pattern.outputs:
            raise ValueError(
                f"{option} joins {pattern.outputs} outputs, which FSDP2 divides in {target.name}: it gives each "
                f"process {shards.most_rows(shape[0])} of them. Train on another number of processes or under DDP, or "
                "choose another pattern."
            )
    if coverage.blocks:
        _refuse_too_few(coverage, arguments)


def _refuse_too_few(coverage: Coverage, arguments: PruningArguments) -> None:
    """Refuse a plan by which no group goes, or none of a kind that the pattern names."""
    gone = dict.fromkeys(coverage.pattern.kinds, 0)
    for contest, wanted in zip(coverage.contests, coverage.wanted(arguments.goal), strict=True):
        gone[coverage.blocks[contest.members[0]].kind] += wanted + contest.gone
    if arguments.prune_keep:
        if not any(gone.values()):
            raise ValueError(f"{arguments.asked} keeps all groups, so nothing is pruned. Lower a number.")
        return
    if kept := [kind for kind, number in gone.items() if not number]:
        most = max(block.count for block in coverage.blocks if block.kind == kept[0])
        others = [kind for kind in gone if kind not in kept]
        raise ValueError(
            f"{arguments.asked} of at most {most} {kept[0]} in a layer is less than one, or all of them, and one of "
            f"each layer stays. Raise it, or choose another `--prune_pattern`{f', {others[0]}' if others else ''}."
        )


def refuse_removal(coverage: Coverage, arguments: PruningArguments, model: nn.Module) -> None:
    """Refuse a model from which the groups of the pattern cannot be removed at the end. Call it before training.

    Raises:
        ValueError: it computes something else without them, or its configuration cannot say what `--prune_uniform`
            keeps.
    """
    inner, kinds = transformer(model), coverage.pattern.kinds
    if not coverage.blocks:
        return
    if not isinstance(inner, PeftModel):
        check_removal(inner, kinds, arguments.prune_exclude)
    if arguments.prune_uniform:
        check_uniform(unadapted(inner), kinds, coverage.wanted(arguments.goal), arguments.prune_exclude)


def refuse_correction(masking: Masking, model: nn.Module, optimizer: Any, loader: Any) -> None:
    """Refuse a criterion that corrects weights where they cannot be corrected. Call it before training.

    Args:
        loader: of the training set; None if the trainer gives its callbacks none.

    Raises:
        ValueError: saying why, and what to choose.
    """
    if not masking.criterion.corrects:
        return
    frozen = [target.name for target in masking.targets if not target.weight.requires_grad]
    conv1d = [target.name for target in masking.targets if target.kind == "conv1d"]
    reason = None
    if isinstance(transformer(model), PeftModel):
        reason = "the weights beside an adapter are frozen. Merge it first (`model.merge_and_unload()`)"
    elif frozen:
        reason = f"{frozen[0]} is frozen. Train it, or leave it out by `--prune_exclude {frozen[0]}`"
    elif isinstance(optimizer, DeepSpeedOptimizerWrapper):
        reason = "DeepSpeed trains a copy of its own and would undo that. Train under DDP or FSDP2"
    elif conv1d and not masking.shards.whole:
        reason = f"FSDP2 shards the inputs of {conv1d[0]}. Train under DDP"
    elif loader is None:
        reason = (
            "needs rows of the training set for that, and this trainer gives its callbacks no `train_dataloader`. Use "
            "Transformers' Trainer"
        )
    if reason is not None:
        raise ValueError(
            f"`--prune_criterion {masking.criterion.name}` corrects the weights that stay, but {reason}, or choose "
            "`--prune_criterion magnitude`."
        )


def warn_of_corrections(criterion: Criterion, choices: int, max_steps: int) -> None:
    """Warn about a criterion that corrects weights if that takes longer than training.

    Args:
        choices: at how many of the `max_steps` steps weights are chosen.
    """
    if choices * STEPS_PER_CORRECTION > max_steps:
        warnings.warn(
            f"`--prune_criterion {criterion.name}` corrects the weights {choices} times in {max_steps} steps. On a "
            f"small encoder one correction takes as long as {STEPS_PER_CORRECTION} steps of 32 rows, so all together "
            "take longer than training. Raise `--prune_every`, or correct once: `--prune_initial_sparsity` = "
            "`--prune_sparsity`.",
            stacklevel=3,
        )


def log_coverage(masking: Masking, arguments: PruningArguments, model: PreTrainedModel | PeftModel) -> None:
    """Log how much of `model` is pruned, and what stays dense. A pattern of groups leaves most of it dense anyway."""
    shares = shares_of(model, "pruned", masking.targets)
    if masking.coverage.blocks:
        shares = replace(shares, others={})
    corrects = shares.convolutions and masking.criterion.corrects
    more = "Convolutions are pruned by magnitude, without correction." if corrects else ""
    log_shares("pruned", arguments.asked, shares, arguments.prune_exclude, more)


def warn_of_one_leap(arguments: PruningArguments, timetable: Timetable, max_steps: int) -> None:
    """Warn if all weights are pruned at once because the phase of pruning is short."""
    steps = timetable.end - timetable.begin
    if steps <= arguments.prune_every and not CRITERIA[arguments.prune_criterion].corrects:
        remedy = "Lower it, or train longer." if arguments.prune_every > 1 else "Train longer."
        warnings.warn(
            f"`--prune_every {arguments.prune_every}` prunes in one leap: only {steps} of {max_steps} steps are "
            f"between `--prune_begin` and `--prune_end`. {remedy}",
            stacklevel=3,
        )


@torch.no_grad()
def warn_of_emptied(masking: Masking, arguments: PruningArguments) -> None:
    """Warn of layers that a common threshold would leave without a weight, judged by the weights now. Collective."""
    if arguments.prune_scope != "global" or arguments.prune_keep:
        return
    kept = masking.preview(arguments.prune_sparsity)
    emptied = [target.name for target, count in zip(masking.targets, kept, strict=True) if count == 0]
    if emptied:
        warnings.warn(
            f"`--prune_scope global` at `--prune_sparsity {arguments.prune_sparsity}` would prune all weights of "
            f"{len(emptied)} of {len(kept)} layers ({', '.join(emptied[:3])}): they are smaller than those of other "
            "layers, as the weights of an untrained layer are. Use `--prune_scope layer`, or keep such layers dense "
            f"(`--prune_exclude {emptied[0]}`).",
            stacklevel=3,
        )


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
