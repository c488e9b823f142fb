"""The groups of a model's layers that can be taken out without a special kernel: neurons and attention heads."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from hf_compress.models.targets import Target

GroupKind = Literal["neurons", "heads"]
Side = Literal["outputs", "inputs"]


class NoGroups(ValueError):
    """A model has no groups of the kind asked for, or this package does not know how to take them out."""


@dataclass(frozen=True)
class Part:
    """The values of one linear layer that belong to the groups of a block.

    Along one side of the layer, the outputs or the inputs, run after run begins at `starts`. Each run holds `size`
    consecutive values of the first group, then of the second, and so on.

    Args:
        target: the linear layer.
        side: "outputs" for a layer that computes the groups, "inputs" for the one that reads them.
        starts: where each run begins. A layer fused from queries, keys and values has three.
        size: consecutive values of a group in one run: 1 for neurons, a multiple of the head width for heads.
        count: the number of groups.

    Example:
        >>> from hf_compress.models.groups import Part
        >>> from hf_compress.models.targets import Target
        >>> from torch import nn
        >>> fused = Part(Target("Wi", nn.Linear(4, 6), "linear"), "outputs", starts=(0, 3), size=1, count=3)
        >>> fused.indices().tolist()
        [[0, 3], [1, 4], [2, 5]]
    """

    target: Target
    side: Side
    starts: tuple[int, ...]
    size: int
    count: int

    @property
    def dim(self) -> int:
        """The dimension of the weight that enumerates this side."""
        return self.target.row_dim if self.side == "outputs" else 1 - self.target.row_dim

    @property
    def width(self) -> int:
        """The number of the layer's outputs or inputs, in groups or not."""
        return int(self.target.weight.shape[self.dim])

    def indices(self) -> Int[Tensor, "groups values"]:
        """Return which outputs or inputs of the layer belong to each group, in rising order."""
        first = torch.tensor(self.starts)[None, :, None] + self.size * torch.arange(self.count)[:, None, None]
        return (first + torch.arange(self.size)).flatten(1)

    def owners(self) -> Int[Tensor, " width"]:
        """Return the group of each output or input of the layer; -1 where it belongs to none."""
        found = torch.full((self.width,), -1)
        found[self.indices()] = torch.arange(self.count)[:, None]
        return found

    def mask(self, kept: Bool[Tensor, " groups"]) -> Bool[Tensor, "..."]:
        """Return a mask of the whole weight, in its shape: True in groups that are kept, and outside of groups."""
        along = torch.cat([kept, kept.new_ones(1)])[self.owners().to(kept.device)]
        shape = self.target.weight.shape
        return along.unsqueeze(1 - self.dim).expand(shape)

    def nonzero(self, weight: Shaped[Tensor, "..."]) -> Int[Tensor, " groups"]:
        """Return the number of values in each group of `weight`, the layer's whole weight, that are not zero."""
        return weight.count_nonzero(1 - self.dim)[self.indices().to(weight.device)].sum(1)


@dataclass(frozen=True)
class Groups:
    """The groups of one block, all alike: the neurons of a feed-forward, or the heads of an attention.

    Args:
        name: the qualified name of the block in the (merged) model. No other `Groups` of the model has it.
        kind: what the groups are.
        count: the number of groups. Where query heads share keys and values, those are one group.
        parts: all linear layers with values of the groups. A layer appears more than once if its runs differ in size.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.models.blocks import find_groups
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> found = find_groups(BertModel(BertConfig(vocab_size=9, **sizes)), ["neurons", "heads"])
        >>> [(block.name, block.kind, block.count) for block in found]
        [('encoder.layer.0.attention', 'heads', 2), ('encoder.layer.0', 'neurons', 16)]
    """

    name: str
    kind: GroupKind
    count: int
    parts: tuple[Part, ...]

    @property
    def consumer(self) -> Part:
        """The part that reads the groups. A group whose values are zero here changes nothing that follows."""
        return next(part for part in self.parts if part.side == "inputs")

    @property
    def producers(self) -> tuple[Part, ...]:
        """The parts that compute the groups. Their layers may have biases for them, too."""
        return tuple(part for part in self.parts if part.side == "outputs")
