"""Which modules a method touches: the one place that knows heads, tied weights and layer classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Kind = Literal["linear", "conv1d", "embedding"]
KINDS: dict[type[nn.Module], Kind] = {nn.Linear: "linear", Conv1D: "conv1d", nn.Embedding: "embedding"}


@dataclass(frozen=True)
class Target:
    """One module that a method may touch.

    `name` is the qualified name in the model; `row_dim` is the dimension of `weight` that enumerates output
    features (a linear layer, GPT-2's `Conv1D`) or vocabulary entries (an embedding): one scale belongs to one row.
    `shares_embedding` says that the weight is an embedding's, whatever the layer.
    """

    name: str
    module: nn.Module
    kind: Kind
    shares_embedding: bool = False

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.weight)

    @property
    def row_dim(self) -> int:
        return 1 if self.kind == "conv1d" else 0


def transformer(model: nn.Module) -> PreTrainedModel:
    """The Transformers model that `model` is or, as in sentence-transformers, the one that it is built around.

    Raises:
        ValueError: there is none, or more than one.
    """
    if isinstance(model, PreTrainedModel):
        return model
    inner = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    outermost = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {', '.join(outermost) or 'no Transformers model'}; compressed can be a "
            "`PreTrainedModel`, or a module around one. Train the models one by one."
        )
    return inner[outermost[0]]


def prunable(model: PreTrainedModel, exclude: Sequence[str] = ()) -> list[Target]:
    """Linear layers of the body whose weights magnitude pruning may set to zero.

    Embeddings and the head are never pruned (Movva et al., 2022); BERT's pooler belongs to the body and is, since the
    paper's size formula counts everything but embeddings as pruned.

    Args:
        exclude: regular expressions, searched in the qualified module names; what matches is left dense.

    Raises:
        ValueError: a pattern that is no regular expression or matches nothing, or nothing is left to prune.
    """
    return _select(model, ("linear", "conv1d"), exclude, "prune_exclude")


def quantizable(model: PreTrainedModel, exclude: Sequence[str] = ()) -> list[Target]:
    """Linear layers and embeddings of the body, whose weights and inputs quantization may round.

    The head stays in floating point: it holds a thousandth of the weights and its error meets no further layer. A head
    that is tied to an embedding is that embedding, and is stored and rounded with it.

    Args:
        exclude: regular expressions, searched in the qualified module names; what matches stays in floating point.

    Raises:
        ValueError: a pattern that is no regular expression or matches nothing, or nothing is left to quantize.
    """
    return _select(model, ("linear", "conv1d", "embedding"), exclude, "quant_exclude")


def tied(model: PreTrainedModel, targets: Sequence[Target]) -> list[Target]:
    """The layers outside `targets` whose weight is one of theirs, such as an output projection tied to embeddings."""
    modules, weights = [target.module for target in targets], [target.weight for target in targets]
    return [
        Target(name, module, layer, shares_embedding=True)
        for name, module in model.named_modules()
        if (layer := kind(module)) is not None
        and not any(module is known for known in modules)
        and any(module.weight is weight for weight in weights)
    ]


def part(model: PreTrainedModel, name: str) -> Literal["embeddings", "encoder", "head"]:
    """The part of the model that the parameter or buffer `name` belongs to."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    if isinstance(module, nn.Embedding):
        return "embeddings"
    return "head" if _in_head(model, owner) else "encoder"


def kind(module: nn.Module) -> Kind | None:
    """The kind of layer that `module` is, or None if no method touches its kind."""
    return next((layer for layer_class, layer in KINDS.items() if isinstance(module, layer_class)), None)


def _in_head(model: PreTrainedModel, name: str) -> bool:
    """Whether the module called `name` lies outside the body (`base_model`) or is the output projection."""
    if model.get_output_embeddings() is model.get_submodule(name):
        return True
    if model.base_model is model:
        return False
    return not f"{name}.".startswith(f"{model.base_model_prefix}.")


def _select(model: PreTrainedModel, kinds: Sequence[Kind], exclude: Sequence[str], option: str) -> list[Target]:
    body = [
        Target(name, module, layer, shares_embedding=layer == "embedding")
        for name, module in model.named_modules()
        if (layer := kind(module)) is not None and layer in kinds and not _in_head(model, name)
    ]
    names = [target.name for target in body]
    excluded: set[str] = set()
    for pattern in exclude:
        try:
            matched = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"`--{option} {pattern}` is not a regular expression: {error}.") from error
        if not matched:
            raise ValueError(
                f"`--{option} {pattern}` matches none of the {len(names)} modules that could be excluded. Give a "
                f"regular expression that is found in a module name, such as {', '.join(names[:3])}; or drop the "
                "pattern."
            )
        excluded |= matched
    targets = [target for target in body if target.name not in excluded]
    if not targets:
        raise ValueError(
            f"{type(model).__name__} has no {' or '.join(kinds)} module to compress in its body"
            + (f" once `--{option}` is applied. Exclude less." if excluded else ".")
        )
    return targets
