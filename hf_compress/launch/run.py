"""Make a Trainer compress what it trains, and finish its run: the packed file, the report, the card."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import Trainer
from transformers.utils import logging

from hf_compress.callbacks import progress
from hf_compress.checkpoint.save import save_compressed
from hf_compress.distill import DistillationMixin
from hf_compress.distill.sentence_trainer import SentenceDistillationMixin
from hf_compress.export.formats import check_model, exported
from hf_compress.hub.preflight import check_access
from hf_compress.launch.claim import claim
from hf_compress.launch.comparisons import Comparisons, warn_of_taught
from hf_compress.launch.completion import said_of_failures
from hf_compress.launch.format_steps import FormatSteps
from hf_compress.launch.preconditions import (
    check_budget,
    check_compressible,
    check_gate,
    recipe_of,
    warn_of_untrained_teacher,
)
from hf_compress.launch.processes import on_first
from hf_compress.launch.reporting import Reporting
from hf_compress.launch.result import Plan, Result
from hf_compress.launch.sentence_reporting import SentenceReporting, reporting_of
from hf_compress.launch.speed_goal import add_speed, speed_goal
from hf_compress.launch.uploads import Destination, disarm
from hf_compress.models.heads import bare
from hf_compress.models.sentences import sentence_kind
from hf_compress.models.targets import transformer
from hf_compress.prune import SpeedGoal
from hf_compress.prune.callback import KEPT
from hf_compress.quantize.callback import CONSTANT
from hf_compress.recipe import Recipe, RecipeCallback
from hf_compress.redaction import keep_secret, redact_command
from hf_compress.report import provenance
from hf_compress.report.author import read_author
from hf_compress.report.evaluation import Origin
from hf_compress.report.gate import check_max_drop
from hf_compress.report.report import DatasetFacts, Report

logger = logging.get_logger(__name__)


def compress(
    trainer: Trainer,
    recipe: Recipe,
    *,
    hub_id: str | None = None,
    max_drop: float | None = None,
    dense: Mapping[str, float] | None = None,
    control: str | Path | None = None,
    extra_eval_dataset: Any = None,
    extra_eval_rows: Sequence[int] | None = None,
    formats: Sequence[str] = (),
) -> Trainer:
    """Make `trainer` compress what it trains, in place, and return it.

    The trainer's class becomes a subclass of its own class and `DistillationMixin` (for sentence-transformers, its
    counterpart `SentenceDistillationMixin`), and the callbacks of `recipe` are added. Call this before `train()`, and
    `finish` after it. Trainer's own uploads (`push_to_hub`) are switched off: `finish` pushes the compressed model
    instead, in one commit. Collective: every process must call it.

    Args:
        trainer: any Trainer, before `train()`.
        recipe: the plan of the run.
        hub_id: the Hub repository that `finish` will push to. By default the one that `push_to_hub` of the trainer's
            arguments means, if that is set. The right to write there is checked now.
        max_drop: the limit that `finish` will judge by. Whether there will be a dense model to compare with is checked
            now.
        dense: scores of a dense model, if they will be given to `finish`.
        control: the folder of a control for `finish`. Whether it is one is checked now.
        extra_eval_dataset: further labelled rows for `finish`. That no training row is among them is checked now.
        extra_eval_rows: the index of each of them in its split.
        formats: names from `hf_compress.export.FORMATS` for `finish`. That they can hold the model is checked now.

    Raises:
        ValueError: the recipe cannot be applied to this model, the model is not of Transformers or
            sentence-transformers, the output folder already holds a result or is in use by another run, the trainer
            already compresses, the Hub would refuse the push, there is nothing that `max_drop` could compare with, or
            `control`, the extra rows or a format cannot be used.

    Example:
        >>> import tempfile, transformers
        >>> from hf_compress import PruningArguments, Recipe, compress
        >>> model = transformers.BertForSequenceClassification(
        ...     transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        ... )
        >>> arguments = transformers.TrainingArguments(tempfile.mkdtemp(), report_to="none")
        >>> recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.6))
        >>> trainer = compress(transformers.Trainer(model, arguments), recipe)
        >>> [base.__name__ for base in type(trainer).__bases__]
        ['DistillationMixin', 'Trainer']
    """
    keep_secret(trainer.args.hub_token)
    Result(trainer.args.output_dir).check_free()
    check_compressible(trainer, recipe, formats)
    check_budget(trainer, recipe)
    speed = speed_goal(trainer, recipe)
    on_first(trainer, lambda: _prepare(trainer, Destination.of(trainer, hub_id)))
    disarm(trainer)
    origin = Origin.of(trainer.model)
    check_gate(trainer, origin, max_drop, has_dense=dense is not None)
    warn_of_untrained_teacher(trainer, recipe, origin)
    comparisons = Comparisons().updated(trainer, extra=extra_eval_dataset, extra_rows=extra_eval_rows, control=control)
    distilling = _distilling(trainer)
    distilling.begin_distillation(recipe.distillation)
    warn_of_taught(distilling, comparisons.extra)
    _install(distilling, recipe, speed)
    check_model(formats, bare(transformer(trainer.model)))  # Now its layers round, or not.
    distilling.origin, distilling.pushes_to, distilling.max_drop = origin, hub_id, max_drop
    distilling.comparisons = comparisons
    return distilling


def _prepare(trainer: Trainer, destination: Destination) -> None:
    """Claim the output folder, and check that the Hub would take the result."""
    claim(trainer.args.output_dir)
    if destination.hub_id is not None:
        check_access(
            destination.hub_id,
            private=destination.private,
            revision=destination.revision,
            token=trainer.args.hub_token,
        )


def _distilling(trainer: Trainer) -> DistillationMixin:
    """Return the same trainer, whose class now derives from the mixin for its kind of model."""
    mixin = DistillationMixin if sentence_kind(trainer.model) is None else SentenceDistillationMixin
    if not isinstance(trainer, mixin):
        own = type(trainer)
        # Under its old name, because Transformers and others write that into files.
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
        trainer.__class__ = type(own.__name__, (mixin, own), names)
    return cast(DistillationMixin, trainer)


def _install(trainer: Trainer, recipe: Recipe, speed: SpeedGoal | None) -> None:
    """Add the callbacks of `recipe`, in front of those that print or send the logs which ours extend."""
    trainer.remove_callback(RecipeCallback)
    callbacks = recipe.callbacks(speed)
    trainer.callback_handler.callbacks[:0] = callbacks
    for callback in callbacks:
        callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model, loads_in_place=True)


def finish(
    trainer: Trainer,
    *,
    evaluation: Mapping[str, Any] | None = None,
    dense: Mapping[str, float] | None = None,
    base_model: str | None = None,
    base_model_hub_id: str | None = None,
    task: str | None = None,
    dataset: DatasetFacts | None = None,
    main_metric: str | None = None,
    hub_id: str | None = None,
    command: str | None = None,
    formats: Sequence[str] = (),
    card_metadata: str | Path | Mapping[str, Any] | None = None,
    max_drop: float | None = None,
    control: str | Path | None = None,
    extra_eval_dataset: Any = None,
    extra_eval_rows: Sequence[int] | None = None,
    extra_dense: Mapping[str, float] | None = None,
) -> Report | None:
    """Save the compressed model in OUTPUT_DIR/compressed with report and card, and return the report.

    The model is saved, loaded again, and evaluated; what the report says is measured on the loaded model. The folder
    appears with packed file, report and card, or not at all. Each further format is then added by itself: one that
    fails is recorded in the report (`failed_formats`), the others go on. The push comes last. After a failure run
    `hf-compress finish OUTPUT_DIR`, which does what is left without training again.

    Without an evaluation set there is neither report nor card, and None is returned. Collective: every process must
    call it; process 0 writes.

    Args:
        trainer: the trainer that `compress` returned, or one built with `Recipe.callbacks()`, after training.
        evaluation: arguments for `trainer.evaluate`. By default it is called without arguments.
        dense: scores of the dense model. By default, those of the model that training started from, if its head was
            trained by then; otherwise the report has no dense baseline.
        base_model: the model that training started from. By default, the name in its configuration.
        base_model_hub_id: its Hub id, if it is a copy.
        task: a short name. By default, that of the dataset.
        dataset: what the rows are. By default, what `datasets` knows about them.
        main_metric: the score that stands for the task. By default, `metric_for_best_model` or the first score.
        hub_id: the Hub repository to push the result to. By default that of `compress`, or the one that `push_to_hub`
            of the trainer's arguments means.
        command: the command line for the card. By default, that of this process.
        formats: names from `hf_compress.export.FORMATS` to write as well; each is compared on evaluation batches.
        card_metadata: what the author adds to the card, as `--compress_card_metadata` takes it: a YAML or JSON file,
            or its contents.
        max_drop: points that the main metric may fall below the dense model. If it falls more, or a format or the
            sparsity is missed, `verdict` of the report is "REGRESSION", and nothing is pushed. By default that of
            `compress`. Of two evaluation sets, that with more rows counts.
        control: the folder of a control: the same training without any method, with its report. The report then has
            the paired difference to it, if it was measured on the same rows. By default that of `compress`.
        extra_eval_dataset: further labelled rows that no training has seen, prepared as the evaluation set is: a
            second evaluation set, whose scores stand in `extra` of the report. By default that of `compress`.
        extra_eval_rows: the index of each of them in its split, for those who measure again. By default what
            `datasets` knows.
        extra_dense: as `dense`, on the extra rows.

    Raises:
        ValueError: the trainer does not compress, there is a result already, the model does not keep the promise of
            the recipe, `evaluate` returns no scores, the control or the extra rows cannot be used, or the result
            cannot be pushed.

    Example:
        >>> from hf_compress import finish
        >>> trainer.train()  # doctest: +SKIP
        >>> report = finish(trainer, formats=["onnx"])  # doctest: +SKIP
        >>> report.size.packed_bytes  # doctest: +SKIP
        16200000
    """
    keep_secret(trainer.args.hub_token)
    comparisons = getattr(trainer, "comparisons", Comparisons()).updated(
        trainer, extra=extra_eval_dataset, extra_rows=extra_eval_rows, extra_dense=extra_dense, control=control
    )
    reporting = reporting_of(trainer, _promised(trainer), evaluation, comparisons)
    author = read_author(card_metadata)
    result, command = Result(trainer.args.output_dir), command or provenance.command()
    reported = reporting.obstacle is None
    destination = Destination.of(trainer, hub_id or getattr(trainer, "pushes_to", None))
    plan = Plan(
        redact_command(command, keep_paths=True),
        formats=list(formats),
        reported=reported,
        hub_id=destination.hub_id if reported else None,
        private=destination.private,
        revision=destination.revision,
        max_drop=getattr(trainer, "max_drop", None) if max_drop is None else max_drop,
    )
    check_max_drop(plan.max_drop)
    _save(trainer, result, plan, reporting.recipe)
    with reporting.on_rows():
        report = None
        if reported:
            report = reporting.report(
                result.aside,
                dense=dense,
                base_model=base_model,
                task=task,
                dataset=dataset,
                base_model_hub_id=base_model_hub_id,
                main_metric=main_metric,
                command=command,
                author=author,
            )
        on_first(trainer, lambda: result.place(report))
        failed = _add_formats(trainer, result, plan, reporting, report)
        if report is not None:
            on_first(trainer, lambda: add_speed(result.folder))
    told = on_first(trainer, lambda: result.conclude(plan, trainer.args.hub_token))
    if trainer.is_world_process_zero():
        for sentence in [*([said_of_failures(result, failed)] if failed else []), *told]:
            logger.warning(sentence)
    if reporting.obstacle is not None:
        _say_without_report(result, reporting.obstacle, destination, plan)
        return None
    return Report.load(result.folder)  # Again, because card, formats and verdict have added to it.


def _say_without_report(result: Result, obstacle: str, destination: Destination, plan: Plan) -> None:
    """Say that there is no report, or raise if it was needed."""
    if destination.hub_id is not None or plan.max_drop is not None:
        what = f"pushed to {destination.hub_id}" if destination.hub_id is not None else "judged (`max_drop`)"
        raise ValueError(
            f"The compressed model is in {result.folder}, but it cannot be {what} without a report. {obstacle}"
        )
    logger.warning(f"{result.folder} holds the model alone, without report and card. {obstacle}")


def _promised(trainer: Trainer) -> Recipe:
    """Return the recipe of the trainer, with what was chosen in training for its budget and its speed-up."""
    recipe = recipe_of(trainer)
    if recipe is None:
        raise ValueError(
            "This trainer has no recipe to finish. Call `compress(trainer, recipe)` before `train()`, or build the "
            "trainer with `callbacks=recipe.callbacks()`."
        )
    done = progress(trainer.state)
    if (constant := done.get(CONSTANT)) is not None:
        recipe = replace(recipe, quantization=replace(recipe.quantization, quant_step=constant))
    if (kept := done.get(KEPT)) is not None:
        items = [f"{name}={count}" for name, count in kept.items()]
        recipe = replace(recipe, pruning=replace(recipe.pruning, prune_keep=items))
    return recipe


def _save(trainer: Trainer, result: Result, plan: Plan, recipe: Recipe) -> None:
    """Save the compressed model aside. Collective."""
    on_first(trainer, lambda: result.begin(plan))
    tokenizer = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    strict = plan.max_drop is None  # Otherwise the gate judges a model that missed its sparsity.
    save_compressed(trainer.model, result.aside, recipe, processing_class=tokenizer, strict=strict)
    trainer.accelerator.wait_for_everyone()


def _add_formats(
    trainer: Trainer, result: Result, plan: Plan, reporting: Reporting | SentenceReporting, report: Report | None
) -> dict[str, str]:
    """Add the formats of the plan to the finished folder, and return why some failed. Collective."""
    if not exported(plan.formats):
        return {}
    steps = FormatSteps(
        result.folder,
        result.scratch,
        batches=None if report is None else reporting.batches(),
        meter=None if report is None else reporting.meter(result.folder, report.main_metric),
        first=trainer.is_world_process_zero(),
    )
    return steps.add(plan.formats)
