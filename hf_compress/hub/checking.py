"""What must hold before a finished folder is published."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_compress.export.formats import FORMATS
from hf_compress.models.kinds import HEAD_KINDS
from hf_compress.recipe import Recipe
from hf_compress.report.card import render, template_version
from hf_compress.report.contents import CARD_NAME, check_contents
from hf_compress.report.report import REPORT_NAME, Report

NEEDED = (REPORT_NAME, CARD_NAME, "config.json", "model.safetensors", "recipe.json")
REGRESSION = "REGRESSION"
SHOWN = 3
# What turns texts, pictures or sounds into inputs, by the kind of input.
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def check(folder: str | Path, *, regression_too: bool = False) -> Report:
    """Check that `folder` can be published as it is, and return its report.

    Args:
        folder: what `finish` or `save_card` wrote last.
        regression_too: whether a model that lost more than its `--compress_max_drop` may be published.

    Raises:
        ValueError: a file is missing, is not the one that the report records, or leads out of the folder; the recipe
            is not that of the report; there is nothing that makes inputs; a format of the card is not there; the card
            was rendered by another template or its marked section was edited; or the model is a regression.

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
    if wrong := list(_differences(folder, report)):
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
            f"{folder} is a regression. {' '.join(report.reasons)} Train it longer or compress it less; to publish it "
            "nevertheless, pass `--regression-too`."
        )
    return report


def _differences(folder: Path, report: Report) -> Iterator[str]:
    """What is not as the report says, one sentence each."""
    yield from check_contents(folder, report, others=False)
    found, reported = (folder / "model.safetensors").stat().st_size, report.size.packed_bytes
    if found != reported:
        yield f"model.safetensors has {found:,} bytes, but {REPORT_NAME} says {reported:,}."
    try:
        same = Recipe.load(folder / "recipe.json") == report.recipe
    except ValueError:
        same = False
    if not same:
        yield f"recipe.json is not the recipe in {REPORT_NAME}."
    for name in report.formats:
        if not any(Path(FORMATS[name].path) in (path, *path.parents) for path in map(Path, report.files)):
            yield f"The format {name} of the card is not among the files ({FORMATS[name].path})."
    needed = _inputs_from(report)
    if needed and not any(name in report.files for name in needed):
        yield f"Nothing makes inputs for the model: there is none of {', '.join(needed)}. Save it there."


def _inputs_from(report: Report) -> Sequence[str]:
    """The names of the files of which one must be there to make inputs; none for other kinds of input."""
    kinds = {kind.pipeline_tag for kind in HEAD_KINDS.values()}
    if report.pipeline_tag in ("image-classification", "audio-classification"):
        return PROCESSORS
    return TOKENIZERS if report.pipeline_tag in kinds else ()


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
