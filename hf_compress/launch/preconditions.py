"""What must hold before a Trainer can compress: checked before training starts."""

import math
from collections.abc import Sequence
from dataclasses import fields

from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging

from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill.teacher import SELF
from hf_compress.export.formats import check_formats, check_recipe
from hf_compress.models.finite import refuse_broken
from hf_compress.models.heads import bare
from hf_compress.models.saving import refuse_changed, refuse_unsavable
from hf_compress.models.sentences import place_of_transformer, sentence_kind
from hf_compress.models.targets import transformer
from hf_compress.prune.coverage import pruned_layers
from hf_compress.quantize.spending import LEAST_BITS, least_bytes
from hf_compress.recipe import Recipe, RecipeCallback
from hf_compress.report.evaluation import Origin
from hf_compress.report.gate import check_max_drop

logger = logging.get_logger(__name__)

MOST_GONE = 31 / 32  # Of neurons and heads, for a speed-up.
# How TRL marks its trainers, and the one whose rows have labels.
TRL, SUPERVISED = "trl", "sft"
NUMBERS = (int, float, "int | None", "float | None")


def recipe_of(trainer: Trainer) -> Recipe | None:
    """Return the recipe that `trainer` compresses by, or None if it does not compress."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, RecipeCallback):
            return callback.recipe
    return None


def check_compressible(trainer: Trainer, recipe: Recipe, formats: Sequence[str] = ()) -> None:
    """Check that `trainer` can compress by `recipe`, and that `formats` can hold the result.

    Raises:
        ValueError: it compresses already, its model is not a Transformers model, cannot be saved or has weights that
            are not finite, the vocabulary is to be cut although the rows are tokenized or no text, the rows have no
            labels beside which a teacher could be asked, a format cannot hold a model of the recipe, or one of its
            arguments is text in place of a number.
        MissingExtraError: a library of a format is missing.
    """
    _check_numbers(trainer.args)
    present = recipe_of(trainer)
    if (present is not None and present.name != "dense") or getattr(trainer, "teacher", None) is not None:
        raise ValueError(
            f"This {type(trainer).__name__} already compresses. Either its script sets that up, or the launcher and "
            "`compress` do: remove one of the two."
        )
    _check_labelled(trainer, recipe)
    refuse_unsavable(trainer.model)
    refuse_broken(trainer.model, "The model's")
    inner = bare(trainer.model)
    if sentence_kind(inner) is not None:
        place_of_transformer(inner)
        inner = bare(transformer(inner))
    if not isinstance(inner, PreTrainedModel):
        raise ValueError(
            "Only models of Transformers and sentence-transformers can be saved and reported on; this "
            f"{type(trainer).__name__} trains a {type(inner).__name__}. In code, pass `callbacks=recipe.callbacks()` "
            "to the Trainer, and call `save_compressed` with the Transformers model inside."
        )
    refuse_changed(inner)
    if recipe.vocabulary.enabled and inner.main_input_name != "input_ids":
        raise ValueError(
            f"`--compress_vocabulary` removes tokens, and this {type(inner).__name__} reads "
            f"`{inner.main_input_name}`. Leave it out."
        )
    if recipe.vocabulary.enabled and VocabularyFacts.of(inner.config) is None:
        raise ValueError(
            "`--compress_vocabulary` must remove tokens before any text is tokenized, and the rows of this "
            f"{type(trainer).__name__} are tokenized already. Let the script call `model, tokenizer = "
            "hf_compress.cut_vocabulary(model, tokenizer, texts)` first, as examples/run_glue.py does, or drop the "
            "flag."
        )
    check_formats(formats)
    check_recipe(formats, recipe)


def _check_labelled(trainer: Trainer, recipe: Recipe) -> None:
    """Refuse distillation in trainers of TRL whose rows have no labels to learn beside a teacher."""
    marks = getattr(trainer, "_tag_names", None) or ()
    if recipe.distillation.enabled and TRL in marks and SUPERVISED not in marks:
        raise ValueError(
            f"`--distill_teacher` compares outputs on rows with labels, and TRL's {type(trainer).__name__} has none: "
            "it compares whole answers, or lets the model write them. Leave the teacher out here (pruning and "
            "quantization work), or distil with `SFTTrainer`. If the teacher should judge what the student writes, "
            "use TRL's `GKDTrainer`, with pruning and quantization only."
        )


def check_budget(trainer: Trainer, recipe: Recipe) -> None:
    """Check that a file as small as the budget of `recipe` is worth making of the trainer's model.

    Raises:
        ValueError: it is not. The message says how small a file can be.
    """
    if not recipe.budget.enabled or recipe.quantization.quant_step is not None:
        return
    model, pruning = transformer(trainer.model), recipe.pruning
    sparsity = {}
    if pruning.enabled:
        # How much goes for a speed-up is not known yet.
        share = pruning.prune_sparsity or MOST_GONE
        sparsity = {target.name: share for target in pruned_layers(model, pruning)}
    least = least_bytes(model, recipe.quantization.quant_exclude, sparsity)
    if recipe.budget.bytes < least:
        raise ValueError(
            f"`--compress_budget_mb {recipe.budget.compress_budget_mb:g}` is too small: it leaves less than "
            f"{LEAST_BITS} bits per weight. Set at least {math.ceil(least / 1e4) / 100:g}, remove layers "
            "(`--distill_student_layers`) or unused tokens (`--compress_vocabulary`), or start from a smaller model."
        )


def warn_of_untrained_teacher(trainer: Trainer, recipe: Recipe, origin: Origin) -> None:
    """Warn if the model is its own teacher although its head was not trained, as far as its checkpoint tells."""
    if recipe.distillation.distill_teacher == SELF and origin.name and not origin.trained:
        logger.warning(
            f"`--distill_teacher {SELF}` uses the model as it is before training, and {origin.name} was not saved as "
            f"a {type(bare(trainer.model)).__name__}: unless the script has trained its head, this teacher is noise. "
            "Start from a fine-tuned model, or name one as the teacher."
        )


def check_gate(trainer: Trainer, origin: Origin, max_drop: float | None, *, has_dense: bool = False) -> None:
    """Check that there will be a dense model to compare with, if the run has a limit (`--compress_max_drop`).

    Args:
        trainer: before training.
        origin: the model that training starts from.
        max_drop: the limit in points; None for no limit.
        has_dense: whether the scores of a dense model will be given to `finish`.

    Raises:
        ValueError: the limit is out of range, the model that training starts from has no head for the task, or its
            vocabulary is cut, so that it reads other rows.
    """
    check_max_drop(max_drop)
    if max_drop is None or has_dense:
        return
    kind = type(bare(trainer.model)).__name__
    cut = VocabularyFacts.of(bare(trainer.model).config) is not None
    if cut or not origin.trained:
        why = (
            "its vocabulary is cut, so it cannot be scored on these rows"
            if cut
            else f"it was not saved as a {kind}, so its head is not trained"
        )
        raise ValueError(
            f"`--compress_max_drop {max_drop:g}` needs a dense model to compare with. Training starts from "
            f"{origin.name}, but {why}. Start from a model that is fine-tuned for the task (examples/run_glue.py "
            "makes one with `--dense_baseline train`), give the scores of one to `compress` and `finish` (`dense=`), "
            "or drop the flag."
        )


def _check_numbers(arguments: TrainingArguments) -> None:
    """Refuse text in place of a number: files can hold it, and Trainer notices it only in its first step."""
    for field in fields(arguments):
        value = getattr(arguments, field.name, None)
        if field.type in NUMBERS and isinstance(value, str):
            raise ValueError(f"`--{field.name}` must be a number; got {value[:60]!r}.")
