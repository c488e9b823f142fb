"""The speed-up that a run is to reach: what this machine can do, before training, and what was reached, after it."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

from transformers import AutoConfig, PreTrainedModel, Trainer
from transformers.utils import logging

from hf_compress.cut.uniform import WHOLE, whole_config
from hf_compress.export import FORMATS, write_graph
from hf_compress.failures import failures, reason
from hf_compress.launch.processes import on_first
from hf_compress.models.blocks import find_groups
from hf_compress.models.examples import longest_text
from hf_compress.models.heads import bare, find_outputs
from hf_compress.models.targets import model_class, transformer
from hf_compress.models.widths import widths_of
from hf_compress.prune import PATTERNS, SpeedGoal
from hf_compress.prune.arguments import AUTO
from hf_compress.recipe import Recipe
from hf_compress.report.card import save_card
from hf_compress.report.facts import Speed
from hf_compress.report.report import Report
from hf_compress.speed import Graphs, cached_table, compare_graphs

logger = logging.get_logger(__name__)


def speed_goal(trainer: Trainer, recipe: Recipe) -> SpeedGoal | None:
    """Return the speed-up that the neurons and heads of the trainer's model are chosen for; None if there is none.

    The latency of the model is measured now, or was before on this machine. Collective.

    Raises:
        MissingExtraError: the extra of the runtime is not installed.
        ValueError: the model reads no text of that length, has lost neurons or heads before, or its latency cannot be
            measured. The message says what is possible.
    """
    speed, pruning = recipe.speed, recipe.pruning
    if speed.compress_speedup is None or pruning.prune_keep != [AUTO]:
        return None
    model = cast(PreTrainedModel, bare(transformer(trainer.model)))
    kinds = PATTERNS[pruning.prune_pattern].kinds
    blocks = find_groups(model, kinds, pruning.prune_exclude)
    if widths_of(model) or getattr(model.config, WHOLE, None):
        raise _smaller(f"this {type(model).__name__} was loaded without some of them")
    longest = longest_text(model) if find_outputs(model).takes_text else None
    if longest is not None and speed.compress_speedup_length > longest:
        raise ValueError(
            f"`--compress_speedup_length` may be at most {longest} for this model; got "
            f"{speed.compress_speedup_length}. Lower it."
        )
    table = on_first(
        trainer,
        lambda: cached_table(
            type(model),
            model.config,
            recipe.quantization,
            kinds,
            exclude=pruning.prune_exclude,
            batch=speed.compress_speedup_batch,
            length=speed.compress_speedup_length,
            runtime=speed.compress_speedup_runtime,
        ),
    )
    known = {(course.kind, course.count) for course in table.courses}
    if others := [block.name for block in blocks if (block.kind, block.count) not in known]:
        raise _smaller(f"{others[0]} has other numbers than its configuration says")
    return SpeedGoal(speed.compress_speedup, table)


def _smaller(reason: str) -> ValueError:
    return ValueError(
        f"`--compress_speedup` needs a model with all its neurons and heads, but {reason}. Start from the model as it "
        "was before, or say what stays (`--prune_keep`)."
    )


def add_speed(folder: Path) -> bool:
    """Measure the speed-up of the finished `folder`, if its recipe asks for one, and put it into report and card.

    Its graph and that of the whole model in the same number format take turns. If they do not run here, the log
    says why. Return whether it was measured now.
    """
    report = Report.load(folder)
    if not report.recipe.speed.enabled or report.recipe.pruning.keeps is None or report.speed is not None:
        return False
    try:
        speed = measured_speed(folder, report.recipe)
    except failures() as error:
        logger.warning(f"The speed of {folder} could not be measured: {reason(error)}")
        return False
    replace(report, speed=speed).save(folder)
    save_card(folder)
    return True


def measured_speed(folder: Path, recipe: Recipe) -> Speed:
    """Return the speed-up of the model in `folder`, measured now, beside the one that was expected.

    Args:
        folder: of a finished run.
        recipe: with a speed-up, and with the groups that were chosen for it.
    """
    options, pruning, given = recipe.speed, recipe.pruning, recipe.quantization
    kinds, config, kept = PATTERNS[pruning.prune_pattern].kinds, AutoConfig.from_pretrained(folder), pruning.keeps
    assert options.compress_speedup is not None
    assert kept is not None
    whole, cls = whole_config(config), model_class(folder)
    batch, length, runtime = (
        options.compress_speedup_batch,
        options.compress_speedup_length,
        options.compress_speedup_runtime,
    )
    table = cached_table(
        cls, whole, given, kinds, exclude=pruning.prune_exclude, batch=batch, length=length, runtime=runtime
    )
    with tempfile.TemporaryDirectory() as scratch:
        graphs = Graphs(cls, whole, given, Path(scratch), kinds, pruning.prune_exclude)
        smaller = folder / FORMATS[runtime].path
        if not smaller.is_file():
            smaller = Path(scratch, "smaller.onnx")
            write_graph(folder, smaller)
        measured = compare_graphs(graphs.whole, smaller, graphs.config, graphs.batch(batch, length), runtime=runtime)
    predicted = table.speedup(graphs.blocks, kept)
    return Speed(options.compress_speedup, predicted, measured, table.shape, table.runtime, table.machine)
