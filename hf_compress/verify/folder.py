"""Verifying a finished folder or a repository of the Hub as a stranger would: from its files and from data."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from hf_compress.export.formats import exported
from hf_compress.export.parity import BATCHES, load
from hf_compress.extras import MissingExtraError
from hf_compress.failures import failures
from hf_compress.folders import local_folder
from hf_compress.models.heads import Head, find_outputs
from hf_compress.report.agreement import DIFFERS, TRUE, UNCHECKED, Check, check_folder
from hf_compress.report.card import render, template_version
from hf_compress.report.contents import CARD_NAME, foreign_entries
from hf_compress.report.eval_results import RESULTS_NAME, render_results
from hf_compress.report.extra_set import on_extra
from hf_compress.report.outputs import Outputs, part_of
from hf_compress.report.report import LARGEST, REPORT_NAME, Report
from hf_compress.report.rescoring import check_scores, known_metrics, scores_of, stored_outputs
from hf_compress.verify.comparing import check_format, check_score, same_labels
from hf_compress.verify.rows import Data, load_rows
from hf_compress.verify.scoring import Batches, Scored, rows_to_score
from hf_compress.verify.sentence_scoring import SentenceRows
from hf_compress.verify.verification import EXTRA_SCORE, SCORE, Remeasured, Verification

# Files that would let a model be loaded from elsewhere, or unpickled.
UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".joblib")


def verify_folder(
    model: str | Path, data: Data | None = None, *, revision: str | None = None, token: str | None = None
) -> Verification:
    """Check everything that the report of a published model says, and return what was found.

    Files and card are compared with the report, sizes and zeros are counted again, every format runs in its own
    runtime, and the model is scored on both evaluation sets of the report. Nothing is written into the folder, no
    code of the repository is executed, nothing is unpickled, and links to elsewhere are not followed.

    Args:
        model: the path of a finished folder, or a repository of the Hub.
        data: which rows to score on; by default those of the report.
        revision: of the repository.
        token: a Hub token.

    Raises:
        ValueError: there is neither such a folder nor such a repository.

    Example:
        >>> from hf_compress.verify import Data, verify_folder
        >>> verify_folder("run/compressed", Data(rows=100)).verdict  # doctest: +SKIP
        'true'
    """
    folder = local_folder(model, revision=revision, token=token)
    if foreign := foreign_entries(folder):
        return Verification(str(model), [Check("files", DIFFERS, foreign)])
    report, check = _report(folder)
    if report is None:
        return Verification(str(model), [check])
    checks = [check, _card(folder, report), *check_folder(folder, report), check_scores(folder, report)]
    wrong = {one.name for one in checks if one.verdict == DIFFERS}
    reference, obstacle = _loaded(folder)
    if reference is None:
        names = [f"format {kind.name}" for kind in exported(list(report.formats))]
        said = [f"The model was not loaded. {obstacle}"]
        return Verification(str(model), [*checks, *(Check(name, UNCHECKED, said) for name in [*names, SCORE])])
    batches, why = _batches(folder, report, data or Data(), find_outputs(reference), token)
    inputs = None if batches is None else batches.inputs(BATCHES)
    for kind in exported(list(report.formats)):
        if (folder / kind.path).exists():
            checks.append(check_format(folder, kind.name, reference, inputs))
    trusted = "scores" not in wrong
    score, remeasured = _score(folder, report, data or Data(), reference, batches, why, trusted=trusted)
    extra = on_extra(report)
    if extra is None or (data or Data()).split is not None:
        return Verification(str(model), [*checks, score], remeasured)
    batches, why = _batches(folder, extra, data or Data(), find_outputs(reference), token)
    second, again = _score(folder, extra, data or Data(), reference, batches, why, trusted=trusted)
    second = replace(second, name=EXTRA_SCORE)
    return Verification(str(model), [*checks, score, second], remeasured, again)


def _report(folder: Path) -> tuple[Report | None, Check]:
    path = folder / REPORT_NAME
    if not path.is_file():
        return None, Check("report", UNCHECKED, [f"There is no {REPORT_NAME}, so nothing is claimed. {NOT_OURS}"])
    try:
        return Report.load(folder), Check("report", TRUE)
    except (ValueError, OSError) as error:
        return None, Check("report", DIFFERS, [" ".join(str(error).split())[:1000]])


NOT_OURS = "`hf-compress verify` checks folders that `hf-compress run` or `finish` has written."


def _card(folder: Path, report: Report) -> Check:
    """Check that our part of the card is what the report says."""
    path = folder / CARD_NAME
    if not path.is_file() or path.stat().st_size > LARGEST:
        return Check("card", DIFFERS, [f"`{CARD_NAME}` is missing, or no file of ordinary size."])
    if report.card_template != template_version():
        version = report.versions.get("hf_compress", "another version")
        return Check(
            "card",
            UNCHECKED,
            [f"The card is of another version of hf_compress ({version}), which renders it otherwise."],
        )
    try:
        text = path.read_text("utf-8")
        same = render(report, text) == text
    except ValueError as error:
        return Check("card", DIFFERS, [" ".join(str(error).split())])
    results = folder / RESULTS_NAME
    # The file need not be there: a repository may hold results that the Hub's users gave.
    if results.is_file() and results.read_bytes() != (render_results(report) or "").encode():
        return Check("card", DIFFERS, [f"`{RESULTS_NAME}` is not what {REPORT_NAME} says."])
    return Check("card", TRUE) if same else Check("card", DIFFERS, [f"`{CARD_NAME}` is not what {REPORT_NAME} says."])


def _loaded(folder: Path) -> tuple[PreTrainedModel | None, str]:
    """Return the packed model, or None and why it was not loaded."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in UNSAFE]
    unsafe = [name for name in names if not name.startswith("openvino/")]
    unsafe += [name for name in ("adapter_config.json",) if (folder / name).exists()]
    if unsafe:
        return None, f"`{unsafe[0]}` may be loaded in place of the packed file."
    try:
        return load(folder), ""
    except failures() as error:
        return None, " ".join(str(error).split())[:300]


def _batches(
    folder: Path, report: Report, data: Data, head: Head, token: str | None
) -> tuple[Batches | SentenceRows | None, str]:
    """Return the rows to score as inputs, or None and why there are none."""
    try:
        recorded = stored_outputs(folder, report)[0].tolist() if report.predictions else None
    except ValueError:
        recorded = None
    try:
        return rows_to_score(folder, report, load_rows(report, data, recorded, token), head), ""
    except MissingExtraError as error:
        return None, str(error)
    except failures() as error:
        return None, " ".join(str(error).split())


def _score(
    folder: Path,
    report: Report,
    data: Data,
    reference: PreTrainedModel,
    batches: Batches | SentenceRows | None,
    why: str,
    *,
    trusted: bool,
) -> tuple[Check, Remeasured | None]:
    """Measure the scores again and compare them.

    Args:
        trusted: whether the predictions in the folder give the scores of the report, so that they may be compared.
    """
    if batches is None:
        return Check(SCORE, UNCHECKED, [why]), None
    try:
        outputs = batches.answers(reference)
    except failures() as error:
        said = f"The model could not be run on {batches.loaded.name}: {' '.join(str(error).split())[:300]}"
        return Check(SCORE, UNCHECKED, [said]), None
    stored, positions = dict[str, Outputs](), dict[int, int]()
    if report.predictions and trusted:
        rows, stored = stored_outputs(folder, report)
        places = {int(row): place for place, row in enumerate(rows)}
        if set(batches.loaded.rows) <= places.keys() and _is_recorded(report, data, batches, outputs, stored, places):
            positions = places
    scores = scores_of(outputs, known_metrics(report, stored), report)
    scored = Scored(batches.loaded.name, batches.loaded.rows, outputs, scores)
    return check_score(report, scored, stored.get("compressed"), positions)


def _is_recorded(
    report: Report,
    data: Data,
    batches: Batches | SentenceRows,
    outputs: Outputs,
    stored: dict[str, Outputs],
    places: dict[int, int],
) -> bool:
    """Return whether the rows are those of the report: by its dataset, or as far as number and labels tell."""
    if not data.given:
        return True
    whole = report.dataset.eval_split_rows
    known = part_of(stored["compressed"], [places[row] for row in batches.loaded.rows])
    return whole in (None, len(batches.loaded.split)) and same_labels(known, outputs)
