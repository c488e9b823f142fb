"""The scores that a report compares: a Trainer's own `evaluate`, run on its model, its teacher and the dense model."""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    set_seed,
)
from transformers.utils import CONFIG_NAME, logging

from hf_compress.models.heads import Head, bare, has_own_forward
from hf_compress.models.sentences import sentence_kind, starts_trained
from hf_compress.report.predictions import DENSE, TEACHER, Recorder

PARITY_BATCHES = 8
SHOWING = (PrinterCallback, ProgressCallback)

logger = logging.get_logger(__name__)


def can_evaluate(trainer: Trainer, model: nn.Module) -> bool:
    """Whether `trainer` can evaluate `model` in place of its own model.

    If the trainer has put its own `forward` on its model, it can evaluate only models of the same class.
    """
    return not has_own_forward(trainer.model) or type(bare(model)) is type(bare(trainer.model))


@contextmanager
def evaluating(trainer: Trainer, model: nn.Module) -> Iterator[None]:
    """A context in which `trainer` evaluates `model`. At its end the trainer is restored, except for its log.

    In this context the accelerator has no models. Otherwise it would not prepare `model` (mixed precision,
    compilation).
    """
    if has_own_forward(trainer.model) and model is not bare(trainer.model):
        with _lent(bare(trainer.model), bare(model)) as lent, evaluating(trainer, lent):
            yield
        return
    names = ("model", "model_wrapped", "deepspeed", "model_preparation_time")
    kept = {name: trainer.__dict__[name] for name in names if name in trainer.__dict__}
    kept_models, kept_callback_model = trainer.accelerator._models, trainer.callback_handler.model
    trainer.model = trainer.model_wrapped = trainer.callback_handler.model = model
    trainer.accelerator._models = []
    try:
        yield
    finally:
        for name in names:
            trainer.__dict__.pop(name, None)
        trainer.__dict__.update(kept)
        trainer.accelerator._models, trainer.callback_handler.model = kept_models, kept_callback_model


@contextmanager
def _lent(model: nn.Module, other: nn.Module) -> Iterator[nn.Module]:
    """A context in which `model` computes with its own `forward`, and with the modules and weights of `other`."""
    names = ("_modules", "_parameters", "_buffers")
    kept = {name: vars(model)[name] for name in names}
    vars(model).update({name: vars(other)[name] for name in names})
    try:
        yield model
    finally:
        vars(model).update(kept)


def evaluation_batches(trainer: Trainer) -> list[dict[str, Any]]:
    """The trainer's first `PARITY_BATCHES` evaluation batches; in a distributed run, this rank's share of them."""
    dataset = next(iter(trainer.eval_dataset)) if isinstance(trainer.eval_dataset, dict) else None
    return list(itertools.islice(trainer.get_eval_dataloader(dataset), PARITY_BATCHES))


def logit_difference(
    trainer: Trainer, other: nn.Module, head: Head, plain: nn.Module | None = None
) -> tuple[float, int]:
    """The largest absolute difference of a logit between `trainer.model` and `other`, and the number of rows compared.

    Both run in evaluation mode on the trainer's first `PARITY_BATCHES` evaluation batches, under its autocast.
    Collective: every rank must call it. The difference is the largest over all ranks; the rows are those of this rank.

    Args:
        trainer: the one that trained the model.
        other: the model to compare with.
        head: of both models.
        plain: a model to use in place of `trainer.model`. The comparison then runs without autocast, because other
            runtimes have none.
    """
    if plain is not None:
        unwrap = trainer.accelerator.unwrap_model
        # Trainer's wrapper adds its own autocast to every `forward` that it has called.
        plain, other = (unwrap(model, keep_fp32_wrapper=False) for model in (plain, other))
    context = trainer.accelerator.autocast if plain is None else nullcontext
    trained = trainer.model if plain is None else plain
    training = trained.training
    largest, rows = torch.zeros((), dtype=torch.float64), 0
    trained.eval(), other.eval()
    try:
        for batch in evaluation_batches(trainer):
            inputs = trainer._prepare_inputs(batch)
            with torch.no_grad(), context():
                ours, theirs = (head.logits(model(**inputs)) for model in (trained, other))
            rows += len(ours[0])
            for one, two in zip(ours, theirs, strict=True):
                # Models may put -inf where no class is allowed. Equal values differ by 0, infinities too.
                difference = torch.where(one == two, 0.0, (one.double() - two.double()).abs()).max().cpu()
                # torch.maximum keeps a NaN, max() can drop it: a broken model must not report parity.
                largest = torch.maximum(largest, difference)
    finally:
        trained.train(training)
    return float(trainer.accelerator.gather(largest.float().to(trainer.args.device)).max()), rows


@dataclass(frozen=True)
class Origin:
    """The model that training started from.

    Args:
        name: its name or path.
        revision: its commit on the Hub.
        trained: whether it was already a model for the task, with a trained head.
        folder: its absolute path, if it is a folder.
        files: name, size and time of change (in ns) of the files in that folder that hold the model.
    """

    name: str
    revision: str | None
    trained: bool
    folder: Path | None = None
    files: frozenset[tuple[str, int, int]] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> "Origin":
        """The origin of a model that was not saved yet: saving overwrites the facts in its configuration."""
        inner = bare(model)
        config = getattr(inner, "config", None)
        name = getattr(config, "name_or_path", "") or ""
        # A model whose head was added to a pretrained body has another class than the checkpoint was saved from.
        trained = bool(name) and type(inner).__name__ in (getattr(config, "architectures", None) or [])
        if sentence_kind(inner) is not None:
            trained = starts_trained(inner)
        folder = Path(name).absolute() if name and Path(name).is_dir() else None
        revision = getattr(config, "_commit_hash", None)
        return cls(name or type(inner).__name__, revision, trained, folder, _model_files(folder))

    def is_changed(self) -> bool:
        """Whether the files of the model have changed since training started."""
        return _model_files(self.folder) != self.files


def _model_files(folder: Path | None) -> frozenset[tuple[str, int, int]]:
    if folder is None or not folder.is_dir():
        return frozenset()
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") or path.name == CONFIG_NAME]
    return frozenset((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def evaluate(
    trainer: Trainer, evaluation: Mapping[str, Any], prefix: str, recorder: Recorder | None = None
) -> dict[str, float]:
    """The numbers that the trainer's own `evaluate` returns for its model, always with the prefix `eval_`.

    With a `recorder`, the predictions of the rows are recorded under the name `prefix`.
    """
    kinds = {name: parameter.kind for name, parameter in inspect.signature(trainer.evaluate).parameters.items()}
    takes_prefix = "metric_key_prefix" in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values()
    # All models must get the same batches, so a collator that draws masks (language models) has to draw them again.
    set_seed(trainer.args.seed)
    if isinstance(trainer.data_collator, DataCollatorForLanguageModeling):
        trainer.data_collator.generator = None
    with _unheard(trainer):
        arguments = {**evaluation, **({"metric_key_prefix": prefix} if takes_prefix else {})}
        with nullcontext() if recorder is None else recorder.recording(trainer, prefix):
            metrics = of_first_process(lambda: trainer.evaluate(**arguments))
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"`evaluate` of {type(trainer).__name__} must return a mapping from metric names to scores; got "
            f"{type(metrics).__name__}. Return what `super().evaluate()` returns."
        )
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Real) and name != "epoch"}
    # A script's own `evaluate` may add another prefix than the one it is given.
    return {f"eval_{name.removeprefix(f'{prefix}_').removeprefix('eval_')}": value for name, value in numbers.items()}


def of_first_process(evaluate: Callable[[], Any]) -> Any:
    """Call `evaluate` and return what process 0 got. Collective: every rank must call it.

    The `evaluate` of some scripts computes scores on process 0 only.

    Raises:
        RuntimeError: `evaluate` failed on process 0. Other processes would otherwise wait for it without end.
    """
    shared: list[Any] = [None, False]
    try:
        shared = [evaluate(), True]
    finally:
        # Also after an error, because the other processes wait here.
        shared = broadcast_object_list(shared)
    metrics, complete = shared
    if not complete:
        raise RuntimeError("The evaluation failed on process 0. Its message is in the output of that process.")
    return metrics


@contextmanager
def _unheard(trainer: Trainer) -> Iterator[None]:
    """A context that mutes all callbacks except progress bars.

    Training is over: the script may have closed its W&B run, and early stopping must not count these evaluations.
    """
    handler = trainer.callback_handler
    kept, handler.callbacks = handler.callbacks, [c for c in handler.callbacks if isinstance(c, SHOWING)]
    try:
        yield
    finally:
        handler.callbacks = kept


def teacher_scores(
    trainer: Trainer, evaluation: Mapping[str, Any], recorder: Recorder | None = None
) -> dict[str, float] | None:
    """The teacher's scores, with its classes in the student's order; None without a teacher."""
    if getattr(trainer, "teacher", None) is None:
        return None
    order = trainer._teacher_classes
    if not can_evaluate(trainer, trainer.teacher):
        logger.warning(
            f"The report has no scores of the teacher: this {type(trainer).__name__} evaluates with a `forward` that "
            f"it has put on its own model, and the teacher has another class ({type(bare(trainer.teacher)).__name__})."
        )
        return None
    with trainer.teaching() as teacher:
        known = inspect.signature(bare(teacher).forward).parameters

        def leave_out(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {name: value for name, value in kwargs.items() if name in known}

        def reorder(module: nn.Module, args: Any, outputs: Any) -> Any:
            outputs["logits"] = outputs["logits"][..., order]
            return outputs

        hooks = []
        # A `forward` that the trainer has put on its model takes more inputs, for the teacher too.
        if not has_own_forward(trainer.model):
            hooks.append(teacher.register_forward_pre_hook(leave_out, with_kwargs=True))
        if order is not None:
            hooks.append(teacher.register_forward_hook(reorder))
        try:
            with evaluating(trainer, teacher):
                scores = evaluate(trainer, evaluation, TEACHER, recorder)
        finally:
            for hook in hooks:
                hook.remove()
    # The teacher's loss read the labels in the teacher's order.
    return scores if order is None else {name: v for name, v in scores.items() if name != "eval_loss"}


def dense_scores(
    trainer: Trainer, origin: Origin, evaluation: Mapping[str, Any], recorder: Recorder | None = None
) -> dict[str, float] | None:
    """The scores of the model that training started from, loaded again; None, with a warning, if it cannot be."""
    source: PreTrainedModel = bare(trainer.model)
    config = copy.deepcopy(getattr(trainer, "uncut", None) or source.config)
    if getattr(config, "quantization_config", None) is not None:
        logger.warning(f"The report has no dense baseline: {origin.name} was compressed before this training.")
        return None
    if origin.is_changed():
        logger.warning(
            f"The report has no dense baseline: the files in {origin.folder} have changed since the training started. "
            "If this run wrote them, give it an `--output_dir` other than the folder of the model."
        )
        return None
    try:
        dense = type(source).from_pretrained(
            origin.folder or origin.name, revision=origin.revision or "main", config=config, dtype=source.dtype
        )
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning(f"The report has no dense baseline: {origin.name} could not be loaded again. {error}")
        return None
    with evaluating(trainer, dense.to(trainer.args.device)):
        return evaluate(trainer, evaluation, DENSE, recorder)
