"""The neurons and attention heads that a model has left: before and after, layer by layer."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_compress.models.blocks import find_groups
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
        >>> Structure("neurons", [1536, 1536], [768, 768]).words
        '1,536 -> 768 neurons in each layer'
        >>> Structure("heads", [12, 12], [4, 7]).words
        '12 -> 4 to 7 heads in a layer'
    """

    kind: str
    before: list[int]
    after: list[int]

    @property
    def words(self) -> str:
        """The numbers in a few words."""
        where = "each" if len({*self.before}) == len({*self.after}) == 1 else "a"
        return f"{_range(self.before)} -> {_range(self.after)} {self.kind} in {where} layer"


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
