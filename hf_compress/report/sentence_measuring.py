"""Measuring a compressed folder of sentence-transformers: its own evaluators score it as its user loads it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from hf_compress.export.descriptor import Format
from hf_compress.models.heads import bare, find_outputs
from hf_compress.models.sentences import around
from hf_compress.models.targets import transformer
from hf_compress.report import provenance
from hf_compress.report.comparing import OTHER_CONTROL, ControlRows, are_paired, with_intervals
from hf_compress.report.describing import described, shapes_of
from hf_compress.report.divergence import PARITY, baseline, finite_scores
from hf_compress.report.evaluation import Origin, evaluate, evaluating
from hf_compress.report.format_facts import failing_late
from hf_compress.report.outputs import Outputs
from hf_compress.report.predictions import COMPRESSED, CONTROL, DENSE, save_predictions
from hf_compress.report.queries import Queries, keep_queries, noting_queries
from hf_compress.report.report import FormatFacts, Report
from hf_compress.report.scores import clean_scores
from hf_compress.report.sentence_rows import answers, outputs_of

# What a user may set on a model, and its files do not say in the same way.
SETTINGS = ("max_seq_length", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "activation_fn")
REPEATED = "sequential_score"  # The main score of the last of several evaluators.
UNREAD = "The evaluator's rows cannot be told apart."

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Scored:
    """A model's scores, its answers to the rows of the evaluator if they can be told apart, and scores of queries."""

    scores: dict[str, float]
    outputs: Outputs | None
    queries: Queries = field(default_factory=dict)


def scored(trainer: Trainer, model: nn.Module, arguments: Mapping[str, Any], name: str) -> Scored:
    """Return what `trainer` measures on `model` in place of its own. Collective.

    Args:
        model: of sentence-transformers.
        arguments: for `trainer.evaluate`.
        name: of the model, for the names of scores.
    """
    with evaluating(trainer, model), noting_queries(cast(Any, trainer).evaluator) as queries:
        scores = scores_of_evaluators(trainer, arguments, name)
    return Scored(scores, outputs_of(trainer, model) if trainer.is_world_process_zero() else None, queries)


def scores_of_evaluators(trainer: Trainer, arguments: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return what `trainer` measures on its model, without the score that several evaluators repeat. Collective."""
    scores = clean_scores(evaluate(trainer, arguments, name))
    return {score: value for score, value in scores.items() if not score.endswith(REPEATED)}


def loaded(model: nn.Module, folder: str | Path) -> nn.Module:
    """Return the model in `folder` as its user loads it, with the attention of the trained `model`.

    Both sides need the same attention kernel, or parity would measure that choice and not what was stored.
    """
    attention = bare(transformer(model)).config._attn_implementation
    options = {"attn_implementation": attention}
    made: nn.Module = cast(Any, type(model))(
        str(folder), device=str(cast(Any, model).device), model_kwargs=options, local_files_only=True
    )
    return made.eval()


def dense_model(model: nn.Module, origin: Origin) -> nn.Module | None:
    """Return the model that training started from, loaded again; None, with a warning, if it cannot be."""
    if not origin.trained or origin.is_changed():
        if origin.trained:
            logger.warning(f"The report has no dense baseline: the files in {origin.folder} have changed.")
        return None
    made = cast(Any, type(model))
    try:
        dense: nn.Module = made(
            str(origin.folder or origin.name),
            revision=origin.revision,
            device=str(cast(Any, model).device),
            model_kwargs={"dtype": bare(transformer(model)).dtype},
        )
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning(f"The report has no dense baseline: {origin.name} could not be loaded again. {error}")
        return None
    if [type(part) for part in dense.children()] != [type(part) for part in model.children()]:
        logger.warning(f"The report has no dense baseline: {origin.name} has other modules than what was trained.")
        return None
    for name in SETTINGS:
        if hasattr(model, name) and getattr(model, name) is not None:
            setattr(dense, name, getattr(model, name))
    return dense.eval()


@torch.no_grad()
def apart(model: nn.Module, other: nn.Module, texts: list[Any]) -> float:
    """Return the largest absolute difference between two models' embeddings, or scores, of some texts."""
    ours, theirs = (answers(one, texts).double() for one in (model, other))
    return float((ours - theirs).abs().max())


def reported(
    trainer: Trainer,
    folder: Path,
    recipe: Any,
    *,
    dense: Scored | None,
    compressed: Scored,
    model: nn.Module,
    main: str,
    uncut: Any,
    control: ControlRows | None,
    rows: Sequence[int] | None,
    **facts: Any,
) -> Report:
    """Return the report of the model in `folder`, and write the answers to the rows there.

    Args:
        trainer: after training.
        recipe: what the model was compressed by.
        dense: what was measured on the model that training started from; None if there is none.
        compressed: what was measured on the one in `folder`.
        model: that one, as loaded.
        main: the score that stands for the task.
        uncut: the configuration of the model before it was cut; None if it was not.
        control: what the control answered; None if there is none.
        rows: the index of each row in its split; None if it is not known.
        facts: further arguments of `described`.
    """
    inner = cast(PreTrainedModel, transformer(model))
    source = bare(transformer(trainer.model))
    report = described(
        folder,
        inner,
        recipe,
        head=find_outputs(inner),
        feedback=not isinstance(transformer(trainer.model), PeftModel),
        main_metric=main,
        dense=None if dense is None else baseline(dense.scores, main, "dense model"),
        compressed=finite_scores(compressed.scores, "compressed model"),
        train_steps=trainer.state.global_step,
        hyperparameters=provenance.hyperparameters(trainer.args),
        seed=trainer.args.seed,
        dense_shapes=shapes_of(source, inner, recipe, uncut=uncut),
        **facts,
    )
    if not trainer.is_world_process_zero():
        return report
    report = _with_rows(report, folder, dense, compressed, control, rows)
    return keep_queries(
        report, folder, {COMPRESSED: compressed.queries, DENSE: {} if dense is None else dense.queries}
    )


def _with_rows(
    report: Report,
    folder: Path,
    dense: Scored | None,
    compressed: Scored,
    control: ControlRows | None,
    rows: Sequence[int] | None,
) -> Report:
    """Return the report with intervals, if the rows can be told apart."""
    if compressed.outputs is None:
        without = dict.fromkeys(report.compressed, UNREAD)
        return replace(report, without_interval=without, without_control=None if control is None else UNREAD)
    numbers = np.arange(compressed.outputs.rows) if rows is None else np.asarray(rows)
    same = control is not None and np.array_equal(control.rows, numbers)
    if control is not None and not (same and are_paired(control.outputs, compressed.outputs)):
        report, control = replace(report, without_control=OTHER_CONTROL), None
    outputs = {
        DENSE: None if dense is None else dense.outputs,
        CONTROL: None if control is None else control.outputs,
        COMPRESSED: compressed.outputs,
    }
    known = {name: found for name, found in outputs.items() if found is not None}
    kept = save_predictions(folder, numbers, known)
    report = replace(report, predictions=kept, control=None if control is None else control.facts)
    names = report.labels or {}
    return with_intervals(report, compressed.outputs, outputs[DENSE], names, control=outputs[CONTROL])


@dataclass(frozen=True)
class SentenceMeter:
    """Measures formats with the evaluators of a trainer, as `launch.format_steps.Meter` says.

    Args:
        trainer: the one that trained the model.
        model: the packed model of sentence-transformers, as loaded.
        scores: scores the trainer's model.
        main_metric: the score that must be finite.
        texts: to compare formats on.
    """

    trainer: Trainer
    model: nn.Module
    scores: Callable[[], dict[str, float]]
    main_metric: str
    texts: list[Any]

    def read(self, root: Path, kind: Format) -> nn.Module:
        """Return the Transformers model of a format, in its runtime."""
        inner = cast(PreTrainedModel, transformer(self.model))
        return kind.read(root / kind.path, inner).to(self.trainer.args.device)

    def facts(self, other: nn.Module, root: Path, kind: Format, native_deviation: float | None = None) -> FormatFacts:
        """Return what is measured on a format. Collective.

        Raises:
            ValueError: scores or embeddings are not finite. Runtimes may raise any of `kind.failures`.
        """
        inner, whole = transformer(self.model), around(self.model, other)
        with failing_late(other, inner, kind.failures):
            with evaluating(self.trainer, whole):
                found = self.scores()
            parity = apart(self.model, whole, self.texts)
        found.pop("loss", None)  # As for all runtimes, whose graphs know no labels.
        numbers = {self.main_metric: found.get(self.main_metric), PARITY: parity}
        wrong = [f"{name} = {value}" for name, value in numbers.items() if value is not None and not isfinite(value)]
        if wrong:
            raise ValueError(f"The format computes numbers that are not finite: {', '.join(wrong)}.")
        return FormatFacts(
            kind.stored_bytes(root), parity, finite_scores(found, f"format {kind.name}"), native_deviation
        )
