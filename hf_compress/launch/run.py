"""Make a Trainer compress what it trains, and finish its run: the packed file, the report, the card."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer
from transformers.utils import logging

from hf_compress.checkpoint.budget import fit_budget
from hf_compress.checkpoint.save import save_compressed
from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill import DistillationMixin
from hf_compress.distill.teacher import SELF
from hf_compress.export.formats import exported, write_formats
from hf_compress.launch.claim import claim
from hf_compress.launch.preconditions import check_compressible, recipe_of, warn_of_untrained_teacher
from hf_compress.launch.result import Plan, Result
from hf_compress.models.heads import bare, find_head
from hf_compress.models.targets import transformer
from hf_compress.recipe import Recipe, RecipeCallback
from hf_compress.redaction import redact_command
from hf_compress.report import dataset as dataset_facts
from hf_compress.report import provenance
from hf_compress.report.author import read_author
from hf_compress.report.background import find_baseline
from hf_compress.report.evaluation import Origin, dense_scores, evaluate, evaluation_batches, teacher_scores
from hf_compress.report.facts import Baseline
from hf_compress.report.measuring import measure
from hf_compress.report.report import DatasetFacts, Report

logger = logging.get_logger(__name__)


def compress(trainer: Trainer, recipe: Recipe) -> Trainer:
    """Make `trainer` compress what it trains, in place, and return it.

    The trainer's class becomes a subclass of its own class and `DistillationMixin`, and the callbacks of `recipe` are
    added. Call this before `train()`, and `finish` after it. A `--compress_budget_mb` is turned into bits and a
    sparsity here.

    Raises:
        ValueError: the recipe cannot be applied to this model, the model is not a Transformers model, the output
            folder already holds a result or is in use by another run, or the trainer already compresses.

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
    Result(trainer.args.output_dir).check_free()
    check_compressible(trainer, recipe)
    if trainer.is_world_process_zero():
        claim(trainer.args.output_dir)
    origin = Origin.of(trainer.model)
    warn_of_untrained_teacher(trainer, recipe, origin)
    distilling = _distilling(trainer)
    distilling.begin_distillation(recipe.distillation)
    _install(distilling, _fitted(distilling, recipe))
    distilling.origin = origin
    return distilling


def _distilling(trainer: Trainer) -> DistillationMixin:
    """Return the same trainer, whose class now derives from `DistillationMixin`."""
    if not isinstance(trainer, DistillationMixin):
        own = type(trainer)
        # Under its old name, because Transformers and others write that into files.
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
        trainer.__class__ = type(own.__name__, (DistillationMixin, own), names)
    return cast(DistillationMixin, trainer)


def _fitted(trainer: Trainer, recipe: Recipe) -> Recipe:
    """Return the recipe with the bits and the sparsity that meet its budget, if it has one."""
    if not recipe.budget.enabled:
        return recipe
    recipe, expected = fit_budget(transformer(trainer.model), recipe)
    logger.warning(
        f"`--compress_budget_mb {recipe.budget.compress_budget_mb:g}`: the file will have about {expected / 1e6:.2f} "
        f"MB with `{recipe.quantization.flags}` and `--prune_sparsity {recipe.pruning.prune_sparsity:g}`."
    )
    return recipe


def _install(trainer: Trainer, recipe: Recipe) -> None:
    """Add the callbacks of `recipe`, in front of those that print or send the logs which ours extend."""
    trainer.remove_callback(RecipeCallback)
    callbacks = recipe.callbacks()
    trainer.callback_handler.callbacks[:0] = callbacks
    for callback in callbacks:
        callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)


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
) -> Report | None:
    """Save the compressed model in OUTPUT_DIR/compressed with report and card, and return the report.

    The model is saved, loaded again, and evaluated; what the report says is measured on the loaded model. The folder
    appears whole or not at all: everything is written aside and moved into place at the end. After a failure, call
    `finish` again, or resume the run from its last checkpoint.

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
        hub_id: the Hub repository to push the result to.
        command: the command line for the card. By default, that of this process.
        formats: names from `hf_compress.export.FORMATS` to write as well; each is compared on evaluation batches.
        card_metadata: what the author adds to the card, as `--compress_card_metadata` takes it: a YAML or JSON file,
            or its contents.

    Raises:
        ValueError: the trainer does not compress, there is a result already, the model does not keep the promise of
            the recipe, `evaluate` returns no scores, or the result cannot be pushed.

    Example:
        >>> from hf_compress import finish
        >>> trainer.train()  # doctest: +SKIP
        >>> report = finish(trainer, formats=["onnx"])  # doctest: +SKIP
        >>> report.size.packed_bytes  # doctest: +SKIP
        16200000
    """
    recipe, author = _promised(trainer), read_author(card_metadata)
    evaluation, rows = _evaluation(trainer, evaluation)
    obstacle = _obstacle(trainer.model, rows)
    result, command = Result(trainer.args.output_dir), command or provenance.command()
    plan = Plan(
        redact_command(command, keep_paths=True),
        list(formats),
        obstacle is None,
        hub_id,
        bool(trainer.args.hub_private_repo),
    )
    _save(trainer, result, plan, recipe)
    report = None
    with _evaluating_on(trainer, rows):
        _write_formats(trainer, result, formats, compares=obstacle is None)
        if obstacle is None:
            origin = getattr(trainer, "origin", None)
            teacher = teacher_scores(trainer, evaluation)
            report = measure(
                trainer,
                result.aside,
                recipe,
                base_model=base_model or (origin or Origin.of(trainer.model)).name,
                base_model_hub_id=base_model_hub_id,
                base_model_revision=origin.revision if origin and provenance.hub_id(origin.name) else None,
                task=task or dataset_facts.task(trainer),
                dataset=dataset_facts.find(trainer, rows, declared=dataset),
                main_metric=main_metric,
                dense=_dense(trainer, recipe, evaluation, teacher) if dense is None else dense,
                teacher=teacher,
                evaluate=lambda: evaluate(trainer, evaluation, "compressed"),
                command=command,
                origin=origin,
                dense_model=find_baseline(origin) if dense is None and origin is not None else Baseline(start=False),
                author=author,
            )
    return _publish(trainer, result, plan, report, obstacle)


def _promised(trainer: Trainer) -> Recipe:
    recipe = recipe_of(trainer)
    if recipe is None:
        raise ValueError(
            "This trainer has no recipe to finish. Call `compress(trainer, recipe)` before `train()`, or build the "
            "trainer with `callbacks=recipe.callbacks()`."
        )
    return recipe


def _evaluation(trainer: Trainer, evaluation: Mapping[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """Return the arguments for `trainer.evaluate`, and the set or sets of rows that it will evaluate on."""
    arguments = dict(evaluation or {})
    rows = arguments.get("eval_dataset", trainer.eval_dataset)
    if isinstance(rows, str):
        rows = arguments["eval_dataset"] = trainer.eval_dataset[rows]
    return arguments, rows


def _obstacle(model: nn.Module, rows: Any) -> str | None:
    """Return why there can be no report on the model, or None if there can."""
    if rows is None:
        return "A report needs an evaluation set: let the script evaluate (`--do_eval`)."
    try:
        find_head(model)
    except ValueError as error:
        return str(error)
    return None


def _save(trainer: Trainer, result: Result, plan: Plan, recipe: Recipe) -> None:
    """Save the compressed model aside. Collective."""
    if trainer.is_world_process_zero():
        result.begin(plan)
    trainer.accelerator.wait_for_everyone()
    tokenizer = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    save_compressed(trainer.model, result.aside, recipe, processing_class=tokenizer)
    trainer.accelerator.wait_for_everyone()


def _write_formats(trainer: Trainer, result: Result, formats: Sequence[str], *, compares: bool) -> None:
    """Write the other formats aside, and compare them with the packed one on evaluation batches. Collective."""
    batches = evaluation_batches(trainer) if compares and exported(formats) else None
    if trainer.is_world_process_zero():
        write_formats(result.aside, formats, batches)
    trainer.accelerator.wait_for_everyone()


def _dense(
    trainer: Trainer, recipe: Recipe, evaluation: Mapping[str, Any], teacher: dict[str, float] | None
) -> dict[str, float] | None:
    """Return the scores of the model that training started from, or None if it cannot be scored on these rows."""
    origin = getattr(trainer, "origin", None)
    cut = VocabularyFacts.of(bare(trainer.model).config) is not None
    if origin is None or not origin.trained or cut:
        return None
    if recipe.distillation.distill_teacher == SELF and trainer._adapted is None:
        return teacher
    return dense_scores(trainer, origin, evaluation)


def _publish(
    trainer: Trainer, result: Result, plan: Plan, report: Report | None, obstacle: str | None
) -> Report | None:
    """Move the result into place with report and card, push it, and return the report as saved. Collective.

    Without a report nothing is pushed.
    """
    if trainer.is_world_process_zero():
        if report is not None:
            report.save(result.aside)
        result.publish(plan if report is not None else replace(plan, hub_id=None), token=trainer.args.hub_token)
        report = None if report is None else Report.load(result.folder)  # Again, because the card has added to it.
    trainer.accelerator.wait_for_everyone()
    if obstacle is not None:
        if plan.hub_id is not None:
            raise ValueError(
                f"The compressed model is in {result.folder}, but it cannot be pushed to {plan.hub_id} without a "
                f"report. {obstacle}"
            )
        logger.warning(f"{result.folder} holds the model alone, without report and card. {obstacle}")
    return report


@contextmanager
def _evaluating_on(trainer: Trainer, rows: Any) -> Iterator[None]:
    kept, trainer.eval_dataset = trainer.eval_dataset, rows
    try:
        yield
    finally:
        trainer.eval_dataset = kept
