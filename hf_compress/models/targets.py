"""Which modules a method touches: the only module that knows tied weights, heads and layer classes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from transformers import AutoConfig, PreTrainedModel

from hf_compress.models.kinds import HEADLESS
from hf_compress.models.layer_kinds import PRUNED, QUANTIZED, LayerKind, as_rows, from_rows, kind

# The submodule of a student that only its training needs: projections to the width of its teacher. It is in training
# checkpoints, but counts neither for the result nor for its size.
PROJECTIONS = "distill_projections"

_LEGACY_HEADS = {"DebertaForMaskedLM", "DebertaV2ForMaskedLM"}
_REMEDIES = {
    "prune_exclude": "Embeddings and heads are never pruned: leave `--prune_sparsity` out for this model.",
    "quant_exclude": "Heads are never quantized: leave `--quant_scheme` out for this model.",
}


@dataclass(frozen=True)
class Target:
    """One module that a method may touch.

    Args:
        name: the qualified name in the model. If the model carries a PEFT adapter, it is the name in the merged model.
        module: the layer. If it carries an adapter, this is the layer that the adapter was added to.
        kind: the kind of layer.
        shares_embedding: whether the weight is also an embedding's.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.models import prunable
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> target = prunable(model)[0]
        >>> target.name, target.kind, tuple(target.weight.shape)
        ('bert.encoder.layer.0.attention.self.query', 'linear', (8, 8))
    """

    name: str
    module: nn.Module
    kind: LayerKind
    shares_embedding: bool = False

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight."""
        return cast(nn.Parameter, self.module.weight)

    @property
    def row_dim(self) -> int:
        """The dimension of `weight` that counts output features or vocabulary entries; each row has one scale."""
        return 1 if self.kind == "conv1d" else 0

    def as_rows(self, weight: Tensor) -> Tensor:
        """Return a tensor in the shape of `weight` as a matrix with one row per output or token."""
        return as_rows(weight, self.kind)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return the inverse of `as_rows`: a tensor in the shape of `weight`, or of this process's part of it."""
        return from_rows(rows, self.kind, (len(rows), *self.weight.shape[1:]))


def transformer(model: object) -> PreTrainedModel | PeftModel:
    """Return the Transformers model that `model` is or contains, with any adapter.

    sentence-transformers and SetFit, for example, build their models around one.

    Raises:
        ValueError: `model` contains no Transformers model, or more than one.
    """
    if isinstance(model, PreTrainedModel | PeftModel):
        return model
    inner = {name: module for name, module in whole(model).named_modules() if isinstance(module, PreTrainedModel)}
    outermost = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
    if len(outermost) != 1:
        raise ValueError(
            f"Only a `PreTrainedModel`, or a module around exactly one, can be compressed; {type(model).__name__} "
            f"holds {', '.join(outermost) or 'no Transformers model'}. Train the models one by one."
        )
    return inner[outermost[0]]


def whole(model: object) -> nn.Module:
    """Return the module that a trainer gives its callbacks: `model`, or the body of a SetFit model (no module)."""
    return cast(nn.Module, getattr(model, "model_body", model))


def model_class(folder: str | Path) -> type[PreTrainedModel]:
    """Return the class that the checkpoint `folder` was saved from.

    Raises:
        ValueError: the class is not one of Transformers'.
    """
    names = AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures or [""]
    found: type[PreTrainedModel] | None = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        raise ValueError(f"{folder}/config.json names the architecture {names[0]!r}, not one of Transformers'.")
    return found


def prunable(model: PreTrainedModel | PeftModel, exclude: Sequence[str] = ()) -> list[Target]:
    """Return the linear layers and convolutions of the body, whose weights pruning may set to zero.

    Embeddings and the head are never pruned (Movva et al., 2022). The body is what `AutoModel` loads from the
    checkpoint. So BERT's and ALBERT's poolers belong to the body, and the dense layers that RoBERTa, DistilBERT,
    DeBERTa and ModernBERT put before their classifiers belong to the head.

    Args:
        exclude: regular expressions, searched in the qualified module names. Layers that match stay dense, under every
            name that they are tied to.

    Raises:
        ValueError: a pattern is not a regular expression or matches nothing, or no layer is left to prune.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.models import prunable
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> [target.name for target in prunable(model, exclude=["attention"])]
        ['bert.encoder.layer.0.intermediate.dense', 'bert.encoder.layer.0.output.dense', 'bert.pooler.dense']
    """
    return _select(model, PRUNED, exclude, "prune_exclude")


def quantizable(model: PreTrainedModel | PeftModel, exclude: Sequence[str] = ()) -> list[Target]:
    """Return the linear layers, convolutions and embeddings of the body, which quantization may round.

    The head stays in floating point: it holds a thousandth of the weights, and no later layer corrects its error. A
    head that is tied to an embedding is stored and rounded with that embedding.

    Args:
        exclude: regular expressions, searched in the qualified module names. Layers that match stay in floating point,
            under every name that they are tied to.

    Raises:
        ValueError: a pattern is not a regular expression or matches nothing, no layer is left to quantize, or the head
            reads the embeddings' weight without calling the layer that rounds it.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.models import quantizable
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> [target.name for target in quantizable(model) if target.kind == "embedding"][0]
        'bert.embeddings.word_embeddings'
    """
    targets = _select(model, QUANTIZED, exclude, "quant_exclude")
    # This head multiplies by the embeddings' weight without calling their layer, so it would not see it rounded.
    reads_embeddings = _class_name(model) in _LEGACY_HEADS and not model.config.legacy
    if reads_embeddings and any(target.module is token_embedding(unadapted(model)) for target in targets):
        raise ValueError(
            f"`--quant_scheme` cannot round the word embeddings of {_class_name(model)} if `config.legacy` is False: "
            "its head reads their weight without calling the layer that rounds it. Give `--quant_exclude "
            "word_embeddings`."
        )
    return targets


def token_embedding(model: PreTrainedModel) -> nn.Embedding | None:
    """Return the embedding of the tokens that `model` reads, or None if it reads none, as models of images do.

    Example:
        >>> from transformers import ConvNextConfig, ConvNextModel
        >>> from hf_compress.models.targets import token_embedding
        >>> token_embedding(ConvNextModel(ConvNextConfig(depths=[1], hidden_sizes=[8], num_stages=1))) is None
        True
    """
    try:
        found = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Embedding) else None


def tied(model: PreTrainedModel | PeftModel, targets: Sequence[Target]) -> list[Target]:
    """Return the layers outside `targets` that share a weight with them, such as a tied output projection."""
    modules, weights = [target.module for target in targets], [target.weight for target in targets]
    return [
        Target(name, module, layer, shares_embedding=True)
        for name, module, layer in _layers(unadapted(model))
        if not any(module is known for known in modules) and any(module.weight is weight for weight in weights)
    ]


def part(model: PreTrainedModel, name: str) -> Literal["embeddings", "encoder", "head"]:
    """Return the part of the model that the parameter or buffer `name` belongs to."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    if isinstance(module, nn.Embedding):
        return "embeddings"
    return "head" if _in_head(model, owner, module) else "encoder"


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of `model` under their names in its state dict, without FSDP's checkpointing wrappers."""
    return ((name.replace(_CHECKPOINT_PREFIX, ""), module) for name, module in model.named_modules())


def unadapted(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the Transformers model without the wrapper of its adapter."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, LayerKind]]:
    """Yield every layer of a kind that methods touch, under its name in the merged model, without adapters' own."""
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
    return type(model).__name__.removeprefix("FSDP")  # FSDP2 subclasses every class that it shards.


def _in_head(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    """Return whether `module`, called `name`, is outside the body (`base_model`) or is the output projection."""
    output = model.get_output_embeddings()
    if output is not None and (output is module or getattr(output, "base_layer", None) is module):
        return True
    if model.base_model is not model:
        return not f"{name}.".startswith(f"{model.base_model_prefix}.")
    headless = _class_name(model) in HEADLESS
    # T5 has no base: there, a linear layer beside encoder and decoder is the head. ALBERT's base has a pooler.
    return "." not in name and kind(model.get_submodule(name)) in ("linear", "conv1d") and not headless


def _words(kinds: Sequence[LayerKind]) -> str:
    return "linear layer, convolution or embedding" if "embedding" in kinds else "linear layer or convolution"


def _select(
    model: PreTrainedModel | PeftModel, kinds: Sequence[LayerKind], exclude: Sequence[str], option: str
) -> list[Target]:
    base = unadapted(model)
    # Not in any file: made from the configuration whenever the model is (the positions of Marian).
    computed = set(base._keys_to_ignore_on_save or ())
    body = [
        Target(name, module, layer, shares_embedding=layer == "embedding")
        for name, module, layer in _layers(base)
        if layer in kinds and not _in_head(base, name, module) and f"{name}.weight" not in computed
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
                f"`--{option} {pattern}` matches none of the {len(names)} modules that can be excluded, such as "
                f"{', '.join(names[:3])}. Give a regular expression that is found in a module name, or drop the "
                "pattern."
            )
        excluded |= matched
    # By weight: if one layer rounded a shared weight and another did not, no file could hold both values.
    dense = {id(target.weight) for target in body if target.name in excluded}
    targets = [target for target in body if id(target.weight) not in dense]
    if not targets:
        raise ValueError(
            f"{type(base).__name__} has no {_words(kinds)} to compress in its body"
            + (f" once `--{option}` is applied. Exclude less." if excluded else f". {_REMEDIES[option]}")
        )
    return targets
