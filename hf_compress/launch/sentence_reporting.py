"""The report on a run that trained a model of sentence-transformers: its own evaluators score all models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer

from hf_compress.distill.teacher import SELF
from hf_compress.launch.comparisons import Comparisons
from hf_compress.launch.reporting import Reporting
from hf_compress.models.heads import bare, find_outputs
from hf_compress.models.sentences import sentence_kind
from hf_compress.models.targets import transformer
from hf_compress.recipe import Recipe
from hf_compress.report import dataset as dataset_facts
from hf_compress.report import provenance
from hf_compress.report.background import find_baseline, label_names, license_and_languages
from hf_compress.report.control import ControlRun
from hf_compress.report.course import emissions_kg, training_curves
from hf_compress.report.divergence import PARITY, baseline, check_finite
from hf_compress.report.evaluation import Origin
from hf_compress.report.facts import Baseline
from hf_compress.report.measuring import train_seconds
from hf_compress.report.predictions import COMPRESSED, DENSE, TEACHER
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.scores import clean_scores
from hf_compress.report.scores import main_metric as find_main_metric
from hf_compress.report.sentence_measuring import (
    Scored,
    SentenceMeter,
    apart,
    dense_model,
    loaded,
    reported,
    scored,
    scores_of_evaluators,
)
from hf_compress.report.sentence_rows import (
    compared_texts,
    evaluated_pairs,
    evaluator_rows,
    first_evaluator,
    inputs_of,
    primary_metric,
)
from hf_compress.report.sentence_trial import FoundPairs, find_pairs


class SentenceReporting:
    """The counterpart of `Reporting` for the trainers of sentence-transformers.

    Args:
        trainer: after training.
        recipe: what the model was compressed by.
        evaluation: arguments for `trainer.evaluate`.
        control: the control, if there is one.
    """

    def __init__(
        self, trainer: Trainer, recipe: Recipe, evaluation: Mapping[str, Any] | None, control: ControlRun | None
    ) -> None:
        self.trainer, self.recipe, self._control = trainer, recipe, control
        self._arguments = dict(evaluation or {})
        self._evaluates = cast(Any, trainer).evaluator is not None
        rows = self._arguments.get("eval_dataset", trainer.eval_dataset)
        self.obstacle = (
            None
            if self._evaluates or rows is not None
            else "A report needs an `evaluator` or an `eval_dataset`: give the trainer one."
        )

    @contextmanager
    def on_rows(self) -> Iterator[None]:
        """Do nothing: evaluators have their own rows."""
        yield

    def batches(self) -> list[dict[str, Any]]:
        """Return inputs of the Transformers model, to compare formats on."""
        return list(inputs_of(bare(self.trainer.model), compared_texts(self.trainer)))

    def report(
        self,
        folder: Path,
        *,
        dense: Mapping[str, float] | None,
        base_model: str | None,
        task: str | None,
        dataset: DatasetFacts | None,
        base_model_hub_id: str | None = None,
        main_metric: str | None = None,
        command: str | None = None,
        author: Mapping[str, Any] | None = None,
    ) -> Report:
        """Measure the compressed model in `folder`, as `finish` says, and return the report. Collective."""
        trainer, origin = self.trainer, getattr(self.trainer, "origin", None) or Origin.of(self.trainer.model)
        model = loaded(bare(trainer.model), folder)
        compressed = scored(trainer, model, self._arguments, COMPRESSED)
        named = trainer.args.metric_for_best_model or primary_metric(trainer, compressed.scores)
        main = main_metric or find_main_metric(compressed.scores, named)
        texts = compared_texts(trainer)
        parity = apart(bare(trainer.model), model, texts)
        check_finite(trainer, model, {main: compressed.scores.get(main), PARITY: parity})
        teacher = self._teacher()
        given = None if dense is None else Scored(dict(clean_scores(dense)), None)
        base = given or (teacher if self._is_own_teacher(origin) else self._dense(origin))
        found = self._found()
        facts = dataset or self._rows(compressed, found)
        name = base_model or origin.name
        hub_id = base_model_hub_id or provenance.hub_id(name)
        license, languages = license_and_languages(origin.folder if origin.name == name else None, hub_id, facts)
        inner = bare(transformer(model))
        head = find_outputs(inner)
        return reported(
            trainer,
            folder,
            self.recipe,
            dense=base,
            compressed=compressed,
            model=model,
            main=main,
            uncut=getattr(trainer, "uncut", None),
            control=None if self._control is None else self._control.main,
            rows=None if found is None else found.rows,
            teacher=None if teacher is None else baseline(teacher.scores, main, "teacher"),
            base_model=name,
            base_model_hub_id=hub_id,
            base_model_revision=origin.revision if hub_id else None,
            task=task or self._task(),
            dataset=facts,
            parity=parity,
            parity_rows=len(texts),
            train_seconds=train_seconds(trainer),
            command=command,
            labels=label_names(inner.config, head.classifies and head.descriptor.has_classes, trainer.train_dataset)
            if (head.num_labels or 1) > 1
            else None,
            license=license,
            languages=languages,
            emissions_kg=emissions_kg(trainer),
            baseline=find_baseline(origin) if given is None and base else Baseline(start=False) if given else None,
            starts_trained=origin.trained and origin.name == name,
            curves=training_curves(trainer.state.log_history, main),
            author=dict(author or {}),
        )

    def meter(self, folder: Path, main_metric: str) -> SentenceMeter:
        """Return what measures other formats of the compressed model in `folder` on the same rows."""
        trainer = self.trainer
        return SentenceMeter(
            trainer,
            loaded(bare(trainer.model), folder),
            lambda: scores_of_evaluators(trainer, self._arguments, COMPRESSED),
            main_metric,
            compared_texts(trainer),
        )

    def _teacher(self) -> Scored | None:
        """Return what is measured on the teacher; None without one, or if its classes have another order."""
        teacher = getattr(self.trainer, "teacher", None)
        if teacher is None or getattr(self.trainer, "_teacher_classes", None) is not None:
            return None
        return scored(self.trainer, cast(nn.Module, teacher), self._arguments, TEACHER)

    def _is_own_teacher(self, origin: Origin) -> bool:
        return self.recipe.distillation.distill_teacher == SELF and origin.trained

    def _dense(self, origin: Origin) -> Scored | None:
        model = dense_model(bare(self.trainer.model), origin)
        return None if model is None else scored(self.trainer, model, self._arguments, DENSE)

    def _found(self) -> FoundPairs | None:
        """Return which rows of the dataset the evaluator has; None if they are not found."""
        pairs = evaluated_pairs(self.trainer) if self._evaluates else None
        return None if pairs is None else find_pairs(self._training_set(), *pairs)

    def _rows(self, compressed: Scored, found: FoundPairs | None) -> DatasetFacts:
        """Return what is known about the rows: those of the evaluator, or else of the evaluation set."""
        trainer, train = self.trainer, cast(Any, self.trainer.train_dataset)
        facts = dataset_facts.described(trainer, trainer.eval_dataset, self._training_set())
        if isinstance(train, Mapping):
            facts = replace(facts, train_rows=sum(map(len, train.values())))
        if found is not None:
            split = replace(facts, eval_split=found.split, eval_rows=len(found.rows), eval_split_rows=found.split_rows)
            part = dataset_facts.part(split, found.rows)
            return replace(split, eval_part=part, preprocessing=found.preprocessing)
        if not self._evaluates:
            return replace(facts, without_preprocessing="The rows were scored by the loss, without an evaluator.")
        rows = evaluator_rows(trainer) if compressed.outputs is None else compressed.outputs.rows
        name = getattr(first_evaluator(trainer), "name", "") or "evaluator"
        why = f"The rows of the evaluator `{name}` are no pairs of {facts.name} with its labels."
        return replace(facts, eval_split=name, eval_rows=rows, eval_split_rows=None, without_preprocessing=why)

    def _training_set(self) -> Any:
        """Return the training set, or the first of several."""
        train = cast(Any, self.trainer.train_dataset)
        return next(iter(train.values())) if isinstance(train, Mapping) else train

    def _task(self) -> str:
        return dataset_facts.task_of(self._training_set())


def reporting_of(
    trainer: Trainer, recipe: Recipe, evaluation: Mapping[str, Any] | None, comparisons: Comparisons
) -> Reporting | SentenceReporting:
    """Return what measures the models of a run, by the kind of model that `trainer` trains."""
    if sentence_kind(bare(trainer.model)) is None:
        return Reporting(trainer, recipe, evaluation, comparisons)
    return SentenceReporting(trainer, recipe, evaluation, comparisons.control)
