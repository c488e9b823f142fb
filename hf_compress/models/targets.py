"""Which modules a method touches: the one place that knows heads, tied weights and layer classes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

LayerKind = Literal["linear", "conv1d", "embedding"]
LAYER_KINDS: dict[type[nn.Module], LayerKind] = {nn.Linear: "linear", Conv1D: "conv1d", nn.Embedding: "embedding"}

# The classes that `AutoModel` makes: all body.
_HEADLESS = {name for names in MODEL_MAPPING_NAMES.values() for name in ([names] if isinstance(names, str) else names)}
_LEGACY_HEADS = {"DebertaForMaskedLM", "DebertaV2ForMaskedLM"}
_REMEDIES = {
    "prune_exclude": "Embeddings and heads are never pruned: leave `--prune_sparsity` out for this model.",
    "quant_exclude": "Heads are never quantized: leave `--quant_scheme` out for this model.",
}


@dataclass(frozen=True)
class Target:
    """One module that a method may touch.

    `name` is the qualified name in the model, or in the merged one if it carries a PEFT adapter; `module` is then the
    layer that the adapter was added to. `row_dim` is the dimension of `weight` that enumerates output
    features (a linear layer, GPT-2's `Conv1D`) or vocabulary entries (an embedding): one scale belongs to one row.
    `shares_embedding` says that the weight is an embedding's, whatever the layer.
    """

    name: str
    module: nn.Module
    kind: LayerKind
    shares_embedding: bool = False

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.weight)

    @property
    def row_dim(self) -> int:
        return 1 if self.kind == "conv1d" else 0


def transformer(model: object) -> PreTrainedModel | PeftModel:
    """The Transformers model that `model` is, with any adapter, or is around, as in sentence-transformers and SetFit.

    Raises:
        ValueError: there is none, or more than one.
    """
    if isinstance(model, PreTrainedModel | PeftModel):
        return model
    inner = {name: module for name, module in whole(model).named_modules() if isinstance(module, PreTrainedModel)}
    outermost = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {', '.join(outermost) or 'no Transformers model'}; compressed can be a "
            "`PreTrainedModel`, or a module around one. Train the models one by one."
        )
    return inner[outermost[0]]


def whole(model: object) -> nn.Module:
    """The module that a trainer gives its callbacks: `model`, or what SetFit's holds, which is none itself."""
    return cast(nn.Module, getattr(model, "model_body", model))


def model_class(folder: str | Path) -> type[PreTrainedModel]:
    """The class that the checkpoint `folder` was saved from.

    Raises:
        ValueError: it is none of Transformers'.
    """
    names = AutoConfig.from_pretrained(folder).architectures or [""]
    found: type[PreTrainedModel] | None = getattr(transformers, names[0], None)
    if found is None:
        raise ValueError(f"{folder}/config.json names the architecture {names[0]!r}, not one of Transformers'.")
    return found


def prunable(model: PreTrainedModel | PeftModel, exclude: Sequence[str] = ()) -> list[Target]:
    """Linear layers of the body whose weights magnitude pruning may set to zero.

    Embeddings and the head are never pruned (Movva et al., 2022). The body is what `AutoModel` loads from the
    checkpoint, so that BERT's and ALBERT's poolers belong to it, and the dense layers that RoBERTa, DistilBERT,
    DeBERTa and ModernBERT put before their classifiers belong to the head.

    Args:
        exclude: regular expressions, searched in the qualified module names; what matches is left dense, under every
            name that it is tied to.

    Raises:
        ValueError: a pattern that is no regular expression or matches nothing, or nothing is left to prune.
    """
    return _select(model, ("linear", "conv1d"), exclude, "prune_exclude")


def quantizable(model: PreTrainedModel | PeftModel, exclude: Sequence[str] = ()) -> list[Target]:
    """Linear layers and embeddings of the body, whose weights and inputs quantization may round.

    The head stays in floating point: it holds a thousandth of the weights and its error meets no further layer. A head
    that is tied to an embedding is that embedding, and is stored and rounded with it.

    Args:
        exclude: regular expressions, searched in the qualified module names; what matches stays in floating point,
            under every name that it is tied to.

    Raises:
        ValueError: a pattern that is no regular expression or matches nothing, nothing is left to quantize, or a head
            that reads the embeddings where nothing rounds them.
    """
    targets = _select(model, ("linear", "conv1d", "embedding"), exclude, "quant_exclude")
    # This head multiplies by the weight of the embeddings without calling them: it would not see it rounded.
    reads_embeddings = _class_name(model) in _LEGACY_HEADS and not model.config.legacy
    if reads_embeddings and any(target.module is model.get_input_embeddings() for target in targets):
        raise ValueError(
            f"`--quant_scheme` cannot round the word embeddings of {_class_name(model)} with `config.legacy` False, "
            "whose head reads their weight past the layer that rounds it. Give `--quant_exclude word_embeddings`."
        )
    return targets


def tied(model: PreTrainedModel | PeftModel, targets: Sequence[Target]) -> list[Target]:
    """The layers outside `targets` whose weight is one of theirs, such as an output projection tied to embeddings."""
    modules, weights = [target.module for target in targets], [target.weight for target in targets]
    return [
        Target(name, module, layer, shares_embedding=True)
        for name, module, layer in _layers(_base(model))
        if not any(module is known for known in modules) and any(module.weight is weight for weight in weights)
    ]


def part(model: PreTrainedModel, name: str) -> Literal["embeddings", "encoder", "head"]:
    """The part of the model that the parameter or buffer `name` belongs to."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    if isinstance(module, nn.Embedding):
        return "embeddings"
    return "head" if _in_head(model, owner, module) else "encoder"


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of `model` under the names that its state dict goes by: FSDP's checkpointing wraps some of them."""
    return ((name.replace(_CHECKPOINT_PREFIX, ""), module) for name, module in model.named_modules())


def kind(module: nn.Module) -> LayerKind | None:
    """The kind of layer that `module` is, or None if no method touches its kind."""
    return next((layer for layer_class, layer in LAYER_KINDS.items() if isinstance(module, layer_class)), None)


def _base(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, LayerKind]]:
    """Every layer of a kind that methods touch, under its name in the merged model; adapters themselves are none."""
    wrapped: tuple[str, ...] = ()
    for name, module in named_modules(model):
        if name.startswith(wrapped):
            continue
        inner: list[tuple[str, nn.Module]] = [(name, module)]
        if isinstance(module, BaseTunerLayer):
            inner = [(name, module.get_base_layer())]
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inner = [(f"{name}.{part}".rstrip("."), leaf) for part, leaf in module.original_module.named_modules()]
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            wrapped += (f"{name}.",)
        for own_name, layer in inner:
            if (layer_kind := kind(layer)) is not None:
                yield own_name, layer, layer_kind


def _class_name(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("FSDP")  # FSDP2 makes a class of its own of every class that it shards.


def _in_head(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    """Whether `module`, called `name`, lies outside the body (`base_model`) or is the output projection."""
    output = model.get_output_embeddings()
    if output is not None and (output is module or getattr(output, "base_layer", None) is module):
        return True
    if model.base_model is not model:
        return not f"{name}.".startswith(f"{model.base_model_prefix}.")
    headless = _class_name(model) in _HEADLESS
    # Without a base, as in T5, a linear layer beside encoder and decoder is the head; ALBERT's own base has a pooler.
    return "." not in name and kind(model.get_submodule(name)) in ("linear", "conv1d") and not headless


def _select(
    model: PreTrainedModel | PeftModel, kinds: Sequence[LayerKind], exclude: Sequence[str], option: str
) -> list[Target]:
    base = _base(model)
    body = [
        Target(name, module, layer, shares_embedding=layer == "embedding")
        for name, module, layer in _layers(base)
        if layer in kinds and not _in_head(base, name, module)
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
    # By weight: were one of its layers to round it and another not, no file could hold what both compute with.
    dense = {id(target.weight) for target in body if target.name in excluded}
    targets = [target for target in body if id(target.weight) not in dense]
    if not targets:
        raise ValueError(
            f"{type(base).__name__} has no {' or '.join(kinds)} module to compress in its body"
            + (f" once `--{option}` is applied. Exclude less." if excluded else f". {_REMEDIES[option]}")
        )
    return targets
