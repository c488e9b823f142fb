"""The YAML at the head of the card, which the Hub reads."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_compress.layers.grids import SCHEMES
from hf_compress.report.markdown import one_line
from hf_compress.report.report import Report
from hf_compress.report.scores import is_share
from hf_compress.report.sections.quality import metric_names
from hf_compress.report.sections.summary import title

# Names of ours (or of the GLUE metric) for which the Hub has another id.
HUB_METRICS = {"pearson": "pearsonr"}
# All tags that a card of ours may have had.
OWN_TAGS = ("hf-compress", "distillation", "pruning", "quantization", "onnx", "transformers.js", *SCHEMES)


def metadata(report: Report) -> dict[str, Any]:
    """The metadata that the Hub reads from the head of the card.

    It names a base model or a dataset only if the Hub has it. Scores belong to a dataset of the Hub, so without one
    there is no model-index.
    """
    recipe, dataset = report.recipe, report.dataset
    names = [name for name in metric_names(report) if is_share(name)]
    results = [] if dataset.hub_id is None else [_result(report, name) for name in names]
    hub_id = report.base_model_hub_id
    data = ModelCardData(
        base_model=None if hub_id is None else one_line(hub_id),
        base_model_relation=("quantized" if recipe.quantization.enabled else "finetune") if hub_id else None,
        library_name="transformers",
        pipeline_tag=one_line(report.pipeline_tag),
        datasets=None if dataset.hub_id is None else [one_line(dataset.hub_id)],
        metrics=[_hub_metric(name) for name in names],
        tags=_tags(report),
        model_name=title(report) if results else None,
        eval_results=results or None,
    )
    values: dict[str, Any] = data.to_dict()
    return values


def inherited(report: Report) -> dict[str, Any]:
    """Metadata that are those of the base model and the data, which the author's own override."""
    values = {"language": report.languages, "license": report.license}
    return {name: value for name, value in values.items() if value}


def _tags(report: Report) -> list[str]:
    recipe = report.recipe
    methods = ((recipe.distillation, "distillation"), (recipe.pruning, "pruning"))
    tags = ["hf-compress", *(tag for method, tag in methods if method.enabled)]
    if recipe.quantization.enabled:
        tags += ["quantization", str(recipe.quantization.quant_scheme)]
    return tags


def _result(report: Report, name: str) -> EvalResult:
    dataset = report.dataset
    full_name = dataset.name if dataset.config is None else f"{dataset.name} {dataset.config}"
    return EvalResult(
        task_type=one_line(report.pipeline_tag),
        dataset_type=one_line(str(dataset.hub_id)),
        dataset_name=one_line(full_name),
        dataset_config=None if dataset.config is None else one_line(dataset.config),
        dataset_split=one_line(dataset.eval_split),
        metric_type=_hub_metric(name),
        metric_value=report.compressed[name],
        metric_name=one_line(name),
    )


def _hub_metric(name: str) -> str:
    return one_line(HUB_METRICS.get(name, name))
