"""A section of the card is an entry of a registry, and a card belongs to the template that rendered it."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from transformers.pipelines import SUPPORTED_TASKS

from hf_compress.distill import LOSSES, DistillationArguments, Loss
from hf_compress.export import FORMATS
from hf_compress.hub.checking import render_command
from hf_compress.layers import SCHEMES, Grid, Scheme
from hf_compress.models.kinds import HEAD_KINDS
from hf_compress.models.shares import Shares
from hf_compress.prune import CRITERIA, PATTERNS, SCHEDULES, Criterion, Pattern, PruningArguments, Schedule
from hf_compress.quantize import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report import SECTIONS, Report, Section, save_card
from hf_compress.report.card import is_current, render, template_version
from hf_compress.report.contents import contents
from hf_compress.report.report import FormatFacts
from hf_compress.report.snippets import WITHOUT_PIPELINE

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def report() -> Report:
    return Report.load(GOLDEN)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Section:
    """A section that a user adds through the registry alone."""
    template = "Half of the training took {{ half }} steps, on {{ report.hardware }}."
    section = Section("steps", "Steps", 45, lambda report: {"half": report.train_steps // 2}, template)
    monkeypatch.setitem(SECTIONS, section.name, section)
    return section


def headings(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.MULTILINE)


def test_a_section_is_rendered_at_its_place(report: Report, steps: Section) -> None:
    card = render(report)
    assert "## Steps\n\nHalf of the training took 562 steps, on Some CPU" in card
    found = headings(card)
    assert found[found.index("How it was made") + 1] == "Steps"
    assert found[found.index("Steps") + 1] == "Limits"


def test_a_section_without_text_is_left_out(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    before = headings(render(report))
    empty = Section("empty", "Empty", 5, lambda report: {}, "{% if report.latency %}x{% endif %}\n")
    monkeypatch.setitem(SECTIONS, "empty", empty)
    assert headings(render(report)) == before


def test_every_section_has_its_own_name_and_place() -> None:
    assert all(section.name == name for name, section in SECTIONS.items())
    assert len({section.order for section in SECTIONS.values()}) == len(SECTIONS)


def test_the_template_version_follows_the_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    before = template_version()
    for change in ({"template": "other"}, {"title": "Other"}, {"order": -1}):
        with monkeypatch.context() as context:
            context.setitem(SECTIONS, "limits", replace(SECTIONS["limits"], **change))
            assert template_version() != before
    assert template_version() == before


def test_saving_a_card_records_its_template(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    assert "card_template" not in report.to_dict()
    save_card(tmp_path)
    said = {
        "card_template": template_version(),
        "card_picture": "size.png",
        "files": contents(tmp_path),
        "card_curve": "training.png",
    }
    assert Report.load(tmp_path) == replace(report, **said)
    assert is_current(tmp_path)


def test_a_card_of_another_template_is_rendered_again(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.save(tmp_path)
    save_card(tmp_path)
    changed = replace(SECTIONS["limits"], template="Only for cats.")
    monkeypatch.setitem(SECTIONS, "limits", changed)
    assert not is_current(tmp_path)
    *_, code = shlex.split(render_command(tmp_path))
    exec(code, {})
    assert is_current(tmp_path)
    assert "Only for cats." in (tmp_path / "README.md").read_text("utf-8")


def test_code_on_the_card_uses_a_pipeline_that_exists(report: Report) -> None:
    for kind in HEAD_KINDS.values():
        card = render(replace(report, pipeline_tag=kind.pipeline_tag))
        assert (f'pipeline("{kind.pipeline_tag}"' in card) == (kind.pipeline_tag in SUPPORTED_TASKS)
        assert (kind.pipeline_tag in WITHOUT_PIPELINE) == (kind.pipeline_tag not in SUPPORTED_TASKS)


def test_the_code_of_every_format_is_valid(report: Report) -> None:
    facts = FormatFacts(1000, 0.1, {"accuracy": 0.85})
    names = [name for name, kind in FORMATS.items() if kind.write is not None]
    card = render(replace(report, formats=dict.fromkeys(names, facts)))
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        compile(code, "card", "exec")
    assert card.count("```python") == 1 + sum(bool(FORMATS[name].loading) for name in names)
    assert all(FORMATS[name].card in card for name in names)


def test_a_card_that_fails_leaves_the_folder_as_it_was(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.save(tmp_path)
    save_card(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setitem(SECTIONS, "broken", Section("broken", "Broken", 99, lambda report: {}, "{{ missing }}"))
    with pytest.raises(UndefinedError):
        save_card(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


WORDS = {"help": "odd", "card": "odd words", "citation": "@misc{odd2026}"}
KEEP_ALL = Loss("odd", lambda student, teacher, temperature: student.sum(-1), None, **WORDS)
# A registry, its new entry, and the recipe that uses it.
ADDED = {
    "loss": (LOSSES, KEEP_ALL, lambda: {"distillation": DistillationArguments("self", distill_loss="odd")}),
    "criterion": (
        CRITERIA,
        Criterion("odd", lambda evidence: evidence.weight, **WORDS),
        lambda: {"pruning": PruningArguments(0.5, prune_criterion="odd")},
    ),
    "pattern": (
        PATTERNS,
        Pattern("odd", lambda scores, input_dim: scores, **WORDS),
        lambda: {"pruning": PruningArguments(0.5, prune_pattern="odd")},
    ),
    "schedule": (
        SCHEDULES,
        Schedule("odd", lambda progress, initial, final: final, **WORDS),
        lambda: {"pruning": PruningArguments(0.5, prune_schedule="odd")},
    ),
    "scheme": (
        SCHEMES,
        Scheme(name="odd", weight=Grid(4, "row"), embedding=Grid(4, "row"), **WORDS),
        lambda: {"quantization": QuantizationArguments("odd")},
    ),
}


@pytest.mark.parametrize("kind", ADDED)
def test_an_added_registry_entry_is_on_the_card(report: Report, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    registry, entry, method = ADDED[kind]
    monkeypatch.setitem(registry, "odd", entry)
    card = render(replace(report, recipe=Recipe(**method()), teacher=None))
    assert "odd words" in card.partition("## How it was made")[2]
    assert "@misc{odd2026}" in card.partition("## Citation")[2]


def test_groups_are_named_on_the_card(report: Report) -> None:
    recipe = Recipe(pruning=PruningArguments(0.5, prune_pattern="neurons+heads"))
    assert recipe.name == "mp50-neurons-heads"
    card = render(replace(report, recipe=recipe, teacher=None))
    assert "50 % of the neurons of its feed-forward layers and of its attention heads are zero" in card
    assert "Whole neurons of the feed-forward layers and whole attention heads are zero" in card
    assert "All other weights stay dense." in card


def test_an_added_format_is_on_the_card(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(FORMATS["onnx"], name="odd", card="`odd`: nobody runs it.", loading="import odd_{auto_class}")
    monkeypatch.setitem(FORMATS, "odd", odd)
    card = render(replace(report, formats={"odd": FormatFacts(1000, 0.1, {"accuracy": 0.85})}))
    assert "- `odd`: nobody runs it." in card
    assert "import odd_AutoModelForSequenceClassification" in card


def test_the_card_says_that_zeros_were_chosen_at_once(report: Report) -> None:
    said = {0.0: "when training began", 0.1: "after 10 % of training"}
    for begin, when in said.items():
        pruning = PruningArguments(0.5, prune_initial_sparsity=0.5, prune_begin=begin)
        card = render(replace(report, recipe=replace(report.recipe, pruning=pruning)))
        assert f"All zeros, 50 %, were chosen at once, {when}." in card and "Sparsity grew" not in card


def test_the_card_says_which_rows_only_the_teacher_labelled(report: Report) -> None:
    distillation = DistillationArguments(
        "self", distill_augment=2, distill_extra=["a|b.txt"], distill_extra_share=0.25
    )
    rows = {"augmented": 24000, "a|b.txt": 300}
    card = render(replace(report, recipe=replace(report.recipe, distillation=distillation), teacher_rows=rows))
    said = "Only the teacher labelled 24,300 further rows: 24,000 made of training rows (words replaced by close ones;"
    assert f"{said} the texts of a pair also swapped or paired anew) and 300 of `a|b.txt`." in card
    assert "They were 25 % of the rows of each epoch." in card
    assert "jiao2020tinybert" in card
    assert "further rows" not in render(report)


@pytest.mark.parametrize(("scheme", "floating"), [("int8", False), ("int8-weight", False), ("int8-dynamic", True)])
def test_the_card_says_what_convolutions_leave_alone(report: Report, scheme: str, floating: bool) -> None:
    """With one scale per token their inputs are not rounded. Matrices that no method touched are named."""
    left = {f"vit.{name}": weights for name, weights in (("a", 40_000), ("b", 30_000), ("c", 20_000), ("d", 10_000))}
    shares = Shares(900_000, 3_000, 1_000_000, 4_000, convolutions=2, others=left)
    recipe = replace(report.recipe, quantization=QuantizationArguments(quant_scheme=scheme))
    card = render(replace(report, recipe=recipe, touched={"quantized": shares}))
    assert "Integers hold 90 % of all weights and take 75 % of the bytes. 2 of the layers are convolutions" in card
    assert ("Inputs of convolutions stay in floating point." in card) == floating
    said = "`vit.a` (40,000 weights), `vit.b` (30,000 weights) and `vit.c` (20,000 weights) and 1 more."
    assert f"Not touched and in floating point: {said}" in card
    assert "These layers hold" not in card
