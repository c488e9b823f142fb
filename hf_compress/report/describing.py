"""What a report says of a folder, whoever has measured its scores: sizes, zeros, bits, software, machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_compress.checkpoint import inventory
from hf_compress.checkpoint.config import CompressionConfig
from hf_compress.checkpoint.inventory import TensorFacts
from hf_compress.cut.depth import whole_depth
from hf_compress.cut.uniform import whole_config
from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.models.heads import Head
from hf_compress.models.sentences import SENTENCE_KINDS, kind_of_folder
from hf_compress.models.shares import Shares
from hf_compress.prune.coverage import Coverage, pruned_layers
from hf_compress.prune.patterns import PATTERNS
from hf_compress.recipe import Recipe
from hf_compress.redaction import redact, redact_command
from hf_compress.report import provenance
from hf_compress.report.facts import Steps
from hf_compress.report.report import DatasetFacts, Report
from hf_compress.report.sizes import measured_size
from hf_compress.report.structure import depth_of, structure_of


def described(
    folder: Path,
    reloaded: PreTrainedModel,
    recipe: Recipe,
    *,
    head: Head,
    dense_shapes: tuple[PreTrainedModel, PreTrainedModel],
    feedback: bool,
    base_model: str,
    task: str,
    dataset: DatasetFacts,
    command: str | None,
    **measured: Any,
) -> Report:
    """Return the report of the compressed model in `folder`: what was measured, and what the folder and we know.

    Names of others are without secrets and absolute paths.

    Args:
        folder: what `save_compressed` returned.
        reloaded: its model.
        recipe: what it was compressed by.
        head: of the model.
        dense_shapes: the dense model, and what was cut from it. Their values do not matter.
        feedback: whether linear layers were rounded with error feedback, if the weights have steps.
        base_model: the name or path of the dense model.
        task: a short name of the task.
        dataset: the rows.
        command: the command line; by default that of this process.
        measured: further fields of the report.

    Example:
        >>> from hf_compress.report.describing import described
        >>> report = described(folder, reloaded, recipe, head=head, **facts)  # doctest: +SKIP
    """
    zeros = Zeros.count(reloaded, dense_shapes[1], recipe)
    packed = getattr(reloaded.config, "quantization_config", None)
    kind = SENTENCE_KINDS.get(kind_of_folder(folder) or "")
    tensors = inventory.tensors(folder)
    return Report(
        recipe=recipe.shareable(),
        base_model=redact(base_model),
        model_class=type(reloaded).__name__,
        auto_class=head.auto_class.__name__,
        head=head.name,
        pipeline_tag=head.pipeline_tag if kind is None else kind.pipeline_tag,
        task=redact(task),
        dataset=replace(dataset, name=redact(dataset.name)),
        size=measured_size(folder, *dense_shapes, tensors, recipe),
        sparsity=zeros.by_layer,
        achieved_sparsity=zeros.overall,
        promised_sparsity=zeros.promised,
        command=redact_command(command or provenance.command()),
        hardware=provenance.hardware(reloaded.device),
        versions=provenance.versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        vocabulary=VocabularyFacts.of(reloaded.config),
        depth=depth_of(reloaded.config, recipe.pruning),
        structure=structure_of(reloaded, dense_shapes[1], recipe),
        bits=packed.bits if isinstance(packed, CompressionConfig) else {},
        steps=steps_of(packed, tensors, feedback=feedback),
        sentence_class=None if kind is None else kind.name,
        touched=touched(recipe, tensors),
        **measured,
    )


def shapes_of(
    source: PreTrainedModel, reloaded: PreTrainedModel, recipe: Recipe, *, uncut: PreTrainedConfig | None
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The dense model, which has all layers and tokens, and what was cut from it, both without memory.

    Args:
        source: the trained model.
        reloaded: the model of the folder.
        recipe: what it was compressed by.
        uncut: the configuration that it had before layers were cut from it; None if none were.
    """
    whole, vocabulary = whole_config(uncut or source.config), VocabularyFacts.of(source.config)
    if recipe.pruning.prune_layers:
        whole = whole_depth(whole)
    if vocabulary is not None:
        whole.get_text_config().vocab_size = vocabulary.whole
    with torch.device("meta"):
        return type(source)(whole), type(source)(whole_config(reloaded.config))


def touched(recipe: Recipe, facts: Sequence[TensorFacts]) -> dict[str, Shares]:
    """How much of the file each method touched. Where a pattern prunes groups, it says what stays dense."""
    found = {str(method): shares for method, shares in inventory.shares(facts).items()}
    if "pruned" in found and PATTERNS[recipe.pruning.prune_pattern].kinds:
        found["pruned"] = replace(found["pruned"], others={})
    return found


def steps_of(config: Any, facts: Sequence[TensorFacts], *, feedback: bool) -> Steps | None:
    """What the report says about the steps of a model with the `quantization_config`; None if it has none."""
    bits = inventory.bits_per_weight(facts)
    if not isinstance(config, CompressionConfig) or not config.steps or bits is None:
        return None
    return Steps(bits, feedback)


@dataclass(frozen=True)
class Zeros:
    """The share of zeros of each prunable weight, and over all of them; and what the recipe promises of groups.

    A weight that was removed counts as zero.
    """

    by_layer: dict[str, float]
    overall: float
    promised: float | None

    @classmethod
    def count(cls, model: PreTrainedModel, whole: PreTrainedModel, recipe: Recipe) -> "Zeros":
        """Count the zeros in the prunable weights of `model`, which had the shapes of `whole`."""
        pruning, promised = recipe.pruning, None
        if pruning.enabled and PATTERNS[pruning.prune_pattern].kinds:
            coverage = Coverage.of(whole, pruning)
            promised = coverage.zeros(pruning.goal) / coverage.size
        numbers = {target.name: target.weight.numel() for target in pruned_layers(whole, pruning)}
        weights = {target.name: target.weight for target in pruned_layers(model, pruning)}
        zeros = {name: numbers[name] - int(weight.count_nonzero()) for name, weight in weights.items()}
        by_layer = {name: zeros[name] / numbers[name] for name in weights}
        overall = sum(zeros.values()) / max(1, sum(numbers.values()))
        return cls(by_layer, overall, promised)
