"""The descriptors of what a report's run used, found in the registries of the methods."""

from dataclasses import dataclass

from hf_compress.distill.losses import LOSSES, REGRESSION, Loss
from hf_compress.report.report import Report


@dataclass(frozen=True)
class Words:
    """The words of one entry of a registry, until the registries hold descriptors themselves."""

    card: str
    citation: str = ""
    loading: str = ""


_SCHEDULES = {
    "cubic": Words("quickly at first and slowly towards the end (cubic schedule)"),
    "linear": Words("at a constant rate (linear schedule)"),
}
_ROWS = "8-bit weights with one scale per row, 8-bit embeddings with one scale per row"
_SCHEMES = {
    "int8": Words(f"{_ROWS}, and 8-bit inputs of linear layers with ranges learned in training"),
    "int8-dynamic": Words(f"{_ROWS}, and 8-bit inputs of linear layers with one scale per token, found at run time"),
    "int8-weight": Words(f"{_ROWS}, and activations in floating point"),
    "int4-weight": Words(
        "4-bit weights with one scale per group of 64, 8-bit embeddings with one scale per row, and activations in "
        "floating point"
    ),
    "int8-attention": Words(
        f"{_ROWS}, 8-bit inputs of linear layers with ranges learned in training, and 8-bit products inside attention"
    ),
}


def loss(report: Report) -> Loss:
    """The distillation loss. Regression uses its own, except in place of a loss that compares hidden states."""
    chosen = LOSSES[report.recipe.distillation.distill_loss]
    return REGRESSION if report.head.endswith("regression") and not chosen.needs else chosen


def criterion(report: Report) -> Words:
    """The pruning criterion."""
    return Words("weights of smallest magnitude")


def schedule(report: Report) -> Words:
    """The pruning schedule."""
    return _SCHEDULES[report.recipe.pruning.prune_schedule]


def scheme(report: Report) -> Words:
    """The quantization scheme."""
    return _SCHEMES[str(report.recipe.quantization.quant_scheme)]
