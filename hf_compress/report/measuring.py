"""Measuring a compressed folder: it is reloaded as its user will load it, evaluated, counted, and described."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer

from hf_compress.distill import DistillationMixin
from hf_compress.export.formats import FORMATS, written
from hf_compress.models import targets
from hf_compress.models.heads import bare, find_head
from hf_compress.recipe import Recipe
from hf_compress.report import format_facts, provenance
from hf_compress.report.background import label_names, license_and_languages
from hf_compress.report.comparing import ControlRows, with_predictions
from hf_compress.report.course import emissions_kg, training_curves
from hf_compress.report.describing import described, shapes_of
from hf_compress.report.divergence import PARITY, baseline, check_finite, finite_scores
from hf_compress.report.evaluation import Origin, evaluating, logit_difference, of_first_process
from hf_compress.report.examples import find_example
from hf_compress.report.facts import Baseline
from hf_compress.report.format_facts import FormatMeter
from hf_compress.report.predictions import COMPRESSED, Recorder
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.scores import clean_scores
from hf_compress.report.scores import main_metric as find_main_metric

Scores = Callable[[], dict[str, float]]


def measure(
    trainer: Trainer,
    folder: str | Path,
    recipe: Recipe,
    *,
    base_model: str,
    task: str,
    dataset: DatasetFacts,
    main_metric: str | None = None,
    dense: Mapping[str, float] | None,
    teacher: Mapping[str, float] | None = None,
    base_model_hub_id: str | None = None,
    base_model_revision: str | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    command: str | None = None,
    origin: Origin | None = None,
    dense_model: Baseline | None = None,
    author: Mapping[str, Any] | None = None,
    recorder: Recorder | None = None,
    control: ControlRows | None = None,
) -> Report:
    """Measure the compressed model in `folder` and return the report.

    The predictions of the rows are written into `folder` as a small Parquet file, if they can be told apart.

    The folder is loaded as its user will load it, and evaluated by the trainer's own `evaluate` on the trainer's
    evaluation set. Collective: every rank must call it.

    Args:
        trainer: the one that trained the model, with its evaluation set and `compute_metrics`.
        folder: what `save_compressed` returned.
        recipe: what the model was compressed by.
        base_model: the name or path of the model that training started from, as the user gave it.
        task: a short name of the task, for example "sst2".
        dataset: the rows that the trainer used.
        main_metric: the score that heads the card, without the prefix `eval_`. The default is `metric_for_best_model`,
            or else the first score that is not a loss.
        dense: scores of the dense model on the same rows, as `Trainer.evaluate` returns them; None if there are none.
        teacher: the same for the teacher, if there was one.
        base_model_hub_id: the Hub id of `base_model`. The default is `base_model` itself if it can only be such an id.
        base_model_revision: its commit. The default is the commit that the model's configuration was loaded from.
        evaluate: scores the trainer's model in place of `trainer.evaluate()`, and returns what that returns.
        command: the command line for the card. The default is that of this process.
        origin: the model that training started from, as it was found before training.
        dense_model: what is known about the model whose scores are `dense`.
        author: what the author adds to the card, as `read_author` returns it.
        recorder: what the dense model predicted for each row, if it was recorded. With it the report has intervals of
            the differences to the dense model, on process 0.
        control: what the control predicted for the same rows, on process 0.

    Raises:
        ValueError: the trainer has no evaluation set, `main_metric` is not a score, the folder cannot be loaded, or
            the model has diverged: its main score, loss or logits are not finite.

    Example:
        >>> from hf_compress import measure
        >>> facts = {"base_model": "bert-base-uncased", "task": "sst2", "dataset": dataset}  # doctest: +SKIP
        >>> report = measure(trainer, "run/compressed", recipe, dense=None, **facts)  # doctest: +SKIP
    """
    if trainer.eval_dataset is None:
        raise ValueError(
            "`eval_dataset` must be given to the Trainer, because a report scores the reloaded model on it; got None."
        )
    folder, source = Path(folder), bare(trainer.model)
    reloaded = format_facts.reloaded(source, folder, trainer.args.device)
    head = find_head(reloaded)
    scores = _scores(trainer, evaluate)
    recorder = recorder or Recorder()
    with evaluating(trainer, reloaded), recorder.recording(trainer, COMPRESSED):
        compressed = scores()
    parity, parity_rows = logit_difference(trainer, reloaded, head)
    main = main_metric or find_main_metric(compressed, trainer.args.metric_for_best_model)
    check_finite(trainer, reloaded, {"loss": compressed.get("loss"), main: compressed.get(main), PARITY: parity})
    meter, formats = FormatMeter(trainer, reloaded, scores, main), [FORMATS[name] for name in written(folder)]
    hub_id = base_model_hub_id or provenance.hub_id(base_model)
    folder_of_base = origin.folder if origin is not None and origin.name == base_model else None
    license, languages = license_and_languages(folder_of_base, hub_id, dataset)
    report = described(
        folder,
        reloaded,
        recipe,
        head=head,
        dense_shapes=shapes_of(
            source, reloaded, recipe, uncut=trainer.uncut if isinstance(trainer, DistillationMixin) else None
        ),
        feedback=not isinstance(targets.transformer(trainer.model), PeftModel),
        base_model=base_model,
        base_model_hub_id=hub_id,
        base_model_revision=base_model_revision or getattr(source.config, "_commit_hash", None) if hub_id else None,
        task=task,
        dataset=dataset,
        main_metric=main,
        dense=baseline(dense, main, "dense model"),
        teacher=baseline(teacher, main, "teacher"),
        compressed=finite_scores(compressed, "compressed model"),
        parity=parity,
        parity_rows=parity_rows,
        train_seconds=train_seconds(trainer),
        train_steps=trainer.state.global_step,
        hyperparameters=provenance.hyperparameters(trainer.args),
        seed=trainer.args.seed,
        command=command,
        formats={kind.name: meter.facts(meter.read(folder, kind), folder, kind) for kind in formats},
        labels=label_names(reloaded.config, head.classifies and head.descriptor.has_classes, trainer.eval_dataset),
        example=find_example(trainer, reloaded, head, dataset, author or {}),
        license=license,
        languages=languages,
        emissions_kg=emissions_kg(trainer),
        baseline=None if dense is None else dense_model,
        starts_trained=None if origin is None else origin.trained and origin.name == base_model,
        teacher_rows=dict(getattr(trainer, "further_rows", {})),
        curves=training_curves(trainer.state.log_history, main),
        author=dict(author or {}),
        greater_is_better=_greater_is_better(trainer, main),
    )
    if not trainer.is_world_process_zero():
        return report
    return with_predictions(trainer, report, recorder, trainer.eval_dataset, folder, control=control)


def _greater_is_better(trainer: Trainer, main: str) -> bool | None:
    """False if the arguments say that a lower main metric is better. True may be a guess of Transformers."""
    named = (trainer.args.metric_for_best_model or "").removeprefix("eval_") == main
    return False if named and trainer.args.greater_is_better is False else None


def _scores(trainer: Trainer, evaluate: Callable[[], Mapping[str, Any]] | None) -> Scores:
    if evaluate is None:
        run = partial(trainer.evaluate, metric_key_prefix="compressed")
        return lambda: clean_scores(of_first_process(run), "compressed")
    return lambda: clean_scores(evaluate())


def train_seconds(trainer: Trainer) -> float:
    """The time that the last training took."""
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    return float(seconds[-1]) if seconds else 0.0
