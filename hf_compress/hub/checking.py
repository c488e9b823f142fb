"""What must hold before a finished folder is published."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from hf_compress.report.agreement import DIFFERS, UNCHECKED, check_folder
from hf_compress.report.card import render, template_version
from hf_compress.report.contents import CARD_NAME, check_contents
from hf_compress.report.gate import REGRESSION, what_to_try
from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.report.rescoring import check_scores

logger = logging.get_logger(__name__)

NEEDED = (REPORT_NAME, CARD_NAME, "config.json", "model.safetensors", "recipe.json")
SHOWN = 3


def check(folder: str | Path, *, regression_too: bool = False) -> Report:
    """Check that `folder` can be published as it is, and return its report.

    Args:
        folder: what `finish` or `save_card` wrote last.
        regression_too: whether a model that lost more than its `--compress_max_drop` may be published.

    Raises:
        ValueError: a file is missing, is not the one that the report records, or leads out of the folder; recipe,
            bits, sizes, zeros, tokenizer or formats are not those of the report; the card was rendered by another
            template, or our section of it was edited; or the model is a regression.

    Example:
        >>> from hf_compress.hub import check
        >>> check("run/compressed").verdict  # doctest: +SKIP
        'ACCEPT'
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder that a compression run has written; {folder} does not exist.")
    _check_files(folder, NEEDED)
    report = Report.load(folder)
    _check_files(folder, [report.card_picture] if report.card_picture else [])
    again = f"To render it again, run: {render_command(folder)}"
    if report.card_template != template_version():
        raise ValueError(
            f"{folder / CARD_NAME} was rendered by another version of the card's template "
            f"({report.card_template or 'not recorded'}; this version is {template_version()}). {again}"
        )
    if wrong := _differences(folder, report):
        more = f" And {len(wrong) - SHOWN} more." if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{folder} is not what its report says. {' '.join(wrong[:SHOWN])}{more} Restore it, or finish the run "
            "again; if you changed it on purpose, measure it again."
        )
    card = (folder / CARD_NAME).read_text("utf-8")
    if render(report, card) != card:
        raise ValueError(f"{folder / CARD_NAME} is not what {REPORT_NAME} says: one of them was edited. {again}")
    if report.verdict == REGRESSION and not regression_too:
        raise ValueError(
            f"{folder} is a regression. {' '.join(report.reasons)} {what_to_try(report)} To publish it nevertheless, "
            "pass `--regression-too`."
        )
    return report


def _differences(folder: Path, report: Report) -> list[str]:
    """What is not as the report says, one sentence each. Files that it does not record are not published."""
    if wrong := check_contents(folder, report, others=False):
        return wrong
    checks = [check for check in check_folder(folder, report) if check.name != "files"]
    checks.append(check_scores(folder, report))
    for check in checks:
        if check.verdict == UNCHECKED:
            logger.warning(f"The {check.name} in {folder} cannot be checked: {' '.join(check.details)}")
    return [said for check in checks if check.verdict == DIFFERS for said in check.details]


def _check_files(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}. Call `save_compressed`, `Report.save` and `save_card`, in this "
            "order."
        )


def render_command(folder: str | Path) -> str:
    """The command that renders the card of `folder` again from its report."""
    return shlex.join(["python", "-c", f"from hf_compress import save_card; save_card({json.dumps(str(folder))})"])
