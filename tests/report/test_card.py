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
from hf_compress.report.report import Report
from hf_compress.report.units import human_bytes

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def report() -> Report:
    return Report.load(GOLDEN)


def body(report: Report) -> str:
    return ModelCard(render(report)).text


def test_the_golden_report_renders_the_golden_card(report: Report) -> None:
    """To accept a change of the card, write the golden card again and read the difference in git:

    python -c "from pathlib import Path; from hf_compress.report.card import Report, render; \
    Path('tests/golden/card.md').write_text(render(Report.load('tests/golden')), 'utf-8')"
    """
    assert render(report) == (GOLDEN / "card.md").read_text("utf-8")


def test_the_metadata_holds_base_dataset_tags_and_scores(report: Report) -> None:
    data = ModelCard(render(report)).data
    assert (data.base_model, data.base_model_relation) == ("someone/minilm-l6", "quantized")
    assert (data.library_name, data.pipeline_tag, data.datasets) == (
        "transformers",
        "text-classification",
        ["nyu-mll/glue"],
    )
    assert data.tags == ["hf-compress", "distillation", "pruning", "quantization", "int8"]
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert (result.metric_type, result.metric_value) == ("accuracy", report.compressed["accuracy"])


def test_pearson_gets_its_id_on_the_hub(report: Report) -> None:
    scores = {"pearson": 0.87, "spearmanr": 0.86}
    regression = replace(report, main_metric="pearson", dense=scores, teacher=None, compressed=scores)
    assert ModelCard(render(regression)).data.metrics == ["pearsonr", "spearmanr"]


def test_without_quantization_the_model_is_a_finetune(report: Report) -> None:
    pruned = replace(report, recipe=Recipe(pruning=PruningArguments(prune_sparsity=0.6)))
    data = ModelCard(render(pruned)).data
    assert data.base_model_relation == "finetune"
    assert data.tags == ["hf-compress", "pruning"]


def test_a_local_base_model_is_not_in_the_metadata(report: Report) -> None:
    local = replace(report, base_model="runs/dense", base_model_hub_id=None, base_model_revision=None)
    data = ModelCard(render(local)).data.to_dict()
    assert "base_model" not in data
    assert "base_model_relation" not in data
    assert "`runs/dense`" in body(local)


def test_local_data_claims_no_dataset_of_the_hub(report: Report) -> None:
    synthetic = replace(report, dataset=replace(report.dataset, name="synthetic", config=None, hub_id=None))
    data = ModelCard(render(synthetic)).data.to_dict()
    assert "datasets" not in data
    assert not {"model-index", "model_name"} & set(data)
    assert "huggingface.co/datasets" not in body(synthetic)
    assert "not a dataset of the Hub" in body(synthetic)


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
    rows = [line for line in text.splitlines() if line.startswith(("| weights on disk", "| **accuracy**", "|---|"))]
    assert {line.count("|") for line in rows[:3]} == {6 if distilled else 5}


def test_a_regression_names_the_squared_error(report: Report) -> None:
    assert "Kullback-Leibler" in body(report)
    regression = body(replace(report, head="regression"))
    assert "squared difference of the logits" in regression
    assert "Kullback-Leibler" not in regression


def test_scores_show_points_and_losses_do_not(report: Report) -> None:
    worse = body(replace(report, compressed={"accuracy": 0.8432, "loss": 0.5}))
    assert "| **accuracy** | 85.32 | 85.32 | 84.32 | -1.00 points |" in worse
    assert "| loss | 0.4201 | 0.4201 | 0.5 | +0.0799 |" in worse


def test_the_code_on_the_card_imports_the_package_first(report: Report) -> None:
    code = body(report).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert code.startswith("import hf_compress")


def test_save_card_writes_the_card_and_its_picture(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    path = save_card(tmp_path)
    assert path.read_text("utf-8") == render(report)
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", body(report))
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_without_the_extra_the_card_has_no_picture(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.save(tmp_path)
    card = save_card(tmp_path).read_text("utf-8")
    assert "size.png" not in card and "| **packed file** |" in card
    assert Report.load(tmp_path).card_picture is None
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
    assert len(folders) >= 10
    assert not [folder.name for folder in folders if not is_current(folder)]
