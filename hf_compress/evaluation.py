"""Measuring a model with the Trainer that trained another: its scores, and how far apart their logits are."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_compress.heads import Head, bare, has_own_forward

PARITY_BATCHES = 8
TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")


def clean_scores(metrics: Mapping[str, Any], prefix: str = "eval") -> dict[str, float]:
    """The scores in what `Trainer.evaluate` returned: without the prefix, the timings and the epoch."""
    named = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name != "epoch"}
    return {name: float(value) for name, value in named.items() if not name.endswith(TIMINGS)}


def can_evaluate(trainer: Trainer, model: nn.Module) -> bool:
    """Whether `trainer` can evaluate `model` in place of its own.

    That may have a `forward` of its own, which the trainer relies on: then only models of its class.
    """
    return not has_own_forward(trainer.model) or type(bare(model)) is type(bare(trainer.model))


@contextmanager
def evaluating(trainer: Trainer, model: nn.Module) -> Iterator[None]:
    """A context in which `trainer` evaluates `model`; afterwards the trainer is as it was, but for its log.

    The accelerator forgets its models meanwhile, or it would not prepare this one (mixed precision, compilation).
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
    """A context in which `model` computes by its own `forward` with the modules and weights of `other`."""
    names = ("_modules", "_parameters", "_buffers")
    kept = {name: vars(model)[name] for name in names}
    vars(model).update({name: vars(other)[name] for name in names})
    try:
        yield model
    finally:
        vars(model).update(kept)


def evaluation_batches(trainer: Trainer) -> list[dict[str, Any]]:
    """The trainer's first `PARITY_BATCHES` evaluation batches; of a distributed run, this process's share of them."""
    dataset = next(iter(trainer.eval_dataset)) if isinstance(trainer.eval_dataset, dict) else None
    return list(itertools.islice(trainer.get_eval_dataloader(dataset), PARITY_BATCHES))


def logit_difference(
    trainer: Trainer, other: nn.Module, head: Head, plain: nn.Module | None = None
) -> tuple[float, int]:
    """The largest absolute difference of a logit between `trainer.model` and `other`, and the rows compared.

    Both run in evaluation mode, on the trainer's first `PARITY_BATCHES` evaluation batches, under its autocast. Every
    process of a distributed run must call it: the difference is the largest of all of them, the rows are its own.

    Args:
        plain: a model that takes the place of `trainer.model`; both are then compared without autocast, which other
            runtimes do not have.
    """
    if plain is not None:
        unwrap = trainer.accelerator.unwrap_model
        # Trainer's wrapper has an autocast of its own in every `forward` that it has called.
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
                difference = (one.double() - two.double()).abs().max().cpu()
                # torch.maximum, unlike max(), lets a NaN through: a model that broke must not report parity.
                largest = torch.maximum(largest, difference)
    finally:
        trained.train(training)
    return float(trainer.accelerator.gather(largest.float().to(trainer.args.device)).max()), rows
