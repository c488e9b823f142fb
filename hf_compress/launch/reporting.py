"""The report on a run: whether there can be one, the rows of its scores, and what the model is compared with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill.teacher import SELF
from hf_compress.models.heads import bare, find_head
from hf_compress.recipe import Recipe
from hf_compress.report import dataset as dataset_facts
from hf_compress.report import provenance
from hf_compress.report.background import find_baseline
from hf_compress.report.evaluation import Origin, dense_scores, evaluate, teacher_scores
from hf_compress.report.facts import Baseline
from hf_compress.report.format_facts import FormatMeter, reloaded
from hf_compress.report.measuring import measure
from hf_compress.report.predictions import DENSE, TEACHER, Recorder
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.scores import clean_scores


class Reporting:
    """The evaluation of a trained model for its report.

    Args:
        trainer: after training.
        recipe: what the model was compressed by.
        evaluation: arguments for `trainer.evaluate`; a name of one of several evaluation sets is replaced by the set.
    """

    def __init__(self, trainer: Trainer, recipe: Recipe, evaluation: Mapping[str, Any] | None) -> None:
        self.trainer, self.recipe = trainer, recipe
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
        return measure(
            trainer,
            folder,
            self.recipe,
            base_model=base_model or (origin or Origin.of(trainer.model)).name,
            base_model_revision=origin.revision if origin and provenance.hub_id(origin.name) else None,
            task=task or dataset_facts.task(trainer),
            dataset=dataset_facts.find(trainer, self.rows, declared=dataset, recorder=self._recorder),
            dense=self._dense(teacher) if dense is None else dense,
            teacher=teacher,
            evaluate=self._evaluate,
            origin=origin,
            recorder=self._recorder,
            **facts,
        )

    def meter(self, folder: Path, main_metric: str) -> FormatMeter:
        """Return what measures other formats of the compressed model in `folder` on the same rows."""
        model = reloaded(bare(self.trainer.model), folder, self.trainer.args.device)
        return FormatMeter(self.trainer, model, lambda: clean_scores(self._evaluate()), main_metric)

    def _evaluate(self) -> dict[str, float]:
        return evaluate(self.trainer, self._arguments, "compressed")

    def _dense(self, teacher: dict[str, float] | None) -> dict[str, float] | None:
        """Return the scores of the model that training started from, or None if it cannot be scored on these rows."""
        origin = getattr(self.trainer, "origin", None)
        cut = VocabularyFacts.of(bare(self.trainer.model).config) is not None
        if origin is None or not origin.trained or cut:
            return None
        if self.recipe.distillation.distill_teacher == SELF and self.trainer._adapted is None:
            self._recorder.same(DENSE, TEACHER)
            return teacher
        return dense_scores(self.trainer, origin, self._arguments, self._recorder)


def _obstacle(model: nn.Module, rows: Any) -> str | None:
    """Return why there can be no report on the model, or None if there can."""
    if rows is None:
        return "A report needs an evaluation set: let the script evaluate (`--do_eval`)."
    try:
        find_head(model)
    except ValueError as error:
        return str(error)
    return None
