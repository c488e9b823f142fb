"""How it was made: the methods in the words of their registries, the data, the settings and the command."""

import shlex
from typing import Any

from hf_compress.distill import DistillationArguments
from hf_compress.distill.pairing import LAST, parse_pairs
from hf_compress.distill.teacher_only import AUGMENTED
from hf_compress.models.layer_kinds import CONVOLUTIONS
from hf_compress.models.shares import NAMED
from hf_compress.report.descriptors import criterion, loss, pattern, schedule, scheme
from hf_compress.report.markdown import Markdown, block, code, listed, text
from hf_compress.report.phrases import base_words, dataset_words
from hf_compress.report.report import Report
from hf_compress.report.section import Section
from hf_compress.report.snippets import FILES
from hf_compress.report.units import percent

TEMPLATE = """\
{% set distillation, pruning, quantization = report.recipe.distillation, report.recipe.pruning, report.recipe.quantization %}
{% if layers %}
- **Fewer layers.** {{ layers }} The other layers were left out before training.
{% endif %}
{% if report.vocabulary %}
- **Fewer words.** Embeddings and tokenizer keep {{ report.vocabulary.kept | count }} of the \
{{ report.vocabulary.whole | count }} tokens: those of the training texts, and the pieces that spell any other word.
{% endif %}
{% if distillation.enabled %}
- **Distillation.** The teacher is {{ teacher }}. The loss is {{ distillation.distill_alpha }} x {{ loss }} + \
{{ "%g" | format(1 - distillation.distill_alpha) }} x the loss on the labels\
{% for weight, card in layer_losses %} + {{ "%g" | format(weight) }} x {{ card }}{% endfor %}.
{% if distillation.distill_dropout == 0 %}
  The student had no dropout.
{% elif distillation.distill_dropout is not none %}
  The student's dropout was {{ "%g" | format(distillation.distill_dropout) }}.
{% endif %}
{% if pairs %}
  {{ pairs }}
{% endif %}
{% if teacher_rows %}
  Only the teacher labelled {{ report.teacher_rows.values() | sum | count }} further rows: {{ teacher_rows | listed }}.
  {%- if distillation.distill_extra_share %} They were {{ distillation.distill_extra_share | percent }} of the rows of \
each epoch.{% endif %}

{% endif %}
{% endif %}
{% if pruning.enabled %}
- **Pruning.** In the linear layers{% if convolves %} and convolutions{% endif %} of the body, the {{ criterion }} were set to zero, \
{% if grouped %}whole groups of weights together, {% endif %}{% if pruning.prune_keep %}another number in each block{% elif pruning.prune_scope == "layer" %}the same share in each layer{% else %}chosen over all layers together{% endif %}. {{ pattern }}
{% if speed %}
  {{ speed }}
{% endif %}
{% if pruning.prune_initial_sparsity == pruning.goal %}
  All zeros{% if not pruning.prune_keep %}, {{ pruning.prune_sparsity | percent }},{% endif %} were chosen at once, \
{% if pruning.prune_begin == 0 %}when training began{% else %}after {{ pruning.prune_begin | percent }} of training{% endif %}.
{% else %}
  {{ "What goes" if pruning.prune_keep else "Sparsity" }} grew {{ schedule }} from {{ pruning.prune_initial_sparsity | percent }} to \
{{ pruning.goal | percent }}, between {{ pruning.prune_begin | percent }} and \
{{ pruning.prune_end | percent }} of training, every \
{% if pruning.prune_every == 1 %}step{% else %}{{ pruning.prune_every }} steps{% endif %}.
{% endif %}
  {{ "All other weights" if grouped else "Embeddings and the head" }} stay dense
{%- if pruning.prune_exclude %}, and so do layers that match {{ pruning_excluded }}{% endif %}.
  In the finished file {{ report.achieved_sparsity | percent }} of these weights are {% if report.structure %}removed or {% endif %}zero
{%- if quantization.enabled %}, including those that rounding set to zero{% endif %}.
  {% if touched.pruned %}
  {{ touched.pruned }}
  {% endif %}
{% endif %}
{% if dropped %}
- **Layers dropped in training.** {{ dropped }}
{% endif %}
{% if quantization.enabled %}
- **{% if report.is_trained %}Quantization-aware training{% else %}Quantization without training{% endif %}** with the scheme {{ quantization.quant_scheme | code }}: {{ scheme }}.
  {% if bits %}
  Some weights have other numbers of bits: {{ bits | listed }}. `report.json` names the layers.
  {% endif %}
  {% if report.is_trained %}
  Values were rounded from {{ quantization.quant_begin | percent }} of training
{%- if static %}, and the ranges of activations were fixed from {{ quantization.quant_freeze | percent }}{% endif %}.
  {% elif static %}
  The ranges of activations were observed on the sample of rows, after the weights were rounded.
  {% endif %}
  The head stays in floating point
{%- if quantization.quant_exclude %}, and so do layers that match {{ quantization_excluded }}{% endif %}.
  {% if touched.quantized %}
  {{ touched.quantized }}
  {% endif %}
{% endif %}
{% if quantization.quant_step is not none %}
- **Steps by sensitivity.** {% if report.recipe.budget.enabled %}The budget for the file was \
{{ report.recipe.budget.bytes | int | size }}; it has {{ report.size.packed_bytes | size }}. {% endif %}
Every rounded weight is a multiple of a step. The step of a layer is {{ "%g" | format(quantization.quant_step) }} \
(`--quant_step`) over the root of its sensitivity: how much the outputs depend on its weights.
  The sensitivity was measured on rows of the \
{% if report.is_trained %}training set when rounding began{% else %}texts below, without labels{% endif %}, so bytes \
are spent where the outputs need them{% if takes_text %}; rare tokens have larger steps{% endif %}.
{% if report.steps %}
  {% if report.steps.feedback %}
  Linear layers were rounded once with error feedback (GPTQ){% if report.is_trained %}, and training went on with the same steps{% endif %}.
  {% endif %}
  In the file a rounded weight takes {{ "%.2f" | format(report.steps.bits_per_weight) }} bits on average.
{% endif %}
{% endif %}
{% if not compressed %}
- **No compression.** No method was used. This is ordinary fine-tuning, saved in the packed file format.
{% endif %}
- **Start.** {{ base }}
{%- if report.base_model_revision %} at revision {{ report.base_model_revision[:12] | code }}{% endif %}, \
{% if report.is_trained %}trained as{% else %}loaded as{% endif %} a {{ report.model_class | code }}.
- **{% if report.is_trained %}Data{% else %}Texts{% endif %}.** {{ report.dataset.train_rows | count }} rows of the split {{ report.dataset.train_split | code }} of {{ dataset }}.
{% if not report.is_trained %}
- **Time.** {{ report.train_seconds | duration }} on {{ report.hardware }}, without training.
{% else %}
- **Training.** {{ report.train_steps | count }} steps in {{ report.train_seconds | duration }} on \
{{ report.hardware }}, seed {{ report.seed }}. Settings: {{ settings | listed }}.
{% endif %}
- **Versions.** {{ versions | listed }}.
{% if emissions %}
- **Emissions.** The training emitted {{ emissions }} of CO2 equivalents, as codecarbon measured.
{% endif %}

<details>
<summary>The exact command</summary>

{{ command }}

</details>
"""  # noqa: E501


def is_static(report: Report) -> bool:
    """Whether the ranges of activations are fixed in the file."""
    quantization = report.recipe.quantization
    activation = quantization.scheme.activation if quantization.enabled else None
    return activation is not None and activation.per == "tensor"


def values(report: Report) -> dict[str, Any]:
    """The values that the template uses."""
    recipe = report.recipe
    distillation, pruning, quantization = recipe.distillation, recipe.pruning, recipe.quantization
    self_taught = distillation.distill_teacher == "self"
    layers = distillation.student_layers
    return {
        "layers": None if layers is None else _layers_words(layers),
        "teacher": Markdown("a frozen copy of the model as it was before this training")
        if self_taught
        else code(str(distillation.distill_teacher)),
        "loss": Markdown(loss(report).card.format(**_temperature(report))) if distillation.enabled else "",
        "layer_losses": [(weight, Markdown(loss.card)) for loss, weight in distillation.layer_losses],
        "pairs": _pairs_words(distillation),
        "teacher_rows": [_rows_words(where, count) for where, count in report.teacher_rows.items()],
        "criterion": Markdown(criterion(report).card) if pruning.enabled else "",
        "pattern": Markdown(pattern(report).card) if pruning.enabled else "",
        "dropped": _dropped_words(report),
        "speed": _speed_words(report),
        "grouped": pruning.enabled and bool(pattern(report).kinds),
        "schedule": Markdown(schedule(report).card) if pruning.enabled else "",
        "scheme": Markdown(scheme(report).card.format(ranges=_ranges(report))) if quantization.enabled else "",
        "pruning_excluded": listed([code(pattern) for pattern in pruning.prune_exclude]),
        "quantization_excluded": listed([code(pattern) for pattern in quantization.quant_exclude]),
        "bits": _bits_words(report),
        "touched": {method: _touched_words(report, method) for method in ("pruned", "quantized")},
        "convolves": "pruned" in report.touched and report.touched["pruned"].convolutions > 0,
        "static": is_static(report),
        "takes_text": report.pipeline_tag not in FILES,
        "compressed": recipe.name != "dense" or report.vocabulary is not None,
        "dataset": dataset_words(report),
        "base": base_words(report),
        "settings": [f"{name} {value}" for name, value in report.hyperparameters.items()],
        "versions": [f"{name} {value}" for name, value in report.versions.items()],
        "command": block(_folded(report.command), "bash"),
        "emissions": None if report.emissions_kg is None else f"{1000 * report.emissions_kg:.3g} g",
    }


def _folded(command: str) -> str:
    """The command with every option on a line of its own; as it is if its quoting would change."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    if shlex.join(words) != command or "\n" in command:
        return command
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines)


def _ranges(report: Report) -> str:
    """Where the ranges of activations came from."""
    return "learned in training" if report.is_trained else "observed on texts"


def _temperature(report: Report) -> dict[str, float]:
    temperature = report.recipe.distillation.distill_temperature
    return {"temperature": temperature, "scale": temperature**2}


def _layers_words(layers: int | list[int]) -> Markdown:
    if isinstance(layers, int):
        one = "One of the model's layers was kept with its weights."
        more = f"{layers} of the model's layers were kept with their weights, evenly spaced."
        return Markdown(one if layers == 1 else more)
    numbers = listed([str(layer) for layer in layers])
    return Markdown(f"The model's layers {numbers} were kept with their weights, counted from 0.")


def _pairs_words(distillation: DistillationArguments) -> Markdown | None:
    """Which layers the layerwise losses compared; None if there are none, or they compare embeddings only."""
    if all(loss.reads == "embeddings" for loss, _ in distillation.layer_losses):
        return None
    pairs = parse_pairs(distillation.distill_layers)
    if pairs is not None:
        said = listed([f"{ours} with {theirs}" for ours, theirs in pairs])
        return Markdown(f"Layers were compared as student's with teacher's, counted from 0: {said}.")
    if distillation.distill_layers == LAST:
        return Markdown("Of both models, only the last layers were compared.")
    came = " (those that the student's came from, if the teacher has all layers of the model that it was cut from)"
    return Markdown(f"Layers were compared in pairs, spread evenly{came * (distillation.student_layers is not None)}.")


def _speed_words(report: Report) -> Markdown | None:
    """How the numbers of groups that stay were chosen, and what they are; None if no speed-up chose them."""
    speed = report.speed
    if speed is None:
        return None
    kept = [text(f"{', '.join(map(str, one.after))} {one.kind}") for one in report.structure]
    stay = f" From the first to the last layer stay {listed(kept)}." if kept else ""
    return Markdown(
        f"The numbers were chosen for {speed.target:g} times the speed of the whole model, from times measured before "
        "training: those with which the outputs change least, on rows of the training set when pruning began." + stay
    )


def _dropped_words(report: Report) -> Markdown | None:
    """Which layers were dropped in training, and how; None if none were."""
    depth, pruning = report.depth, report.recipe.pruning
    if depth is None:
        return None
    one = len(depth.dropped) == 1
    numbers = text(listed([str(number) for number in depth.dropped]))
    when = text(f"between {percent(pruning.prune_begin)} and {percent(pruning.prune_end)} of training")
    if one:
        when = text(f"after {percent(pruning.prune_begin)} of training")
    return Markdown(
        f"Of {depth.before} layers, {'number' if one else 'numbers'} {numbers} (counted from 0) "
        f"{'was' if one else 'were'} dropped {when}, {'the' if one else 'each time the'} one without which the "
        "outputs changed least on rows of the training set. The file holds the other layers only."
    )


def _rows_words(where: str, count: int) -> Markdown:
    """How many rows come from one place."""
    if where == AUGMENTED:
        return Markdown(
            f"{count:,} made of training rows (words replaced by close ones; the texts of a pair also swapped or "
            "paired anew)"
        )
    return Markdown(f"{count:,} of {code(where)}")


def _bits_words(report: Report) -> list[str]:
    """How many layers have which number of bits, the fewest bits first."""
    numbers = list(report.bits.values())
    counted = [(bits, numbers.count(bits)) for bits in sorted(set(numbers))]
    return [text(f"{bits} bits in {count} layer{'' if count == 1 else 's'}") for bits, count in counted]


def _touched_words(report: Report, method: str) -> Markdown | None:
    """How much of the file a method touched, and what else it left alone than what it always does; None if unknown."""
    shares, quantization = report.touched.get(method), report.recipe.quantization
    if shares is None:
        return None
    how = "These layers hold" if method == "pruned" else "Integers hold"
    said = f"{how} {percent(shares.of_weights)} of all weights and take {percent(shares.of_bytes)} of the bytes."
    if method == "quantized" and shares.convolutions:
        one = shares.convolutions == 1
        said += f" {shares.convolutions} of the layers {'is a convolution' if one else 'are convolutions'}, with one "
        said += "scale per output channel."
        grids = quantization.scheme if quantization.enabled else None
        if grids is not None and grids.activation is not None and grids.of_input(CONVOLUTIONS[0]) is None:
            said += " Inputs of convolutions stay in floating point."
    if shares.others:
        others, more = list(shares.others.items()), len(shares.others) - NAMED
        named = listed([Markdown(f"{code(name)} ({weights:,} weights)") for name, weights in others[:NAMED]])
        stays = "dense" if method == "pruned" else "in floating point"
        said += f" Not touched and {stays}: {named}{f' and {more} more' if more > 0 else ''}."
    return Markdown(said)


SECTION = Section("making", "How it was made", 40, values, TEMPLATE)
