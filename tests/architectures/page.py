"""The page `docs/architectures.md`, made from the outcomes in `outcomes.json` of this folder."""

import json
from pathlib import Path

from tests.architectures.families import FAMILIES, Family
from tests.architectures.methods import METHODS, NOT_TEXT, YES

OUTCOMES = Path(__file__).with_name("outcomes.json")
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
TITLES = {
    "encoder": "Text encoders, as classifiers",
    "decoder": "Decoders",
    "encoder-decoder": "Encoder-decoders",
    "image": "Images",
    "sound": "Sound",
}
INTRODUCTION = """\
# Architectures

Which method works with which architecture. `python -m tests.architectures` makes this page: it trains a model from a
tiny configuration with one method at a time, saves it, loads it, and compares. Tests repeat that, graphs for seven
architectures only.

- **yes**: it trains, and the loaded file has the logits of the trained model, bit for bit. Where neurons or heads were
  removed they agree up to floating-point rounding. Graphs agree as `hf-compress run` checks it.
- **no**: it is refused before the first training step. The note has the sentence that you would read.
- **-**: it has no meaning there.

Nothing fails after training has begun. A model of an architecture that is not in the table may work as well: all
methods look for linear layers and embeddings, and only removal, attention and layer losses need to know their names.
"""

UNTRIED = ""  # Until the next run; a test refuses a page with such a cell.
Outcomes = dict[str, dict[str, str]]


def recorded() -> Outcomes:
    """Return what is recorded of each architecture and method."""
    found: Outcomes = json.loads(OUTCOMES.read_text("utf-8")) if OUTCOMES.exists() else {}
    return found


def record(outcomes: Outcomes) -> None:
    """Write `outcomes` and the page, in the order of the lists."""
    known = [family.name for family in FAMILIES if family.name in outcomes]
    ordered = {
        name: {one.title: outcomes[name][one.title] for one in METHODS if one.title in outcomes[name]}
        for name in known
    }
    OUTCOMES.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(ordered), "utf-8")


def page(outcomes: Outcomes) -> str:
    """Return the page as Markdown."""
    columns = "\n".join(f"| {one.title} | {one.option} |" for one in METHODS)
    parts = [INTRODUCTION, "| column | what is asked for |\n| --- | --- |\n" + columns + "\n"]
    notes: dict[str, str] = {}
    for kind, title in TITLES.items():
        families = [family for family in FAMILIES if family.kind == kind and family.name in outcomes]
        if families:
            parts.append(f"## {title}\n\n{_table(families, outcomes, notes)}\n")
    parts.append("\n".join(f"[^{number}]: {sentence}" for sentence, number in notes.items()) + "\n")
    return "\n".join(parts)


def _table(families: list[Family], outcomes: Outcomes, notes: dict[str, str]) -> str:
    headings = ["architecture", *(one.title for one in METHODS)]
    rows = [
        [_named(family), *(_cell(outcomes[family.name].get(one.title, UNTRIED), notes) for one in METHODS)]
        for family in families
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *rows])


def _named(family: Family) -> str:
    return family.title + (f" ({family.known})" if family.known else "")


def _cell(outcome: str, notes: dict[str, str]) -> str:
    if outcome in (YES, NOT_TEXT, UNTRIED):
        return outcome
    return f"no[^{notes.setdefault(outcome, str(len(notes) + 1))}]"
