"""Measurements: one frozen `Report` per compressed checkpoint, saved as `report.json` beside it."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from hf_compress.checkpoint.aside import written_aside
from hf_compress.cut.depth import Depth
from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.export.formats import FORMATS
from hf_compress.models.shares import Shares
from hf_compress.recipe import Recipe
from hf_compress.report import records
from hf_compress.report.facts import Baseline, Control, Example, ExtraSet, FileFacts, Speed, Steps
from hf_compress.report.intervals import Interval
from hf_compress.report.latency import Latency
from hf_compress.report.preprocessing import Preprocessing
from hf_compress.report.sizes import Size
from hf_compress.report.structure import Structure

REPORT_NAME = "report.json"
SCHEMA = "hf_compress.report/1"
LARGEST = 16_000_000  # Bytes of a report.


@dataclass(frozen=True)
class DatasetFacts:
    """The rows that the model was trained and evaluated on.

    Args:
        name: the dataset, or the script that made the rows.
        config: its configuration, if it has one.
        train_split: the split that the model was trained on.
        train_rows: rows used for training, after any truncation of the split.
        eval_split: the split that it was evaluated on.
        eval_rows: rows used for evaluation, after any truncation of the split.
        eval_split_rows: rows of the whole split, if known. The card names a part of a split as such.
        eval_part: the part of the split, if known, as `datasets` writes it ("validation[:500]").
        hub_id: the id of the Hub dataset that the rows come from, also if a local copy was read; None for anything
            else. The card names a Hub dataset only if this is set.
        revision: the commit of the Hub dataset that the rows come from; None if it is not known.
        preprocessing: how an evaluation row becomes inputs of the model; None if it could not be found.
        without_preprocessing: why it could not be found, in one sentence.

    Example:
        >>> from hf_compress import DatasetFacts
        >>> DatasetFacts("glue", "sst2", "train", 12000, "validation", 872, hub_id="nyu-mll/glue").eval_rows
        872
    """

    name: str
    config: str | None
    train_split: str
    train_rows: int
    eval_split: str
    eval_rows: int
    hub_id: str | None = None
    eval_split_rows: int | None = None
    eval_part: str | None = None
    revision: str | None = None
    preprocessing: Preprocessing | None = None
    without_preprocessing: str | None = None


@dataclass(frozen=True)
class FormatFacts:
    """Another format that the model was written in.

    Args:
        stored_bytes: bytes on disk.
        parity: the largest absolute difference of a logit between the trained model and this format, reloaded and run
            by its own runtime.
        scores: measured in that runtime; empty if they were not measured there.
        native_deviation: how far the logits deviate with the fastest kernels of the CPU, as a share of their spread,
            where those kernels may saturate (x86 CPUs without VNNI). None where they are exact.

    Example:
        >>> from hf_compress.report.report import FormatFacts
        >>> FormatFacts(stored_bytes=23_000_000, parity=0.01, scores={"accuracy": 0.91}).native_deviation is None
        True
    """

    stored_bytes: int
    parity: float
    scores: dict[str, float]
    native_deviation: float | None = None


@dataclass(frozen=True)
class Report:
    """All that is known about one compressed checkpoint; every number was measured.

    Args:
        recipe: what the model was compressed by.
        base_model: the name or path of the model that training started from, as given.
        base_model_hub_id: its id, if it is a model of the Hub.
        base_model_revision: its commit on the Hub.
        model_class: the class of the reloaded model.
        auto_class: the class of Transformers that loads it.
        head: what the model predicts (`Head.name`).
        pipeline_tag: the task by the names of the Hub.
        task: a short name of the task.
        dataset: the rows.
        main_metric: the score that stands for the task.
        dense: scores of the uncompressed model, by metric; None if none was evaluated for the task.
        teacher: scores of the teacher, on the same rows.
        compressed: scores of the model as reloaded from disk, on the same rows.
        size: all sizes.
        sparsity: the share of zeros of each prunable tensor of the reloaded model, rounded or removed ones included.
        achieved_sparsity: the share of zeros over all prunable tensors.
        promised_sparsity: the promised share if groups are pruned, rounded down in each layer; None: the recipe's.
        speed: the speed-up that neurons and heads were chosen for, and the one that was measured; None without
            `--compress_speedup`.
        parity: the largest absolute difference of a logit between the trained and the reloaded model.
        parity_rows: evaluation rows that `parity` was measured on, per process.
        train_seconds: time of the training; of the compression if nothing was trained.
        train_steps: optimizer steps of the training; 0 if the model was compressed without training.
        hyperparameters: settings of the Trainer.
        seed: of the training.
        command: the command line.
        hardware: the processor or the GPUs.
        versions: of Python and the libraries.
        created: when the report was made, in UTC (ISO 8601).
        formats: formats written beside the packed file.
        failed_formats: why a format that was asked for is missing, in one sentence, by its name.
        latency: what `hf-compress bench --save` measured; None before that.
        vocabulary: how many tokens were kept; None if all were.
        depth: which layers were dropped in training; None if none were.
        structure: what was removed from each layer, by kind; empty if nothing was.
        bits: number of bits of the layers whose weights differ from the scheme.
        teacher_rows: rows that only the teacher labelled, by where they come from: "augmented" for those made of
            training rows, or the file or dataset of `--distill_extra`.
        steps: how the weights are stored that have fixed steps; None if none have.
        card_template: the version of the card's template that `save_card` used last; None before that.
        card_picture: the file name of the picture that `save_card` drew last; None if there is none.
        predictions: the file name of the predictions for each row, beside the report; None if there are none.
        queries: that of the scores for each query of a search.
        intervals: the interval of each score of the compressed model, by metric.
        comparison: the paired difference of each score, compressed - dense, with its interval, by metric.
        without_interval: why a metric has no interval, in one sentence, by metric.
        control: the control, with the paired difference to it; None if none was given.
        without_control: why the control was not compared, in one sentence.
        extra: the same scores on a second evaluation set; None if there is none.
        greater_is_better: False if the run says `--greater_is_better false`; None if the metric's name decides.
        max_drop: how far the main metric may fall below the dense model (`--compress_max_drop`), in points, or None.
        verdict: "ACCEPT" or "REGRESSION"; None without a limit.
        reasons: what the verdict rests on, in sentences.
        touched: how much of the file each method touched that was used, in weights and bytes: "pruned" counts the
            layers in which weights may be zero, "quantized" those whose weights are integers.
        sentence_class: the class of sentence-transformers that loads the folder; None if none does.
        files: every file of the folder by its path, as `save_card` found it last. The report itself, the card and
            hidden files are left out; the card follows from the report.
        card_curve: the same for the picture of the training curve.
        hub_id: the repository on the Hub that the card is for; None before the model is pushed.
        labels: the names of the classes; None if the model has none.
        example: an input and the model's measured output.
        license: of the base model, as the Hub writes it ("apache-2.0"); None if unknown.
        languages: of the base model and the data, as the Hub writes them ("en").
        emissions_kg: kg of CO2 equivalents of the training, measured by codecarbon.
        baseline: what the dense model is; None if there is none, or if it is unknown.
        starts_trained: whether training started from a model with a trained head for the task; None if unknown.
        curves: the course of training by name: points of optimizer step and value.
        author: what `--compress_card_metadata` says: metadata, `title`, `text` and `example`.

    Raises:
        ValueError: `main_metric` is not among the scores, a number is not finite, or a format is unknown.

    Example:
        >>> from hf_compress import Report
        >>> report = Report.load("run/compressed")  # doctest: +SKIP
        >>> report.compressed[report.main_metric], report.size.packed_bytes  # doctest: +SKIP
        (0.856, 16214512)
    """

    recipe: Recipe
    base_model: str
    base_model_hub_id: str | None
    base_model_revision: str | None
    model_class: str
    auto_class: str
    head: str
    pipeline_tag: str
    task: str
    dataset: DatasetFacts
    main_metric: str
    dense: dict[str, float] | None
    teacher: dict[str, float] | None
    compressed: dict[str, float]
    size: Size
    sparsity: dict[str, float]
    achieved_sparsity: float
    parity: float
    parity_rows: int
    train_seconds: float
    train_steps: int
    hyperparameters: dict[str, Any]
    seed: int
    command: str
    hardware: str
    versions: dict[str, str]
    created: str
    formats: dict[str, FormatFacts] = field(default_factory=dict)
    latency: Latency | None = None
    vocabulary: VocabularyFacts | None = None
    depth: Depth | None = None
    structure: list[Structure] = field(default_factory=list)
    bits: dict[str, int] = field(default_factory=dict)
    teacher_rows: dict[str, int] = field(default_factory=dict)
    steps: Steps | None = None
    promised_sparsity: float | None = None
    speed: Speed | None = None
    card_template: str | None = None
    card_picture: str | None = None
    predictions: str | None = None
    queries: str | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    comparison: dict[str, Interval] = field(default_factory=dict)
    without_interval: dict[str, str] = field(default_factory=dict)
    control: Control | None = None
    without_control: str | None = None
    extra: ExtraSet | None = None
    greater_is_better: bool | None = None
    max_drop: float | None = None
    verdict: str | None = None
    reasons: list[str] = field(default_factory=list)
    card_curve: str | None = None
    hub_id: str | None = None
    labels: dict[int, str] | None = None
    example: Example | None = None
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    emissions_kg: float | None = None
    baseline: Baseline | None = None
    starts_trained: bool | None = None
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    author: dict[str, Any] = field(default_factory=dict)
    failed_formats: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    sentence_class: str | None = None
    touched: dict[str, Shares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, scores in (("dense", self.dense), ("teacher", self.teacher), ("compressed", self.compressed)):
            if scores is not None and self.main_metric not in scores:
                raise ValueError(
                    f"`main_metric` must be one of the `{name}` scores ({', '.join(scores) or 'there are none'}); got "
                    f"{self.main_metric!r}. Name a metric that `compute_metrics` returns."
                )
        records.encode(self, "report")  # Refuses numbers that are not finite.
        if unknown := sorted(({*self.formats} | {*self.failed_formats}) - {*FORMATS}):
            raise ValueError(
                f"`formats` must be among {', '.join(FORMATS)}; got {', '.join(unknown)}. Import the code that adds "
                "the format before the report is loaded."
            )

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained. `quantize_once` compresses without training."""
        return self.train_steps > 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, its schema first. Fields at their default are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        unsaid = [field.name for field in fields(self) if values[field.name] == _default(field)]
        kept = {name: value for name, value in values.items() if name not in unsaid}
        encoded: dict[str, Any] = records.encode(kept, "report")
        return {"schema": SCHEMA, **encoded}

    def to_json(self) -> str:
        """The text of `report.json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The report that `to_dict` described.

        Raises:
            ValueError: another schema, an unknown or missing field, or a value of the wrong type, by its name.
        """
        schema = values.get("schema")
        if schema != SCHEMA:
            raise ValueError(
                f"`schema` must be {SCHEMA!r}; got {schema!r}. Read this report with the version of hf_compress that "
                "wrote it."
            )
        report: Self = records.decode(cls, {k: v for k, v in values.items() if k != "schema"}, "report")
        return report

    def save(self, folder: str | Path) -> Path:
        """The path of the `report.json` written into `folder`."""
        with written_aside(Path(folder), REPORT_NAME, replace=True) as aside:
            aside.write_text(self.to_json(), "utf-8")
        return Path(folder) / REPORT_NAME

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The report of `folder`, equal to the one that was saved.

        Raises:
            ValueError: there is no `report.json`, or another version of hf_compress wrote it.
        """
        path = Path(folder) / REPORT_NAME
        if not path.is_file():
            raise ValueError(f"{folder} holds no {REPORT_NAME}. Give a folder that `measure` has reported on.")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a report has at most {LARGEST:,}.")
        try:
            values = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}. Write it again with `Report.save`.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object; got {type(values).__name__}.")
        return cls.from_dict(values)


def _default(field: Field[Any]) -> Any:
    """The default of a field, which a file does not repeat; MISSING if the field has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()
