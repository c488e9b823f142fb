"""The metadata of a card hold for the Hub's own readers, say what is known, and claim nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_eval_result, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hf_compress.prune.arguments import PruningArguments
from hf_compress.recipe import Recipe
from hf_compress.report.card import render
from hf_compress.report.eval_results import render_results
from hf_compress.report.report import Report
from tests.golden.reports import golden_reports

REPORTS = golden_reports()


@pytest.fixture
def report() -> Report:
    return REPORTS["kd+mp60+int8"]


def data(report: Report) -> Any:
    return ModelCard(render(report)).data


def test_the_metadata_hold_base_dataset_tags_and_scores(report: Report) -> None:
    found = data(report)
    assert (found.base_model, found.license, found.language) == ("someone/minilm-l6", "apache-2.0", ["en"])
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-classification")
    assert found.datasets == ["nyu-mll/glue"]
    assert found.tags == ["hf-compress", "distillation", "pruning", "quantization", "int8"]
    (result,) = found.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert result.dataset_revision == report.dataset.revision
    assert (result.metric_type, result.metric_value) == ("accuracy", report.compressed["accuracy"])


@pytest.mark.parametrize("name", REPORTS)
def test_the_hubs_own_readers_take_the_metadata(name: str) -> None:
    card = ModelCard(render(REPORTS[name]))
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    front = yaml.safe_load(render(REPORTS[name]).split("---\n")[1])
    assert list(front) == list(dict.fromkeys(front))
    if "model-index" in front:
        model, results = model_index_to_eval_results(front["model-index"])
        assert eval_results_to_model_index(model, results) == front["model-index"]


def test_a_result_is_one_that_the_hub_would_write(report: Report) -> None:
    said = metadata_eval_result(
        model_pretty_name=data(report).model_name,
        task_pretty_name="",
        task_id="text-classification",
        metrics_pretty_name="accuracy",
        metrics_id="accuracy",
        metrics_value=0.856,
        dataset_pretty_name="glue sst2",
        dataset_id="nyu-mll/glue",
        dataset_config="sst2",
        dataset_split="validation",
        dataset_revision=report.dataset.revision,
    )
    (theirs,) = model_index_to_eval_results(said["model-index"])[1]
    (ours,) = data(report).eval_results
    theirs.verified = theirs.task_name = None  # We say neither.
    assert theirs.is_equal_except_value(ours) and theirs.metric_value == ours.metric_value


def test_only_a_trained_base_model_makes_a_quantized_one(report: Report) -> None:
    assert data(report).base_model_relation == "finetune"
    assert data(replace(report, starts_trained=None)).base_model_relation == "finetune"
    trained = replace(report, starts_trained=True)
    assert data(trained).base_model_relation == "quantized"
    pruned = replace(trained, recipe=Recipe(pruning=PruningArguments(prune_sparsity=0.6)))
    assert data(pruned).base_model_relation == "finetune"


def test_a_local_base_model_is_not_in_the_metadata() -> None:
    found = data(REPORTS["plain"]).to_dict()
    assert not {"base_model", "base_model_relation", "license", "language", "datasets", "model-index"} & found.keys()
    assert render_results(REPORTS["plain"]) is None


def test_a_part_of_a_split_is_named_as_such(report: Report) -> None:
    (result,) = data(REPORTS["refused"]).eval_results
    assert result.dataset_split == "validation[:500]"
    some = replace(report, dataset=replace(report.dataset, eval_rows=500))
    assert data(some).eval_results[0].dataset_split == "validation (500 of 872 rows)"


def test_pearson_gets_its_id_on_the_hub() -> None:
    assert data(REPORTS["regression"]).metrics == ["pearsonr", "spearmanr"]


def test_tags_name_the_runtimes_that_run_the_model(report: Report) -> None:
    assert {"onnx", "transformers.js", "films"} <= set(data(REPORTS["pushed"]).tags)
    assert not {"onnx", "transformers.js"} & set(data(report).tags)
    pair = replace(REPORTS["regression"], formats=REPORTS["pushed"].formats)
    assert "onnx" in data(pair).tags and "transformers.js" not in data(pair).tags


def test_the_widget_shows_the_example_with_its_answer(report: Report) -> None:
    example = report.example
    assert example is not None
    assert data(report).widget == [{"text": example.inputs[0], "output": example.output}]
    assert "widget" not in data(REPORTS["regression"]).to_dict()
    assert "widget" not in data(replace(report, example=None)).to_dict()


def test_emissions_are_given_in_grams(report: Report) -> None:
    assert data(REPORTS["pushed"]).co2_eq_emissions["emissions"] == pytest.approx(21.3)
    assert "co2_eq_emissions" not in data(report).to_dict()


def test_the_author_overrides_and_adds(report: Report) -> None:
    author = {"license": "mit", "base_model": "me/base", "tags": ["films", "int8"], "text": "Words.", "title": "Mine"}
    found = data(replace(report, author=author))
    assert (found.license, found.base_model, found.model_name) == ("mit", "me/base", "Mine")
    assert found.tags[-2:] == ["int8", "films"]
    assert not {"text", "title"} & found.to_dict().keys()


def test_the_results_file_is_in_the_hubs_own_form() -> None:
    report = REPORTS["refused"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(render_results(report) or ""))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/glue", "sst2", 0.81)
    assert entry.dataset_revision == report.dataset.revision and entry.date == report.created
    assert entry.notes == "accuracy on validation[:500], 500 rows, measured by hf_compress"
    assert render_results(REPORTS["retrieval"]) is None  # A loss is no score.
