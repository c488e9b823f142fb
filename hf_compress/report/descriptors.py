"""The descriptors of what a report's run used, found in the registries of the methods."""

from hf_compress.distill.embedding_losses import EMBEDDING_LOSSES, EmbeddingLoss
from hf_compress.distill.layer_losses import TINYBERT
from hf_compress.distill.losses import LOSSES, REGRESSION, Loss
from hf_compress.distill.score_losses import SCORE_LOSSES, ScoreLoss
from hf_compress.layers.grids import Scheme
from hf_compress.models.sentences import SENTENCE_KINDS
from hf_compress.prune.criteria import CRITERIA
from hf_compress.prune.criterion import Criterion
from hf_compress.prune.dropping import CITATION as LAYERS_CITATION
from hf_compress.prune.patterns import PATTERNS, Pattern
from hf_compress.prune.schedules import SCHEDULES, Schedule
from hf_compress.rate import feedback
from hf_compress.rate.steps import CITATION as STEPS_CITATION
from hf_compress.report.report import Report


def loss(report: Report) -> Loss | EmbeddingLoss | ScoreLoss:
    """The distillation loss. Regression uses its own, and embeddings and rankings have others than logits."""
    kind = SENTENCE_KINDS.get(report.sentence_class or "")
    if kind is not None and not kind.scores_pairs:
        return EMBEDDING_LOSSES[report.recipe.distillation.distill_loss]
    if report.recipe.distillation.distill_loss in SCORE_LOSSES:
        return SCORE_LOSSES[report.recipe.distillation.distill_loss]
    return REGRESSION if report.head.endswith("regression") else LOSSES[report.recipe.distillation.distill_loss]


def criterion(report: Report) -> Criterion:
    """The pruning criterion."""
    return CRITERIA[report.recipe.pruning.prune_criterion]


def pattern(report: Report) -> Pattern:
    """The pattern of the zeros: that of one kind of groups, if only these were removed of neurons and heads."""
    asked, gone = PATTERNS[report.recipe.pruning.prune_pattern], [one.kind for one in report.structure]
    return PATTERNS[gone[0]] if len(gone) == 1 and gone[0] in PATTERNS else asked


def schedule(report: Report) -> Schedule:
    """The pruning schedule."""
    return SCHEDULES[report.recipe.pruning.prune_schedule]


def scheme(report: Report) -> Scheme:
    """The quantization scheme."""
    return report.recipe.quantization.scheme


def citations(report: Report) -> list[str]:
    """The BibTeX entries of all that was used, each once."""
    recipe, found = report.recipe, []
    if recipe.distillation.enabled:
        found += [loss(report).citation, *(layerwise.citation for layerwise, _ in recipe.distillation.layer_losses)]
        found += [TINYBERT] if recipe.distillation.distill_augment else []
    if recipe.pruning.enabled:
        found += [criterion(report).citation, pattern(report).citation, schedule(report).citation]
    if recipe.pruning.prune_layers:
        found.append(LAYERS_CITATION)
    if recipe.quantization.enabled:
        found.append(scheme(report).citation)
    if recipe.quantization.quant_step is not None:
        found.append(STEPS_CITATION)
    if report.steps is not None and report.steps.feedback:
        found.append(feedback.CITATION)
    return [entry for entry in dict.fromkeys(found) if entry]
