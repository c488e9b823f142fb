"""Comparing what a stranger measures with what a report says: formats with the packed file, scores with scores."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hf_compress.export.formats import FORMATS
from hf_compress.export.parity import BATCHES, judge, random_batches
from hf_compress.extras import MissingExtraError
from hf_compress.report.agreement import DIFFERS, TRUE, UNCHECKED, Check
from hf_compress.report.outputs import Outputs, part_of
from hf_compress.report.report import Report
from hf_compress.report.rescoring import known_metrics, scores_of
from hf_compress.verify.scoring import Scored
from hf_compress.verify.verification import SCORE, Remeasured

# Rounding to integers differs between machines and batches in a few rows of a thousand; another model in many.
LEAST_AGREEMENT = 0.99
# A Trainer with `--bf16` or `--fp16` has measured in 16 bits, and a stranger measures in 32.
LEAST_IN_16_BITS = 0.97


def check_format(
    folder: Path, name: str, reference: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]] | None
) -> Check:
    """Run a format in its own runtime, and check that it computes what the packed file computes.

    Args:
        folder: that holds both.
        name: of the format.
        reference: the reloaded packed model.
        batches: real inputs; by default random ones.
    """
    kind, title = FORMATS[name], f"format {name}"
    given = list(itertools.islice(batches or random_batches(reference), BATCHES))
    try:
        kind.require()
        other = kind.read(folder / kind.path, reference)
        judgement = judge(reference, other, given)
    except MissingExtraError as error:
        return Check(title, UNCHECKED, [str(error)])
    except kind.failures() as error:
        return Check(title, DIFFERS, [f"`{kind.path}` cannot be run: {' '.join(str(error).split())[:300]}"])
    said = f"Compared with the packed file{'' if batches else ' on random inputs'}, {judgement}."
    return Check(title, TRUE if judgement.explained else DIFFERS, [said])


def check_score(
    report: Report, scored: Scored, stored: Outputs | None, positions: Mapping[int, int]
) -> tuple[Check, Remeasured]:
    """Compare the scores that were measured again with those of the report.

    Where the report keeps the predictions of the same rows, these are compared row by row, and the scores on these
    rows. Otherwise a score is true if it is inside the interval of the reported one.

    Args:
        report: with its scores and their intervals.
        scored: what was measured.
        stored: the outputs of the compressed model that the folder keeps.
        positions: where the row of a given index is in `stored`; empty if these are other rows.
    """
    main, interval = report.main_metric, report.intervals.get(report.main_metric)
    reported, share = dict(report.compressed), None
    said: list[str] = []
    if stored is not None and positions:
        same = part_of(stored, [positions[row] for row in scored.rows])
        if not same_labels(same, scored.outputs):
            said.append(f"{scored.name} has other labels than the rows that the report was measured on.")
        else:
            reported = scores_of(same, known_metrics(report, {"compressed": stored}), report)
            share = agreement(same, scored.outputs)
    names = [name for name in scored.scores if name in reported]
    remeasured = Remeasured(
        scored.name,
        len(scored.rows),
        {name: reported[name] for name in names},
        {name: scored.scores[name] for name in names},
        share,
        interval,
    )
    words = [_compared(name, reported[name], scored.scores[name]) for name in names]
    if said:
        return Check(SCORE, DIFFERS, said + words), remeasured
    if main not in names and share is None:
        why = f"`{main}` cannot be computed without the script that measured it."
        return Check(SCORE, UNCHECKED, [why, *words]), remeasured
    if share is not None:
        words.append(f"{100 * share:.2f} % of the predictions on {len(scored.rows):,} rows are those of the report.")
        in_16_bits = report.hyperparameters.get("bf16") or report.hyperparameters.get("fp16")
        if share >= (LEAST_IN_16_BITS if in_16_bits else LEAST_AGREEMENT):
            return Check(SCORE, TRUE, words), remeasured
    if main not in names:
        return Check(SCORE, DIFFERS, words), remeasured
    inside = interval is not None and interval.low <= scored.scores[main] <= interval.high
    if interval is not None:
        where = "inside" if inside else "outside"
        words.append(
            f"The measured {main} is {where} the {100 * interval.level:g} % interval of the reported one, "
            f"{interval.low:.4g} to {interval.high:.4g}."
        )
    near = interval is None and abs(scored.scores[main] - reported[main]) <= 1e-2 * max(1e-2, abs(reported[main]))
    return Check(SCORE, TRUE if share is None and (inside or near) else DIFFERS, words), remeasured


def _compared(name: str, reported: float, measured: float) -> str:
    difference = measured - reported
    same = abs(difference) < 5e-5
    return f"{name} is {measured:.4f}; the report says {reported:.4f}" + (
        "." if same else f", so it is {abs(difference):.4f} {'lower' if difference < 0 else 'higher'}."
    )


def same_labels(one: Outputs, other: Outputs) -> bool:
    """Whether both are outputs for rows of the same labels. Numbers are kept in 32 bits."""
    if one.kind != other.kind or one.labels.shape != other.labels.shape:
        return False
    return bool(np.allclose(one.labels, other.labels, rtol=1e-5, atol=1e-6))


def agreement(one: Outputs, other: Outputs) -> float:
    """The share of predictions that are the same. Numbers are the same within a hundredth of their spread.

    Cosines have labels of any scale, so differences must also be within a fiftieth of the spread of the predictions:
    int8 inputs of texts in other batches change the cosines of 2 % of the pairs by more than a hundredth of it.
    """
    if one.kind == "numbers":
        allowed = min(0.01 * one.labels.std(), 0.02 * one.predicted.std()) or 0.01
        near: Any = np.abs(one.predicted - other.predicted) <= allowed
        return float(near.mean())
    equal = one.predicted == other.predicted
    return float((equal if equal.ndim == 1 else equal.all(1)).mean())
