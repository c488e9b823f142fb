"""The report on a run: whether there can be one, the rows of its scores, and what the model is compared with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill.teacher import SELF
from hf_compress.launch.comparisons import Comparisons
from hf_compress.models.heads import bare, find_head
from hf_compress.recipe import Recipe
from hf_compress.report import dataset as dataset_facts
from hf_compress.report import provenance
from hf_compress.report.background import find_baseline
from hf_compress.report.comparing import with_predictions
from hf_compress.report.divergence import baseline, finite_scores
from hf_compress.report.evaluation import (
    Origin,
    dense_scores,
    evaluate,
    evaluating,
    evaluation_batches,
    teacher_scores,
)
from hf_compress.report.extra_set import extra_of
from hf_compress.report.facts import Baseline
from hf_compress.report.format_facts import FormatMeter, reloaded
from hf_compress.report.measuring import measure
from hf_compress.report.predictions import COMPRESSED, DENSE, EXTRA_NAME, TEACHER, Recorder
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.scores import clean_scores


class Reporting:
    """The evaluation of a trained model for its report.

    Args:
        trainer: after training.
        recipe: what the model was compressed by.
        evaluation: arguments for `trainer.evaluate`; a name of one of several evaluation sets is replaced by the set.
        comparisons: the second evaluation set and the control.
    """

    def __init__(
        self, trainer: Trainer, recipe: Recipe, evaluation: Mapping[str, Any] | None, comparisons: Comparisons
    ) -> None:
        self.trainer, self.recipe, self._comparisons = trainer, recipe, comparisons
        self._arguments = dict(evaluation or {})
        self.rows = self._arguments.get("eval_dataset", trainer.eval_dataset)
        if isinstance(self.rows, str):
            self.rows = self._arguments["eval_dataset"] = trainer.eval_dataset[self.rows]
        self._recorder = Recorder()
        self.obstacle = _obstacle(trainer.model, self.rows)

    @contextmanager
    def on_rows(self) -> Iterator[None]:
        """Give the trainer these rows as its evaluation set, within the context."""
        kept, self.trainer.eval_dataset = self.trainer.eval_dataset, self.rows
        try:
            yield
        finally:
            self.trainer.eval_dataset = kept

    def batches(self) -> list[dict[str, Any]]:
        """Return inputs of the model, to compare formats on."""
        return evaluation_batches(self.trainer)

    def report(
        self,
        folder: Path,
        *,
        dense: Mapping[str, float] | None,
        base_model: str | None,
        task: str | None,
        dataset: DatasetFacts | None,
        **facts: Any,
    ) -> Report:
        """Measure the compressed model in `folder`, as `finish` says, and return the report. Collective."""
        trainer = self.trainer
        origin = getattr(trainer, "origin", None)
        teacher = teacher_scores(trainer, self._arguments, self._recorder)
        if dense is None and origin is not None:
            facts["dense_model"] = find_baseline(origin)
        else:
            facts["dense_model"] = Baseline(start=False)
        control = self._comparisons.control
        report = measure(
            trainer,
            folder,
            self.recipe,
            base_model=base_model or (origin or Origin.of(trainer.model)).name,
            base_model_revision=origin.revision if origin and provenance.hub_id(origin.name) else None,
            task=task or dataset_facts.task(trainer),
            dataset=dataset_facts.find(trainer, self.rows, declared=dataset, recorder=self._recorder),
            dense=self._dense(teacher, self._arguments, self._recorder) if dense is None else dense,
            teacher=teacher,
            evaluate=self._evaluate,
            origin=origin,
            recorder=self._recorder,
            control=None if control is None else control.main,
            **facts,
        )
        if self._comparisons.extra is None:
            return report
        return self._with_extra(report, folder, given=dense is not None)

    def _with_extra(self, report: Report, folder: Path, *, given: bool) -> Report:
        """Return `report` with the scores on the extra rows. Collective.

        Args:
            report: on the first evaluation set.
            folder: of the compressed model.
            given: whether the scores of the dense model were given, so that it cannot be evaluated.
        """
        trainer, beside, main = self.trainer, self._comparisons, report.main_metric
        arguments, recorder = {**self._arguments, "eval_dataset": beside.extra}, Recorder()
        recorder.rows = None if beside.extra_rows is None else list(beside.extra_rows)
        dense = beside.extra_dense
        if dense is None and not given and report.dense is not None:
            dense = self._dense(None, arguments, recorder)
        model = reloaded(bare(trainer.model), folder, trainer.args.device)
        with evaluating(trainer, model):
            scores = clean_scores(evaluate(trainer, arguments, COMPRESSED, recorder))
        seen = replace(
            report,
            dataset=dataset_facts.find_extra(report.dataset, beside.extra, beside.extra_rows),
            dense=baseline(dense, main, "dense model"),
            teacher=None,
            compressed=finite_scores(scores, "compressed model"),
            control=None,
            without_control=None,
        )
        if trainer.is_world_process_zero():
            control = None if beside.control is None else beside.control.extra
            if control is None and beside.control is not None:
                seen = replace(seen, without_control="The control has no second evaluation set.")
            seen = with_predictions(trainer, seen, recorder, beside.extra, folder, control=control, name=EXTRA_NAME)
        return replace(report, extra=extra_of(seen))

    def meter(self, folder: Path, main_metric: str) -> FormatMeter:
        """Return what measures other formats of the compressed model in `folder` on the same rows."""
        model = reloaded(bare(self.trainer.model), folder, self.trainer.args.device)
        return FormatMeter(self.trainer, model, lambda: clean_scores(self._evaluate()), main_metric)

    def _evaluate(self) -> dict[str, float]:
        return evaluate(self.trainer, self._arguments, "compressed")

    def _dense(
        self, teacher: dict[str, float] | None, arguments: Mapping[str, Any], recorder: Recorder
    ) -> dict[str, float] | None:
        """Return the scores of the model that training started from, or None if it cannot be scored on these rows.

        Args:
            teacher: scores of the teacher on these rows, if it was evaluated already.
            arguments: for `trainer.evaluate`.
            recorder: gets the predictions.
        """
        origin = getattr(self.trainer, "origin", None)
        cut = VocabularyFacts.of(bare(self.trainer.model).config) is not None
        if origin is None or not origin.trained or cut:
            return None
        if self.recipe.distillation.distill_teacher == SELF and self.trainer._adapted is None:
            teacher = teacher or teacher_scores(self.trainer, arguments, recorder)
            recorder.same(DENSE, TEACHER)
            return teacher
        return dense_scores(self.trainer, origin, arguments, recorder)


def _obstacle(model: nn.Module, rows: Any) -> str | None:
    """Return why there can be no report on the model, or None if there can."""
    if rows is None:
        return "A report needs an evaluation set: let the script evaluate (`--do_eval`)."
    try:
        find_head(model)
    except ValueError as error:
        return str(error)
    return None
