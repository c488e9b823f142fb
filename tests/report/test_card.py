"""The card says what the report says, in the words of the template, and claims nothing that the Hub does not have."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_compress.distill import DistillationArguments
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report.card import is_current, render, save_card
from hf_compress.report.facts import Baseline
from hf_compress.report.report import Report
from hf_compress.report.units import human_bytes
from tests.golden.reports import CARDS, golden_reports

GOLDEN = Path(__file__).parents[1] / "golden"
REPORTS = golden_reports()


@pytest.fixture
def report() -> Report:
    return Report.load(GOLDEN)


def body(report: Report) -> str:
    return ModelCard(render(report)).text


@pytest.mark.parametrize("name", REPORTS)
def test_golden_reports_render_golden_cards(name: str) -> None:
    """To accept a change of the cards: `python -m tests.golden.reports`, and read the difference in git."""
    assert render(REPORTS[name]) == (CARDS / f"{name}.md").read_text("utf-8")


def test_every_golden_card_has_its_report() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == set(REPORTS)
    assert len(REPORTS) >= 8 + 4


def test_local_data_links_to_no_dataset_of_the_hub(report: Report) -> None:
    synthetic = replace(report, dataset=replace(report.dataset, name="synthetic", config=None, hub_id=None))
    assert "huggingface.co/datasets" not in body(synthetic)
    assert "trained on `synthetic`" in body(synthetic)


def test_what_is_not_known_is_left_out_and_not_denied() -> None:
    for name in ("plain", "pushed"):
        words = re.sub(r"```.*?```", "", body(REPORTS[name]), flags=re.DOTALL)
        assert not re.search(r"not a dataset|not a published|unknown|\bNone\b", words)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_the_card_names_exactly_the_methods_used(
    report: Report, distilled: bool, pruned: bool, quantized: bool
) -> None:
    recipe = Recipe(
        DistillationArguments(distill_teacher="teacher") if distilled else DistillationArguments(),
        PruningArguments(prune_sparsity=0.4) if pruned else PruningArguments(),
        QuantizationArguments(quant_scheme="int4-weight") if quantized else QuantizationArguments(),
    )
    text = body(replace(report, recipe=recipe, teacher=report.teacher if distilled else None))
    assert ("**Distillation.**" in text) == distilled
    assert ("**Pruning.**" in text) == ("The zeros make the file smaller" in text) == pruned
    assert ("**Quantization-aware training**" in text) == quantized
    assert ("No method was used" in text) == (not (distilled or pruned or quantized))
    assert "ranges of the int8 activations are fixed" not in text


def test_no_table_has_more_than_four_columns() -> None:
    for name, report in REPORTS.items():
        rows = [line for line in body(report).splitlines() if line.startswith("|")]
        assert rows and max(row.count("|") for row in rows) <= 5, name


def test_a_regression_names_the_squared_error(report: Report) -> None:
    assert "Kullback-Leibler" in body(report)
    regression = body(replace(report, head="regression"))
    assert "squared difference of the logits" in regression
    assert "Kullback-Leibler" not in regression


def test_scores_show_points_and_losses_do_not(report: Report) -> None:
    worse = body(replace(report, compressed={"accuracy": 0.8432, "loss": 0.5}, comparison={}))
    assert "| **accuracy** | 85.32 | 84.32 | -1.00 |" in worse
    assert "| loss | 0.4201 | 0.5 | +0.0799 |" in worse


def test_the_first_screen_says_size_score_and_interval() -> None:
    screen = body(REPORTS["pushed"]).partition("## Use it")[0]
    assert "# MiniLM for film reviews, 16 MB\n" in screen
    assert "16.2 MB instead of 90.9 MB: 5.6 times smaller." in screen
    assert "Accuracy 85.60 against 85.32 of the dense model: +0.28 points (95 % interval: -0.80 to +1.38)." in screen
    assert "**ACCEPT**" in screen


def test_a_title_is_in_words(report: Report) -> None:
    assert "\n# minilm-l6 for SST-2, 16.2 MB, int8 + 60 % sparse\n" in render(report)
    assert "\n# minilm-l6 for SST-2, 16.2 MB, distilled\n" in render(REPORTS["kd"])
    assert "\n# minilm-l6 for SST-2, 16.2 MB, not compressed\n" in render(REPORTS["dense"])


@pytest.mark.parametrize(
    ("base", "hub_id", "name"),
    [
        ("runs/tagger/final", None, "tagger"),
        ("runs/tagger/checkpoint-500/", None, "tagger"),
        ("out/final", None, "final"),
        ("final", None, "final"),
        ("acme/model", "acme/model", "model"),
    ],
)
def test_a_title_passes_over_folders_without_a_name(report: Report, base: str, hub_id: str | None, name: str) -> None:
    report = replace(report, base_model=base, base_model_hub_id=hub_id)
    assert f"\n# {name} for SST-2, " in render(report)


def test_a_card_says_what_dense_means(report: Report) -> None:
    said = body(report).partition("- **Dense** is ")[2]
    assert said.startswith(
        "the model that this training started from, `sst2-dense`, uncompressed and in fp32. It had been trained for "
        "this task for 2 epochs. The compressed model was trained for 3 epochs more; the dense model was not."
    )
    given = replace(report, baseline=Baseline(start=False))
    assert "whose scores the training script gave" in body(given)
    assert "Only its size is known" in body(REPORTS["plain"])
    hub = replace(report, baseline=Baseline(start=True, name="me/dense"))
    assert "`me/dense`, uncompressed and in fp32. It had a trained head for it." in body(hub)


def test_failed_formats_and_parts_of_a_split_are_said() -> None:
    card = body(REPORTS["refused"])
    assert "- **Not written: `onnx`.** The graph computes something else" in card
    assert "`validation[:500]` of" in card and "This is a part of the split" in card
    assert "**REGRESSION**: The accuracy fell by 4.32 points" in card


def test_the_authors_words_stand_behind_the_code() -> None:
    card = body(REPORTS["pushed"])
    words = card.index("Made for the reviews of *our* cinema.")
    assert card.index("## Use it") < words < card.index("## Evaluation")


def test_the_command_is_folded_by_its_options(report: Report) -> None:
    assert "    --output_dir 'my runs/sst2'\n" in body(report)
    for odd in ("run 'a\nb' --c d", "run --name 'open"):
        assert odd in body(replace(report, command=odd))


def test_the_code_on_the_card_imports_the_package_first(report: Report) -> None:
    code = body(report).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert code.startswith("import hf_compress")


def test_save_card_writes_the_card_and_its_picture(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    path = save_card(tmp_path)
    assert path.read_text("utf-8") == render(report)
    pictures = re.findall(r"!\[.*\]\((.*)\)", body(report))
    assert pictures == ["size.png", "training.png"]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_pictures_that_no_longer_hold_are_removed(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    save_card(tmp_path)
    replace(Report.load(tmp_path), curves={}).save(tmp_path)
    assert "training.png" not in save_card(tmp_path).read_text("utf-8")
    assert not (tmp_path / "training.png").exists() and is_current(tmp_path)


def test_without_the_extra_the_card_has_no_picture(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.save(tmp_path)
    card = save_card(tmp_path).read_text("utf-8")
    assert "size.png" not in card and "| **packed file** |" in card
    assert Report.load(tmp_path).card_picture is Report.load(tmp_path).card_curve is None
    assert is_current(tmp_path) and not (tmp_path / "size.png").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (16_214_512, "16.2 MB"),
        (1_341_000_000, "1.34 GB"),
        (2_000_000_000_000, "2000 GB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(number: int, words: str) -> None:
    assert human_bytes(number) == words


def test_the_stored_cards_are_what_their_reports_say() -> None:
    """To render them again: `python -c "from hf_compress import save_card; save_card('model_cards/NAME')"`."""
    folders = [path.parent for path in (GOLDEN.parents[1] / "model_cards").glob("*/report.json")]
    assert len(folders) >= 5
    assert not [folder.name for folder in folders if not is_current(folder)]
