"""What was measured: one frozen `Report` per compressed checkpoint, as `report.json` beside it."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, Trainer

from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill import DistillationMixin
from hf_compress.export.formats import FORMATS, written
from hf_compress.export.runtimes import RuntimeModel
from hf_compress.models import targets
from hf_compress.models.heads import bare, find_head
from hf_compress.recipe import Recipe
from hf_compress.report import provenance, records
from hf_compress.report.evaluation import can_evaluate, clean_scores, evaluating, logit_difference
from hf_compress.report.latency import Latency
from hf_compress.report.sizes import Size, measured_size

REPORT_NAME = "report.json"
SCHEMA = "hf_compress.report/1"


@dataclass(frozen=True)
class DatasetFacts:
    """What the model was trained and evaluated on.

    `hub_id` is the id of the Hub dataset that the rows are (also when a local copy was read), None for anything else:
    without it no card claims a Hub dataset. Rows are counted as used, after any truncation of the split.
    """

    name: str
    config: str | None
    train_split: str
    train_rows: int
    eval_split: str
    eval_rows: int
    hub_id: str | None = None


@dataclass(frozen=True)
class FormatFacts:
    """One more format that the model was written in.

    `stored_bytes` are those on disk. `parity` is as in `Report`, between the trained model and that format, reloaded
    and run by the runtime that it is for; the scores are measured there too.
    """

    stored_bytes: int
    parity: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything that is known about one compressed checkpoint, each number measured.

    `dense`, `teacher` and `compressed` map metric names to scores on the same evaluation rows; `compressed` belongs to
    the artefact as reloaded from disk, `dense` is None if no uncompressed model for the task was evaluated. `sparsity`
    is the share of zeros of every prunable tensor in that artefact, `achieved_sparsity` the share over all of them;
    with few bits these count weights that rounding sent to zero, too.
    `parity` is the largest absolute difference of a logit between the trained and the reloaded model, over
    `parity_rows` evaluation rows per process. `base_model` is the name or path as given; `base_model_hub_id` is set
    only if that is a model of the Hub. `head` names what is predicted (`Head.name`). `formats` has the formats that
    were written beside the packed file; `latency` is what `hf-compress bench --save` measured later, if it did;
    `vocabulary` is None if all tokens are there; `bits` has those of the layers whose weights have others than the
    scheme says.
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
    bits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, scores in (("dense", self.dense), ("teacher", self.teacher), ("compressed", self.compressed)):
            if scores is not None and self.main_metric not in scores:
                raise ValueError(
                    f"`main_metric` must be one of the `{name}` scores ({', '.join(scores) or 'there are none'}); got "
                    f"{self.main_metric!r}. Name a metric that `compute_metrics` returns."
                )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, its schema first; non-finite floats are strings, since JSON has none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("latency", "vocabulary", "bits"):
            if not values[name]:
                del values[name]
        encoded: dict[str, Any] = records.encode(values)
        return {"schema": SCHEMA, **encoded}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The report that `to_dict` described.

        Raises:
            ValueError: another schema, an unknown or missing field, or a value of the wrong type, each by its name.
        """
        schema = values.get("schema")
        if schema != SCHEMA:
            raise ValueError(f"`schema` must be {SCHEMA!r}; got {schema!r}. Use the hf_compress that wrote it.")
        report: Self = records.decode(cls, {k: v for k, v in values.items() if k != "schema"}, "report")
        return report

    def save(self, folder: str | Path) -> Path:
        """The path of the `report.json` written into `folder`."""
        path = Path(folder) / REPORT_NAME
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The report of `folder`, equal to the one saved.

        Raises:
            ValueError: there is no `report.json`, or it is not what this version writes.
        """
        path = Path(folder) / REPORT_NAME
        if not path.is_file():
            raise ValueError(f"{folder} holds no {REPORT_NAME}. Give a folder that `measure` has reported on.")
        try:
            values = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}. Write it anew with `Report.save`.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object; got {type(values).__name__}.")
        return cls.from_dict(values)


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
) -> Report:
    """The report on `folder`, which `save_compressed` wrote from `trainer.model`; nothing is written.

    The folder is loaded as its user will load it, and evaluated with the trainer's own `evaluate` on its evaluation
    set. Every process of a distributed run must call this.

    Args:
        trainer: the one that trained the model, with its evaluation set and `compute_metrics`.
        folder: what `save_compressed` returned.
        recipe: the one that the model was compressed by.
        base_model: the name or path of the model that training started from, as the user gave it.
        task: a short name of the task, such as "sst2".
        dataset: the rows that the trainer used.
        main_metric: the score that heads the card, without `eval_` in front; by default `metric_for_best_model`, or
            else the first that is no loss.
        dense: scores on the same rows of the dense model, as `Trainer.evaluate` returns them; None if there is none.
        teacher: the same of the teacher, if there was one.
        base_model_hub_id: the Hub id of `base_model`; by default `base_model` itself if it can only be such an id.
        base_model_revision: its commit; by default the one that the model's configuration was loaded from, if any.

        evaluate: scores the trainer's model in place of `trainer.evaluate()`, and returns what that would.
        command: the command line that led here; by default that of this process.

    Raises:
        ValueError: the trainer has no evaluation set, `main_metric` is no score, or the folder cannot be loaded.
    """
    if trainer.eval_dataset is None:
        raise ValueError("`eval_dataset` must be given to the Trainer: a report scores the reloaded model on it.")
    folder, source = Path(folder), bare(trainer.model)
    # The same attention kernel on both sides, or parity would measure that choice and not what was stored.
    reloaded = type(source).from_pretrained(folder, attn_implementation=source.config._attn_implementation)
    reloaded.to(trainer.args.device)
    head = find_head(reloaded)
    with evaluating(trainer, reloaded):
        compressed = _scores(trainer, evaluate)
    parity, parity_rows = logit_difference(trainer, reloaded, head)
    formats = {name: _format_facts(trainer, folder, name, reloaded, evaluate) for name in written(folder)}

    uncut = trainer.uncut if isinstance(trainer, DistillationMixin) else None
    whole = copy.deepcopy(uncut or source.config)
    vocabulary, packed = VocabularyFacts.of(source.config), getattr(reloaded.config, "quantization_config", None)
    if vocabulary is not None:
        whole.get_text_config().vocab_size = vocabulary.whole
    with torch.device("meta"):
        student: PreTrainedModel = type(source)(copy.deepcopy(source.config))
        dense_model: PreTrainedModel = type(source)(whole)
    exclude = recipe.pruning.prune_exclude if recipe.pruning.enabled else ()
    prunable = {target.name: target for target in targets.prunable(reloaded, exclude)}
    zeros = {name: int((target.weight == 0).sum()) for name, target in prunable.items()}
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    hub_id = base_model_hub_id or provenance.hub_id(base_model)
    return Report(
        recipe=recipe,
        base_model=base_model,
        base_model_hub_id=hub_id,
        base_model_revision=base_model_revision or getattr(source.config, "_commit_hash", None) if hub_id else None,
        model_class=type(reloaded).__name__,
        auto_class=head.auto_class.__name__,
        head=head.name,
        pipeline_tag=head.pipeline_tag,
        task=task,
        dataset=dataset,
        main_metric=main_metric or _main_metric(compressed, trainer.args.metric_for_best_model),
        dense=None if dense is None else clean_scores(dense),
        teacher=None if teacher is None else clean_scores(teacher),
        compressed=compressed,
        size=measured_size(folder, dense_model, student, inventory.tensors(folder), recipe),
        sparsity={name: zeros[name] / target.weight.numel() for name, target in prunable.items()},
        achieved_sparsity=sum(zeros.values()) / sum(target.weight.numel() for target in prunable.values()),
        parity=parity,
        parity_rows=parity_rows,
        train_seconds=float(seconds[-1]) if seconds else 0.0,
        train_steps=trainer.state.global_step,
        hyperparameters=provenance.hyperparameters(trainer.args),
        seed=trainer.args.seed,
        command=command or provenance.command(),
        hardware=provenance.hardware(trainer.args.device),
        versions=provenance.versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        formats=formats,
        vocabulary=vocabulary,
        bits=packed.bits if isinstance(packed, CompressionConfig) else {},
    )


def _main_metric(scores: Mapping[str, float], preferred: str | None) -> str:
    """The score that stands for the task: the one that models are chosen by, or the first that is no loss."""
    preferred = (preferred or "").removeprefix("eval_")
    if preferred in scores:
        return preferred
    return next((name for name in scores if not name.endswith("loss")), next(iter(scores), "loss"))


def _scores(trainer: Trainer, evaluate: Callable[[], Mapping[str, Any]] | None) -> dict[str, float]:
    if evaluate is None:
        return clean_scores(trainer.evaluate(metric_key_prefix="compressed"), "compressed")
    return clean_scores(evaluate())


def _format_facts(
    trainer: Trainer,
    folder: Path,
    name: str,
    reloaded: PreTrainedModel,
    evaluate: Callable[[], Mapping[str, Any]] | None,
) -> FormatFacts:
    head, kind = find_head(reloaded), FORMATS[name]
    other = kind.read(folder / kind.path, reloaded).to(trainer.args.device)
    scores: dict[str, float] = {}
    # Metrics of sequence-to-sequence models are of texts that are generated, which a graph does not do by itself.
    generates = head.kind == "seq2seq" and isinstance(other, RuntimeModel)
    if not generates and can_evaluate(trainer, other):
        with evaluating(trainer, other):
            scores = _scores(trainer, evaluate)
    if isinstance(other, RuntimeModel):
        scores.pop("loss", None)  # Runtimes know no labels.
    parity, _ = logit_difference(trainer, other, head, plain=reloaded)
    return FormatFacts(kind.stored_bytes(folder), parity, scores)
