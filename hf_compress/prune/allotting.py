"""Choose in training how many neurons and heads of each block stay, by their effect on the outputs."""

from typing import Any

from torch import nn

from hf_compress.layers.lora import current_weight
from hf_compress.models.heads import bare
from hf_compress.models.sharding import from_first, reshard
from hf_compress.models.targets import transformer, whole
from hf_compress.prune.allotment import SpeedGoal
from hf_compress.prune.coverage import Coverage
from hf_compress.rate import removal_errors, sample_batches


def allotted(
    speed: SpeedGoal, coverage: Coverage, model: nn.Module, loader: Any, *, uniform: bool = False
) -> dict[str, int]:
    """Return how many groups of each block stay, by its name, for a speed-up; the same on all processes. Collective.

    Rows of the training set tell what the outputs lose with each group (`rate.removal_errors`).

    Args:
        speed: the speed-up, with the latency of the model.
        coverage: of a pattern of groups.
        model: as the trainer has it.
        loader: of the training set.
        uniform: whether all blocks of a kind keep the same number.

    Example:
        >>> from hf_compress.prune.allotting import allotted
        >>> allotted(speed, coverage, model, loader)  # doctest: +SKIP
        {'bert.encoder.layer.0.attention': 8, 'bert.encoder.layer.0': 768}
    """
    bared, blocks = bare(transformer(model)), coverage.blocks
    readers = [block.consumer for block in blocks]
    used = [current_weight(reader.target.module) for reader in readers]
    errors = removal_errors(bared, readers, sample_batches(loader, whole(model)), weights=used)
    reshard(whole(model))
    # Processors may round sums differently.
    return from_first(speed.allot(blocks, [one.numpy() for one in errors], uniform=uniform))


def refuse_allotment(speed: SpeedGoal, coverage: Coverage, loader: Any) -> None:
    """Refuse a speed-up for which no numbers of groups can be chosen. Call it before training.

    A run whose numbers are chosen is resumed on any machine, so it is for other runs.

    Args:
        speed: the speed-up, with the latency of the model.
        coverage: of a pattern of groups.
        loader: of the training set; None if the trainer gives its callbacks none.

    Raises:
        ValueError: the model cannot be as fast as that here, or there is no loader.
    """
    if not speed.possible:
        table, kinds = speed.table, coverage.pattern.kinds
        remedy = "" if len(kinds) > 1 else ", let neurons and heads go (`--prune_pattern neurons+heads`)"
        raise ValueError(
            f"`--compress_speedup {speed.speedup:g}` is more than this model can reach on this machine: "
            f"{table.most:.2f} at {table.shape} ({table.runtime}), with the fewest "
            f"{' and '.join(kinds)}. Lower it{remedy}, remove layers first "
            "(`--distill_student_layers`), or start from a smaller model."
        )
    if loader is None:
        raise ValueError(
            "`--compress_speedup` measures on the training set how much each neuron and head counts, but this trainer "
            "gives its callbacks no `train_dataloader`. Use Transformers' Trainer, or say what stays (`--prune_keep`)."
        )
