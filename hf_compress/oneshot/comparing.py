"""The compressed model against the dense one: how alike their answers are, on the same rows, without labels."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hf_compress.models.heads import Head
from hf_compress.oneshot.source import Embed, is_encoder
from hf_compress.report.intervals import DRAWS, LEVEL, Interval, bootstrap, ends
from hf_compress.report.metrics import METRICS
from hf_compress.report.outputs import Kind, Outputs, UnreadableError, joined, read_outputs
from hf_compress.report.predictions import COMPRESSED, DENSE
from hf_compress.report.scores import AGREEMENT, DISTORTION, DIVERGENCE, RANKING, RMSE
from hf_compress.report.tally import Tally
from hf_compress.verify.scoring import Batches

MASK = "attention_mask"
# Neighbours of each row that its similarity is compared to.
NEIGHBOURS = 20
# The scores that are usual for labels of a kind. With more than two classes only the first.
USUAL: dict[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "f1", "matthews_correlation"),
    "numbers": ("pearson", "spearmanr"),
    "flags": ("f1", "accuracy"),
    "tokens": ("f1", "accuracy"),
    "spans": ("exact_match",),
}


@dataclass(frozen=True)
class Comparison:
    """How alike two models answer.

    Args:
        values: by the name of the score, one number for each row, whose mean is the score; for RMSE, its square.
        scores: by name. Some are not means over rows.
        outputs: labels and predictions of the dense and of the compressed model; empty without labels.
        largest: the largest absolute difference of a logit or hidden state.
        embeddings: of the two models, a row each, in the order of the batches; None for models with a head.
    """

    values: dict[str, NDArray[np.float64]]
    scores: dict[str, float]
    outputs: dict[str, Outputs] = field(default_factory=dict)
    largest: float = 0.0
    embeddings: tuple[Tensor, Tensor] | None = None

    def intervals(self) -> dict[str, Interval]:
        """The intervals of the scores that are means over rows, or roots of them."""
        rows = len(next(iter(self.values.values())))
        if rows < 2:
            return {}
        means = {name: _mean_of(values, rooted=name == RMSE) for name, values in self.values.items()}
        found = {}
        for name, drawn in bootstrap(means, rows).items():
            low, high = ends(drawn)
            method = f"bootstrap, {DRAWS:,} resamples of rows"
            found[name] = Interval(self.scores[name], low, high, LEVEL, method, "rows", rows)
        return found


def _mean_of(values: NDArray[np.float64], *, rooted: bool) -> Any:
    power = 0.5 if rooted else 1.0
    return lambda weights: (weights @ values / len(values)) ** power


@torch.no_grad()
def compare(dense: nn.Module, other: nn.Module, batches: Batches, embed: Embed) -> Comparison:
    """Return how alike `dense` and `other` answer on the rows of `batches`.

    Models with a head: the mean Kullback-Leibler divergence of the answers from those of the dense model, in nats, and
    how often the answers agree; for regression, the root mean squared difference. Encoders: the distortion, which is
    1,000 x (1 - cosine) of the embeddings, and the rank correlation of the similarities of pairs of rows.

    Args:
        dense: the model before compression.
        other: the model after it, or the same model in another runtime.
        batches: rows, with or without labels.
        embed: turns the hidden states of an encoder into embeddings.
    """
    head = batches.head
    parts: list[dict[str, Tensor]] = []
    embeddings: list[tuple[Tensor, Tensor]] = []
    names = DENSE, COMPRESSED
    outputs: dict[str, list[Outputs]] = {name: [] for name in names}
    largest = 0.0
    for inputs, labels in batches:
        ours, theirs = (head.logits(model(**_known(model, inputs))) for model in (dense, other))
        largest = max(largest, *(float((one - two).abs().max()) for one, two in zip(ours, theirs, strict=True)))
        if is_encoder(head):
            pooled = [embed(one[0].float(), inputs.get(MASK)) for one in (ours, theirs)]
            embeddings.append((pooled[0], pooled[1]))
            continue
        parts.append(_alike(head, inputs, ours, theirs))
        if labels is not None:
            for name, logits in zip(names, (ours, theirs), strict=True):
                try:
                    outputs[name].append(read_outputs(head, logits if len(logits) > 1 else logits[0], labels))
                except UnreadableError:
                    labels = None
                    break
    read = {name: joined(found) for name, found in outputs.items() if found}
    if is_encoder(head):
        return _of_embeddings(embeddings, largest)
    values = {name: torch.cat([part[name] for part in parts]).double().numpy() for name in parts[0]}
    scores = {name: float(found.mean()) for name, found in values.items()}
    if RMSE in values:
        scores[RMSE] **= 0.5
    return Comparison(values, scores, read, largest)


def _known(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    taken = inspect.signature(model.forward).parameters
    everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()) and "input_ids" not in taken
    return {name: value for name, value in inputs.items() if everything or name in taken}


def _alike(
    head: Head, inputs: Mapping[str, Tensor], ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Return one number for each row of a batch and each score."""
    if head.regression:
        return {RMSE: (ours[0] - theirs[0]).float().square().reshape(len(ours[0]), -1).mean(1)}
    if head.problem_type == "multi_label_classification":
        flags = (ours[0] > 0) == (theirs[0] > 0)
        return {AGREEMENT: flags.all(1).float(), DIVERGENCE: _of_flags(ours[0], theirs[0])}
    found: dict[str, list[Tensor]] = {AGREEMENT: [], DIVERGENCE: []}
    for one, two in zip(ours, theirs, strict=True):
        counted = _counted(head, inputs, one)
        if len(ours) > 1:  # The classes of question answering are the tokens.
            one, two = (logits.masked_fill(~inputs[MASK].bool(), -1e9) for logits in (one, two))
        found[AGREEMENT].append(_mean((one.argmax(-1) == two.argmax(-1)).float(), counted))
        found[DIVERGENCE].append(_mean(_divergence(one, two), counted))
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


def _counted(head: Head, inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor | None:
    """Return which tokens count: all but padding. None where a row has one answer."""
    return inputs[MASK].bool() if head.descriptor.position != "row" and logits.dim() == 3 else None


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean of each row over the tokens that count."""
    if counted is None:
        return values
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def _divergence(ours: Float[Tensor, "*shape classes"], theirs: Float[Tensor, "*shape classes"]) -> Tensor:
    """Return the divergence of the answers `theirs` from `ours`, in nats."""
    one, two = (F.log_softmax(logits.float(), dim=-1) for logits in (ours, theirs))
    return (one.exp() * (one - two)).sum(-1).clamp(min=0)


def _of_flags(ours: Float[Tensor, "rows labels"], theirs: Float[Tensor, "rows labels"]) -> Tensor:
    """Return the sum over independent labels of the divergence of their probabilities, in nats."""
    pairs = (torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (ours, theirs))
    return _divergence(*pairs).sum(-1)


def _of_embeddings(pairs: list[tuple[Tensor, Tensor]], largest: float) -> Comparison:
    ours, theirs = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    distortion = 1000 * (1 - (ours * theirs).sum(-1)).double().numpy()
    scores = {DISTORTION: float(distortion.mean())}
    if len(ours) > 3:
        shifts = range(1, min(NEIGHBOURS, len(ours) - 1) + 1)
        similar = [torch.cat([(one * one.roll(shift, 0)).sum(-1) for shift in shifts]) for one in (ours, theirs)]
        scores[RANKING] = float(np.corrcoef(_ranks(similar[0].numpy()), _ranks(similar[1].numpy()))[0, 1])
    return Comparison({DISTORTION: distortion}, scores, {}, largest, (ours, theirs))


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def with_similarities(comparison: Comparison, order: Sequence[int], similar: Sequence[float]) -> Comparison:
    """Return `comparison` of encoders with the similarities of pairs as outputs: the cosines beside the labels.

    Args:
        comparison: of the texts, two for each pair.
        order: the number of each text, in the order in which they were compared.
        similar: the label of each pair.
    """
    assert comparison.embeddings is not None
    outputs = {}
    for name, found in zip((DENSE, COMPRESSED), comparison.embeddings, strict=True):
        placed = torch.empty_like(found)
        placed[torch.tensor(order)] = found
        cosines = (placed[0::2] * placed[1::2]).sum(-1).double().numpy()
        outputs[name] = Outputs("numbers", np.asarray(similar, np.float64), cosines)
    return replace(comparison, outputs=outputs)


def usual_scores(outputs: Outputs, classes: int | None, labels: Mapping[int, str]) -> dict[str, float]:
    """Return the scores that are usual for such labels, the main one first.

    Args:
        outputs: labels and predictions of a model.
        classes: how many classes there are; None if it is not known.
        labels: the names of the classes.
    """
    names = USUAL[outputs.kind] if classes is None or classes <= 2 else USUAL[outputs.kind][:1]
    tally, found = Tally(outputs, labels, {}), {}
    for name in names:
        known = (metric.scorer(tally) for metric in METRICS if any(word in name for word in metric.words))
        scorer = next((one for one in known if one is not None), None)
        if scorer is not None:
            found[name] = float(scorer(np.ones((1, outputs.rows)))[0])
    return found
