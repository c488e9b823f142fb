"""Making a Trainer compress what it trains, and finishing its run: the file, what is measured on it, its card."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from hf_compress.checkpoint.budget import fit_budget
from hf_compress.checkpoint.save import save_compressed
from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill import DistillationMixin
from hf_compress.distill.teacher import SELF
from hf_compress.export.formats import FORMATS, write_formats
from hf_compress.models.heads import bare, find_head
from hf_compress.models.targets import transformer
from hf_compress.recipe import Recipe, RecipeCallback
from hf_compress.report import dataset as dataset_facts
from hf_compress.report import provenance
from hf_compress.report.card import save_card
from hf_compress.report.evaluation import Origin, dense_scores, evaluate, evaluation_batches, teacher_scores
from hf_compress.report.hub import push
from hf_compress.report.report import DatasetFacts, Report, measure

logger = logging.get_logger(__name__)

FOLDER = "compressed"


def compress(trainer: Trainer, recipe: Recipe) -> Trainer:
    """The same `trainer`, which from now on compresses what it trains by `recipe`.

    Its class becomes one that derives from its own and from `DistillationMixin`, and it gets `recipe.callbacks()`. Do
    this before `train()`; afterwards `finish` writes the compressed model. A budget of bytes is made bits and a
    sparsity here.

    Raises:
        ValueError: the recipe cannot be kept with this model, it is no Transformers model, a result is in the output
            folder already, or the trainer compresses already.
    """
    check_free(trainer)
    present = recipe_of(trainer)
    if (present is not None and present.name != "dense") or getattr(trainer, "teacher", None) is not None:
        raise ValueError(
            f"This {type(trainer).__name__} compresses already. Either its script sees to that, or the launcher and "
            "`compress` do: drop one of the two."
        )
    inner = bare(trainer.model)
    if not isinstance(inner, PreTrainedModel):
        raise ValueError(
            f"This {type(trainer).__name__} trains a {type(inner).__name__}, which is no Transformers model, and only "
            "such are written, reloaded and reported on. In code the callbacks work with a module around one: "
            "`callbacks=recipe.callbacks()`, and `save_compressed` for the model inside."
        )
    if recipe.vocabulary.enabled and VocabularyFacts.of(inner.config) is None:
        raise ValueError(
            "`--compress_vocabulary` has to take words out before any text is tokenized, and the rows of this "
            f"{type(trainer).__name__} are tokenized already. Have the script call `model, tokenizer = "
            "hf_compress.cut_vocabulary(model, tokenizer, texts)` first, as examples/run_glue.py does, or leave the "
            "flag out."
        )
    origin = Origin.of(trainer.model)
    if recipe.distillation.distill_teacher == SELF and origin.name and not origin.trained:
        logger.warning(
            f"`--distill_teacher {SELF}` teaches with the model as training finds it, and {origin.name} was not "
            f"saved as a {type(bare(trainer.model)).__name__}: unless the script has trained its head, that teaches "
            "noise. Start from a fine-tuned model, or name one as the teacher."
        )
    if not isinstance(trainer, DistillationMixin):
        kind = type(trainer)
        # By its old name: Transformers and others write it into files.
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        trainer.__class__ = type(kind.__name__, (DistillationMixin, kind), names)
    trainer = cast(DistillationMixin, trainer)
    trainer.begin_distillation(recipe.distillation)
    if recipe.budget.enabled:
        recipe, expected = fit_budget(transformer(trainer.model), recipe)
        logger.warning(
            f"`--compress_budget_mb {recipe.budget.compress_budget_mb:g}`: with `{recipe.quantization.flags}` and "
            f"`--prune_sparsity {recipe.pruning.prune_sparsity:g}` the file will have about {expected / 1e6:.2f} MB."
        )
    trainer.remove_callback(RecipeCallback)
    callbacks = recipe.callbacks()
    # In front, so that what they add to the logs is seen by those that print it or send it away.
    trainer.callback_handler.callbacks[:0] = callbacks
    for callback in callbacks:
        callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.origin = origin
    return trainer


def recipe_of(trainer: Trainer) -> Recipe | None:
    """The recipe that `trainer` compresses by; None if it does not."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, RecipeCallback):
            return callback.recipe
    return None


def check_free(trainer: Trainer) -> None:
    """Refuses, before anything is trained, an output folder that holds a result already."""
    folder = Path(trainer.args.output_dir) / FOLDER
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"`--output_dir {trainer.args.output_dir}` holds the result of another run in {folder}. Give another "
            "folder, or move that one away."
        )


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
) -> Report | None:
    """The report on OUTPUT_DIR/compressed, where the model is written, reloaded, evaluated and described by a card.

    Without an evaluation set the model is written, and there is neither report nor card. Every process of a
    distributed run must call this; process 0 writes.

    Args:
        trainer: one that `compress` made, or built with `Recipe.callbacks()`, after its training.
        evaluation: the arguments for `trainer.evaluate`, where it is not to be called without any.
        dense: scores of the dense model. By default those of the model that training began with, if its head was
            trained then; else the report says that there is no dense baseline.
        base_model: the model that training began with; by default as its configuration names it.
        base_model_hub_id: its Hub id, where it is a copy.
        task: a short name; by default that of the data.
        dataset: what the rows are; by default as far as `datasets` knows.
        main_metric: the score that stands for the task; by default `metric_for_best_model`, or the first.
        hub_id: where to push the result to, if anywhere.
        command: the command line for the card; by default that of this process.
        formats: names in `formats.FORMATS` to write the model in as well, compared on evaluation batches.

    Raises:
        ValueError: the trainer does not compress, the model is not what the recipe promises, `evaluate` returns no
            scores, or the result cannot be pushed.
    """
    recipe = recipe_of(trainer)
    if recipe is None:
        raise ValueError(
            "The trainer has no recipe to finish. Call `compress(trainer, recipe)` before `train()`, or build it with "
            "`callbacks=recipe.callbacks()`."
        )
    evaluation = dict(evaluation or {})
    folder, writes = Path(trainer.args.output_dir) / FOLDER, trainer.is_world_process_zero()
    tokenizer = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    save_compressed(trainer.model, folder, recipe, processing_class=tokenizer)
    trainer.accelerator.wait_for_everyone()
    rows = evaluation.get("eval_dataset", trainer.eval_dataset)
    if isinstance(rows, str):
        rows = trainer.eval_dataset[rows]
    obstacle = _obstacle(trainer.model, rows)
    if obstacle is not None:
        if hub_id is not None:
            raise ValueError(
                f"The compressed model is in {folder}, but it cannot be pushed to {hub_id} without a report. "
                f"{obstacle}"
            )
        logger.warning(f"There is no report and no card: {folder} holds the model alone. {obstacle}")
        if writes:
            write_formats(folder, formats)
        return None
    with _evaluating_on(trainer, rows):
        batches = evaluation_batches(trainer) if any(name in FORMATS for name in formats) else None
    if writes:
        write_formats(folder, formats, batches)
    trainer.accelerator.wait_for_everyone()
    origin = getattr(trainer, "origin", None)
    teacher = teacher_scores(trainer, evaluation)
    # A dense model with all its words cannot read these rows.
    whole = VocabularyFacts.of(bare(trainer.model).config) is None
    if dense is None and origin is not None and origin.trained and whole:
        own = recipe.distillation.distill_teacher == SELF and trainer._adapted is None
        dense = teacher if own else dense_scores(trainer, origin, evaluation)
    with _evaluating_on(trainer, rows):
        report = measure(
            trainer,
            folder,
            recipe,
            base_model=base_model or (origin or Origin.of(trainer.model)).name,
            base_model_hub_id=base_model_hub_id,
            base_model_revision=origin.revision if origin and provenance.hub_id(origin.name) else None,
            task=task or dataset_facts.task(trainer),
            dataset=dataset or dataset_facts.find(trainer, rows),
            main_metric=main_metric,
            dense=dense,
            teacher=teacher,
            evaluate=lambda: evaluate(trainer, evaluation, "compressed"),
            command=command,
        )
    if writes:
        report.save(folder)
        save_card(folder)
        if hub_id is not None:
            push(folder, hub_id, private=bool(trainer.args.hub_private_repo), token=trainer.args.hub_token)
    trainer.accelerator.wait_for_everyone()
    return report


def _obstacle(model: nn.Module, rows: Any) -> str | None:
    """Why there can be no report on the model; None where there can."""
    if rows is None:
        return "A report needs an evaluation set: have the script evaluate (`--do_eval`)."
    try:
        find_head(model)
    except ValueError as error:
        return str(error)
    return None


@contextmanager
def _evaluating_on(trainer: Trainer, rows: Any) -> Iterator[None]:
    kept, trainer.eval_dataset = trainer.eval_dataset, rows
    try:
        yield
    finally:
        trainer.eval_dataset = kept
