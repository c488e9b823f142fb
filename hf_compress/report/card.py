"""A `Report` in words: the model card, rendered from it and from nothing else."""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from hf_compress.export.formats import FORMATS
from hf_compress.extras import extra
from hf_compress.layers.grids import Grid, Scheme
from hf_compress.report.latency import Latency
from hf_compress.report.report import Report

CARD_NAME = "README.md"
PLOT_NAME = "size.png"
# Names of ours (or of the GLUE metric) for which the Hub has another id.
HUB_METRICS = {"pearson": "pearsonr"}
# Scores that are no share of one, so that hundredths of them are no points.
ABSOLUTE = ("loss", "mse", "mae", "rmse", "perplexity")


def render(report: Report) -> str:
    """The model card of `report`, as Markdown with the metadata that the Hub reads; the same for the same report."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "size": human_bytes,
        "count": "{:,}".format,
        "percent": lambda share: f"{100 * share:.4g} %",
        "duration": _duration,
        "listed": _listed,
        "quoted": lambda patterns: _listed([f"`{pattern}`" for pattern in patterns]),
    }
    template = environment.from_string(files("hf_compress.report").joinpath("card.md").read_text("utf-8"))
    recipe = report.recipe
    scheme = recipe.quantization.scheme if recipe.quantization.enabled else None
    return template.render(
        report=report,
        title=title(report),
        metadata=metadata(report).to_yaml(),
        done=_done(report),
        dataset_words=_dataset_words(report),
        scores=[_score_row(report, name) for name in _metric_names(report)],
        standard_error=_standard_error(report),
        sizes=_size_rows(report),
        speeds=[] if report.latency is None else _speed_rows(report.latency),
        formats=_format_rows(report),
        plot=PLOT_NAME,
        distill_words=_distill_words(report),
        scheme_words="" if scheme is None else _scheme_words(scheme),
        bits=_bits_words(report),
        static=scheme is not None and scheme.activation is not None and scheme.activation.per == "tensor",
        settings=_listed([f"{name} {value}" for name, value in report.hyperparameters.items()]),
        versions=_listed([f"{name} {value}" for name, value in report.versions.items()]),
    )


def save_card(folder: str | Path) -> Path:
    """The path of the card written into `folder` from its `report.json`, with the picture that the card shows.

    Raises:
        ValueError: there is no `report.json` in `folder`, or it is not what this version writes.
    """
    report = Report.load(folder)
    plot(report, Path(folder) / PLOT_NAME)
    path = Path(folder) / CARD_NAME
    path.write_text(render(report), "utf-8")
    return path


def title(report: Report) -> str:
    """A name for the model: its base, its task and its recipe."""
    return f"{Path(report.base_model).name or report.base_model} for {report.task} ({report.recipe.name})"


def metadata(report: Report) -> ModelCardData:
    """What the Hub reads from the head of the card.

    A base model or a dataset is named only if it is one of the Hub; scores belong to a dataset, so without a Hub
    dataset there is no model-index either.
    """
    recipe, dataset = report.recipe, report.dataset
    names = [name for name in _metric_names(report) if not name.endswith(ABSOLUTE)]
    results = [
        EvalResult(
            task_type=report.pipeline_tag,
            dataset_type=dataset.hub_id,
            dataset_name=dataset.name if dataset.config is None else f"{dataset.name} {dataset.config}",
            dataset_config=dataset.config,
            dataset_split=dataset.eval_split,
            metric_type=HUB_METRICS.get(name, name),
            metric_value=report.compressed[name],
            metric_name=name,
        )
        for name in names
        if dataset.hub_id is not None and math.isfinite(report.compressed[name])
    ]
    relation = "quantized" if recipe.quantization.enabled else "finetune"
    methods = ((recipe.distillation, "distillation"), (recipe.pruning, "pruning"))
    tags = ["hf-compress", *(tag for method, tag in methods if method.enabled)]
    if recipe.quantization.enabled:
        tags += ["quantization", str(recipe.quantization.quant_scheme)]
    hub_id = report.base_model_hub_id
    return ModelCardData(
        base_model=hub_id,
        base_model_relation=relation if hub_id else None,
        library_name="transformers",
        pipeline_tag=report.pipeline_tag,
        datasets=None if dataset.hub_id is None else [dataset.hub_id],
        metrics=[HUB_METRICS.get(name, name) for name in names],
        tags=tags,
        model_name=title(report) if results else None,
        eval_results=results or None,
    )


def plot(report: Report, path: Path) -> None:
    """Draws the bytes of each part of the model, dense and packed, into the PNG `path`."""
    with extra("plots", "The picture of a card"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = [
        f"packed\n{human_bytes(report.size.packed_bytes)}",
        f"dense fp32\n{human_bytes(report.size.dense_bytes)}",
    ]
    name, unit = ("MB (10⁶ bytes)", 1e6) if report.size.dense_bytes >= 1e6 else ("kB (1000 bytes)", 1e3)
    left = [0.0, 0.0]
    for (part, size), colour in zip(report.size.parts.items(), ("#7b9acc", "#2f4b7c", "#d45087"), strict=False):
        widths = [size.packed_bytes / unit, size.dense_bytes / unit]
        axes.barh(labels, widths, left=left, label=part, color=colour, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel(name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(report.size.parts), loc="lower left", bbox_to_anchor=(0, 1))
    # No version of the library in the file: the same report gives the same picture.
    figure.savefig(path, metadata={"Software": None})


def human_bytes(number: int) -> str:
    """`number` of bytes with three digits and a decimal unit, as in "16.2 MB"."""
    value, unit = float(number), "bytes"
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    if unit == "bytes":
        return f"{number} bytes"
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {unit}"


def _done(report: Report) -> list[str]:
    recipe, done = report.recipe, []
    if report.vocabulary is not None:
        done.append("cut down to the words of its training texts")
    if recipe.distillation.student_layers is not None:
        done.append("cut down to fewer layers")
    if recipe.distillation.enabled:
        done.append("distilled from a teacher")
    if recipe.pruning.enabled:
        done.append(f"pruned ({100 * recipe.pruning.prune_sparsity:g} % of the weights of its linear layers are zero)")
    if recipe.quantization.enabled:
        done.append(f"quantized (`{recipe.quantization.quant_scheme}`)")
    return done


def _dataset_words(report: Report) -> str:
    dataset = report.dataset
    config = f" ({dataset.config})" if dataset.config else ""
    if dataset.hub_id is None:
        return f"`{dataset.name}`{config}, which is not a dataset of the Hub"
    return f"[{dataset.hub_id}](https://huggingface.co/datasets/{dataset.hub_id}){config}"


def _metric_names(report: Report) -> list[str]:
    """The main metric, then the others; what is no share of one comes last."""
    return sorted(report.compressed, key=lambda name: (name.endswith(ABSOLUTE), name != report.main_metric))


def _score_row(report: Report, name: str) -> dict[str, str]:
    """One metric of the dense model, the teacher and the compressed one, as words."""
    scores = [(report.dense or {}).get(name), (report.teacher or {}).get(name), report.compressed[name]]
    shares = not name.endswith(ABSOLUTE) and all(abs(score) <= 1 for score in scores if score is not None)
    factor, form, unit = (100, ".2f", " points") if shares else (1, ".4g", "")
    dense, teacher, compressed = ("n/a" if s is None else f"{factor * s:{form}}" for s in scores)
    difference = "n/a" if scores[0] is None else f"{factor * (report.compressed[name] - scores[0]):+{form}}{unit}"
    label = f"**{name}**" if name == report.main_metric else name
    return {"name": label, "dense": dense, "teacher": teacher, "compressed": compressed, "difference": difference}


def _standard_error(report: Report) -> float | None:
    """In points, for an accuracy: the binomial one."""
    accuracy = report.compressed.get("accuracy", math.nan)
    if report.main_metric != "accuracy" or not 0 <= accuracy <= 1:
        return None
    return 100 * math.sqrt(accuracy * (1 - accuracy) / report.dataset.eval_rows)


def _size_rows(report: Report) -> list[dict[str, Any]]:
    size = report.size
    parts = [
        {"name": f"{kind}: {part}", "bytes": getattr(sizes, f"{kind}_bytes")}
        for kind in ("dense", "packed")
        for part, sizes in size.parts.items()
    ]
    dense, packed = parts[: len(size.parts)], parts[len(size.parts) :]
    return [
        {"name": "**dense fp32 file**", "bytes": size.dense_bytes},
        *dense,
        {"name": "**packed file**", "bytes": size.packed_bytes},
        *packed,
        {"name": "packed: header", "bytes": size.packed_bytes - sum(row["bytes"] for row in packed)},
        {"name": "analytic", "bytes": size.analytic_bytes},
        {"name": "entropy bound", "bytes": size.entropy_bytes},
    ]


def _speed_rows(latency: Latency) -> list[dict[str, Any]]:
    sizes = {variant.name: variant.file_bytes for variant in latency.variants}
    rows = []
    for timing in latency.timings:
        low, high = (1e3 * seconds for seconds in timing.quartiles)
        least, most = timing.speedup.interval
        rows.append(
            {
                "variant": timing.variant,
                "bytes": sizes[timing.variant],
                "shape": f"{timing.batch_size} x {timing.length}",
                "time": f"{1e3 * timing.seconds:.4g} ms",
                "quartiles": f"{low:.4g} to {high:.4g}",
                "throughput": f"{timing.throughput:.4g}",
                "speedup": "1"
                if timing.variant == latency.baseline
                else f"{timing.speedup.ratio:.2f} ({least:.2f} to {most:.2f})",
            }
        )
    return rows


def _format_rows(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "path": FORMATS[name].path.as_posix(),
            "stored_bytes": facts.stored_bytes,
            "score": _format_score(report.main_metric, facts.scores.get(report.main_metric)),
            "parity": f"{facts.parity:.3g}",
        }
        for name, facts in report.formats.items()
    ]


def _format_score(name: str, score: float | None) -> str:
    if score is None:  # A loss, which runtimes do not compute.
        return "n/a"
    return f"{100 * score:.2f}" if abs(score) <= 1 and not name.endswith(ABSOLUTE) else f"{score:.4g}"


def _distill_words(report: Report) -> str:
    distillation = report.recipe.distillation
    loss = "mse" if report.head == "regression" else distillation.distill_loss
    if loss == "mse":
        return "the mean squared difference of the logits"
    temperature = distillation.distill_temperature
    name = {"kl": "the Kullback-Leibler divergence from", "ce": "the cross-entropy with"}[loss]
    return f"{name} the teacher's probabilities at temperature {temperature:g} (scaled by {temperature**2:g})"


def _scheme_words(scheme: Scheme) -> str:
    weight, embedding, activation = scheme.weight, scheme.embedding, scheme.activation
    words = [f"{weight.bits}-bit weights with one scale per {_sharers(weight)}"]
    words.append(f"{embedding.bits}-bit embeddings with one per {_sharers(embedding)}")
    if activation is None:
        words.append("activations in floating point")
    elif activation.per == "token":
        words.append(f"{activation.bits}-bit inputs of linear layers with one per token, found at run time")
    else:
        words.append(f"{activation.bits}-bit inputs of linear layers with ranges learned in training")
    if scheme.attention is not None:
        words.append(f"{scheme.attention.bits}-bit products inside attention")
    return _listed(words)


def _bits_words(report: Report) -> list[str]:
    """How many layers have which bits of their own, the fewest bits first."""
    numbers = list(report.bits.values())
    counted = [(bits, numbers.count(bits)) for bits in sorted(set(numbers))]
    return [f"{bits} bits in {count} layer{'' if count == 1 else 's'}" for bits, count in counted]


def _sharers(grid: Grid) -> str:
    return f"group of {grid.group_size}" if grid.per == "group" else grid.per


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} seconds"
    return f"{seconds / 60:.3g} minutes" if seconds < 6000 else f"{seconds / 3600:.3g} hours"
