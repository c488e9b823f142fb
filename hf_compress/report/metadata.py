"""The YAML at the head of the card, which the Hub reads."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_compress.layers.grids import SCHEMES
from hf_compress.models.sentences import SENTENCE_KINDS
from hf_compress.report.author import author_metadata
from hf_compress.report.markdown import one_line
from hf_compress.report.phrases import metric_names, split_words, title
from hf_compress.report.report import Report
from hf_compress.report.scores import AGAINST_DENSE, is_share
from hf_compress.report.snippets import has_javascript

SENTENCES = "sentence-transformers"
# Names of ours (or of the GLUE metric) for which the Hub has another id.
HUB_METRICS = {"pearson": "pearsonr"}
# All tags that a card of ours may have had.
OWN_TAGS = ("hf-compress", "distillation", "pruning", "quantization", "onnx", "transformers.js", SENTENCES, *SCHEMES)
OWN_TAGS += tuple(tag for kind in SENTENCE_KINDS.values() for tag in kind.tags)
# Tasks for which the Hub shows a widget that takes one text.
WIDGETS = ("text-classification", "token-classification", "fill-mask")


def metadata(report: Report) -> dict[str, Any]:
    """The metadata that the Hub reads from the head of the card: what is known, and no more.

    It names a base model or a dataset only if the Hub has it. Scores belong to a dataset of the Hub, so without one
    there is no model-index. What the author says comes in the place of ours.
    """
    dataset = report.dataset
    names = [name for name in metric_names(report) if is_share(name) and name not in AGAINST_DENSE]
    results = [] if dataset.hub_id is None else [_result(report, name) for name in names]
    hub_id = report.base_model_hub_id
    data = ModelCardData(
        base_model=None if hub_id is None else one_line(hub_id),
        base_model_relation=None if hub_id is None else _relation(report),
        library_name="transformers" if report.sentence_class is None else SENTENCES,
        pipeline_tag=one_line(report.pipeline_tag),
        datasets=None if dataset.hub_id is None else [one_line(dataset.hub_id)],
        metrics=[_hub_metric(name) for name in names] or None,
        model_name=title(report) if results else None,
        eval_results=results or None,
    )
    values: dict[str, Any] = data.to_dict()
    author = author_metadata(report.author)
    tags = list(dict.fromkeys([*_tags(report), *author.get("tags", ())]))
    return values | _widget(report) | _emissions(report) | author | {"tags": tags}


def inherited(report: Report) -> dict[str, Any]:
    """Metadata that are those of the base model and the data, which the author's own override."""
    values = {"language": list(report.languages), "license": report.license}
    return {name: value for name, value in values.items() if value and name not in report.author}


def _relation(report: Report) -> str:
    """How the Hub calls the relation to the base model.

    A model is a quantized version of its base only if the base was a model for the same task.
    """
    quantized = report.recipe.quantization.enabled and report.starts_trained is True
    return "quantized" if quantized else "finetune"


def _tags(report: Report) -> list[str]:
    recipe = report.recipe
    methods = ((recipe.distillation, "distillation"), (recipe.pruning, "pruning"))
    tags = ["hf-compress", *(tag for method, tag in methods if method.enabled)]
    if recipe.quantization.enabled:
        tags += ["quantization", str(recipe.quantization.quant_scheme)]
    if report.sentence_class is not None:
        tags += [SENTENCES, *SENTENCE_KINDS[report.sentence_class].tags]
    tags += ["onnx"] if "onnx" in report.formats else []
    return tags + (["transformers.js"] if has_javascript(report) else [])


def _widget(report: Report) -> dict[str, Any]:
    """The example as the Hub shows it in its widget, with the measured answer."""
    example = report.example
    if example is None or len(example.inputs) != 1 or report.pipeline_tag not in WIDGETS:
        return {}
    entry: dict[str, Any] = {"text": one_line(example.inputs[0])}
    scored = [answer for answer in example.output if {"label", "score"} <= answer.keys()]
    if report.pipeline_tag == "text-classification" and scored:
        entry["output"] = [{"label": one_line(str(answer["label"])), "score": answer["score"]} for answer in scored]
    return {"widget": [entry]}


def _emissions(report: Report) -> dict[str, Any]:
    """What codecarbon measured, in grams, as the Hub wants it."""
    if report.emissions_kg is None:
        return {}
    said = {"emissions": 1000 * report.emissions_kg, "source": "codecarbon", "training_type": "fine-tuning"}
    return {"co2_eq_emissions": said | {"hardware_used": one_line(report.hardware)}}


def _result(report: Report, name: str) -> EvalResult:
    dataset = report.dataset
    full_name = dataset.name if dataset.config is None else f"{dataset.name} {dataset.config}"
    return EvalResult(
        task_type=one_line(report.pipeline_tag),
        dataset_type=one_line(str(dataset.hub_id)),
        dataset_name=one_line(full_name),
        dataset_config=None if dataset.config is None else one_line(dataset.config),
        dataset_split=one_line(split_words(dataset)),
        dataset_revision=dataset.revision,
        metric_type=_hub_metric(name),
        metric_value=report.compressed[name],
        metric_name=one_line(name),
    )


def _hub_metric(name: str) -> str:
    return one_line(HUB_METRICS.get(name, name))
