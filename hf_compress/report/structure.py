"""The neurons and attention heads that a model has left: before and after, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from hf_compress.cut.depth import Depth
from hf_compress.models.blocks import find_groups
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.patterns import PATTERNS
from hf_compress.recipe import Recipe


@dataclass(frozen=True)
class Structure:
    """How many neurons or heads the layers had and have.

    Args:
        kind: "neurons" or "heads".
        before: their numbers in the dense model, in the order of the layers.
        after: their numbers in the compressed model.

    Example:
        >>> from hf_compress.report.structure import Structure
        >>> Structure("neurons", [1536, 1536], [768, 768]).after
        [768, 768]
    """

    kind: str
    before: list[int]
    after: list[int]


def structure_words(structure: Sequence[Structure]) -> str:
    """Return the numbers in a few words; "" if nothing was removed.

    Example:
        >>> from hf_compress.report.structure import Structure, structure_words
        >>> structure_words([Structure("neurons", [1536] * 6, [768] * 6), Structure("heads", [12] * 6, [6] * 6)])
        '768 of 1,536 neurons, 6 of 12 heads in each layer'
        >>> structure_words([Structure("heads", [12, 12], [4, 7])])
        '4 to 7 of 12 heads in a layer'
    """
    if not structure:
        return ""
    alike = all(len({*one.before}) == len({*one.after}) == 1 for one in structure)
    numbers = [f"{_range(one.after)} of {_range(one.before)} {one.kind}" for one in structure]
    return f"{', '.join(numbers)} in {'each' if alike else 'a'} layer"


def depth_of(config: PreTrainedConfig, pruning: PruningArguments) -> Depth | None:
    """Return which layers were dropped from the model that `config` describes; None if the options drop none.

    Example:
        >>> from transformers import BertConfig
        >>> from hf_compress import PruningArguments
        >>> from hf_compress.report.structure import depth_of
        >>> depth_of(BertConfig(num_hidden_layers=3, dropped_layers=[1]), PruningArguments(prune_layers=1))
        Depth(before=4, dropped=[1])
    """
    return Depth.of(config) if pruning.prune_layers else None


def layers_short(depth: Depth | None, pruning: PruningArguments) -> int:
    """Return how many layers fewer were dropped than the options ask for; 0 if the promise is kept."""
    return max(0, pruning.prune_layers - (0 if depth is None else len(depth.dropped)))


def depth_words(depth: Depth) -> str:
    """Return how many layers are left.

    Example:
        >>> from hf_compress.cut import Depth
        >>> from hf_compress.report.structure import depth_words
        >>> depth_words(Depth(before=6, dropped=[1, 3, 4]))
        '3 of 6 layers'
    """
    return f"{depth.after} of {depth.before} layers"


def structure_of(model: PreTrainedModel, whole: PreTrainedModel, recipe: Recipe) -> list[Structure]:
    """Return what was removed from `whole` by the recipe's pattern to give `model`; nothing for other patterns.

    Their values do not matter.
    """
    options, found = recipe.pruning, list[Structure]()
    for kind in PATTERNS[options.prune_pattern].kinds if options.enabled else ():
        before, after = (
            [block.count for block in find_groups(one, [kind], options.prune_exclude)] for one in (whole, model)
        )
        if before != after:
            found.append(Structure(kind, before, after))
    return found


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
