"""Names with markup, HTML, fences or line breaks show as they are, on the card and in the terminal."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from hf_compress import DatasetFacts, PruningArguments, Recipe, Report
from hf_compress.report.card import render, save_card
from hf_compress.report.eval_results import render_results
from hf_compress.report.facts import Baseline, Example
from hf_compress.report.intervals import Interval
from hf_compress.report.latency import Latency, Ratio, Timing, Variant
from hf_compress.report.preprocessing import Preprocessing
from hf_compress.report.report import FormatFacts
from hf_compress.report.snippets import snippets
from hf_compress.report.tables import comparison_table, latency_table, markdown_table, recipe_table, terminal_table

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {
    "script": "x<!--<script>alert(1)</script>",
    "image": '<img src=x onerror="alert(1)">',
    "fence": "a\n```\n# Heading\n<b>bold</b>\n```",
    "lines": "a\r\n---\r\nlicense: mit\u2028## Heading\n- item",
    "markdown": "*a* _b_ [c](javascript:alert) `d` | e \\ ~~f~~ ![g](h)",
    "code": "``` `` ` <script>",
    "markup": "[/red] [bold]x[/bold] \x1b[31mred\x1b[0m [a-z]+",
    "jinja": "{{ report }} {% if %}",
}


def hostile(name: str) -> Report:
    """The golden report with `name` wherever a user chooses a name."""
    report = Report.load(GOLDEN)
    interval = Interval(0.1, 0.0, 0.2, 0.95, name, name, 10)
    timing = Timing(name, 1, 8, 0.1, [0.1, 0.1], Ratio(1.0, [1.0, 1.0], [1.0, 1.0]))
    return replace(
        report,
        recipe=Recipe(replace(report.recipe.distillation, distill_teacher=name)),
        base_model=name,
        base_model_hub_id=None,
        base_model_revision=name,
        model_class=name,
        task=name,
        dataset=DatasetFacts(
            name, name, name, 10, name, 10, eval_part=name, preprocessing=Preprocessing("text", [name], name)
        ),
        compressed=report.compressed | {name: 0.5},
        dense={**(report.dense or {}), name: 0.5},
        intervals={},
        comparison={"accuracy": interval, name: interval},
        without_interval={name: name},
        reasons=[name],
        failed_formats={"openvino": name},
        formats={"onnx": FormatFacts(1000, 0.1, {})},
        hub_id=name,
        labels={0: name, 1: f"{name} "},
        example=Example([name], [{"label": name, "score": 0.5}]),
        license=name,
        languages=[name],
        baseline=Baseline(start=True, name=name),
        curves={name: [[1, 0.5], [2, 0.25]]},
        author={"tags": [name], "thumbnail": name},
        hyperparameters=report.hyperparameters | {"optim_args": name},
        command=name,
        hardware=name,
        versions=report.versions | {"torch": name},
        latency=Latency(name, name, 1, 1, {}, [Variant(name, 0.1, 1000)], [timing]),
    )


def shown(name: str) -> str:
    """The name on one line and without control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\u2028]+", " ", name).split())


def tokens(card: str) -> list[Token]:
    """All tokens of the card's Markdown, blocks and their parts."""
    body = card.split("\n---\n", 1)[1]
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    return [token for block in blocks for token in (block, *(block.children or []))]


def structure(card: str) -> list[str]:
    """The kinds of the blocks, by which the headings, lists, tables and code of two cards are compared."""
    return [token.type for token in tokens(card) if token.level == 0]


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_adds_nothing_to_the_card(kind: str) -> None:
    card, plain = render(hostile(NAMES[kind])), render(hostile("harmless"))
    assert structure(card) == structure(plain)
    found = tokens(card)
    html = [[token.content for token in part if token.type.startswith("html")] for part in (found, tokens(plain))]
    assert html[0] == html[1]
    assert not [token for token in found if token.type in ("em_open", "s_open") and "alert" in token.content]
    links = [str(token.attrs.get("href") or token.attrs.get("src")) for token in found if token.attrs]
    assert {link for link in links if link != "None"} <= {"report.json", "size.png", "training.png"}


@pytest.mark.parametrize("kind", NAMES)
def test_the_card_shows_a_name_as_it_is(kind: str) -> None:
    found = tokens(render(hostile(NAMES[kind])))
    heading = next(i for i, token in enumerate(found) if token.type == "heading_open" and token.tag == "h1")
    title = "".join(child.content for child in found[heading + 1].children or [])
    assert shown(NAMES[kind]) in title
    assert shown(NAMES[kind]) in [token.content for token in found if token.type == "code_inline"]


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_adds_nothing_to_the_metadata(kind: str) -> None:
    report = replace(hostile(NAMES[kind]), dataset=replace(hostile(NAMES[kind]).dataset, hub_id="me/data"))
    plain = replace(hostile("harmless"), dataset=replace(hostile("harmless").dataset, hub_id="me/data"))
    front = [yaml.safe_load(render(one).split("---\n", 2)[1]) for one in (report, plain)]
    assert front[0].keys() == front[1].keys()
    assert front[0]["model-index"][0]["results"][0].keys() == front[1]["model-index"][0]["results"][0].keys()


@pytest.mark.parametrize("kind", NAMES)
def test_tables_show_a_name_without_markup(kind: str) -> None:
    report, console = hostile(NAMES[kind]), Console(width=400, record=True, color_system=None)
    recipe = Recipe(pruning=PruningArguments(0.5, prune_exclude=["[a-z]+[/red]"]))
    assert report.latency is not None
    for table in (
        comparison_table(report),
        terminal_table([report]),
        latency_table(report.latency),
        recipe_table(recipe),
    ):
        console.print(table)
    text = console.export_text(clear=False)
    assert "\x1b" not in text and "\r" not in text
    assert text.count(shown(NAMES[kind])) >= 4
    assert "[a-z]+[/red]" in text
    assert len(markdown_table([report]).splitlines()) == 3


def test_a_folder_with_hostile_names_has_a_card(tmp_path: Path) -> None:
    hostile(NAMES["script"]).save(tmp_path)
    assert save_card(tmp_path).read_text("utf-8") == render(Report.load(tmp_path))


@pytest.mark.parametrize("kind", NAMES)
def test_the_title_of_the_author_adds_no_markup(kind: str) -> None:
    report = replace(Report.load(GOLDEN), author={"title": shown(NAMES[kind])})
    found = tokens(render(report))
    assert structure(render(report)) == structure(render(replace(report, author={"title": "harmless"})))
    title = next(token for number, token in enumerate(found) if found[number - 1].tag == "h1")
    assert "".join(child.content for child in title.children or []) == shown(NAMES[kind])


@pytest.mark.parametrize("kind", NAMES)
def test_code_on_the_card_holds_names_as_literals(kind: str) -> None:
    for snippet in snippets(hostile(NAMES[kind])):
        if snippet.language == "python":
            literals = {node.value for node in ast.walk(ast.parse(snippet.code)) if isinstance(node, ast.Constant)}
            assert NAMES[kind] in literals


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_adds_nothing_to_the_results_file(kind: str) -> None:
    report = replace(hostile(NAMES[kind]), dataset=replace(hostile(NAMES[kind]).dataset, hub_id="me/data"))
    (entry,) = yaml.safe_load(render_results(report) or "")
    assert entry.keys() == {"dataset", "value", "date", "notes"}
